package dataset

import (
	"cmp"
	"fmt"
	"io"
	"path/filepath"

	"github.com/deepmed/anomaly/internal/files"
)

// OpenFiles returns a source of single files with any extension. Files are opened when
// they are read. It returns ErrTooLarge for more than lim.Entries files.
func OpenFiles(paths []string, lim Limits) (*Source, error) {
	if len(paths) > lim.Entries {
		return nil, fmt.Errorf("%w: %d files, at most %d are allowed", ErrTooLarge, len(paths), lim.Entries)
	}
	s := &Source{}
	for _, p := range paths {
		k, _ := kindOfFile(p) // an error is returned again when the file is read
		s.entries = append(s.entries, entry{refusal: k.refusal, name: filepath.ToSlash(p), yaml: classify(p) == yamlFile,
			open: func() (io.ReadCloser, error) { return files.OpenRegular(p) }})
	}
	s.sort()
	return s, nil
}

// JoinSources returns a source with the files of several sources, which must stay
// readable while it is used. The limits on unpacked bytes apply to the sum of all zips.
// It returns ErrTooLarge for more than lim.Entries files.
func JoinSources(sources []*Source, lim Limits) (*Source, error) {
	joined := &Source{}
	packed := true
	for _, s := range sources {
		joined.entries = append(joined.entries, s.entries...)
		joined.passedOver.names = append(joined.passedOver.names, s.passedOver.names...)
		joined.passedOver.reasons = append(joined.passedOver.reasons, s.passedOver.reasons...)
		joined.warnings = append(joined.warnings, s.warnings...)
		joined.evaluation = cmp.Or(joined.evaluation, s.evaluation)
		joined.packed += s.packed
		packed = packed && s.packed > 0
	}
	if !packed { // Limits.Ratio does not apply to folders
		joined.packed = 0
	}
	if len(joined.entries) > lim.Entries {
		return nil, fmt.Errorf("%w: %d files, at most %d are allowed", ErrTooLarge, len(joined.entries), lim.Entries)
	}
	joined.sort()
	return joined, nil
}

// Images returns the number of image files that may be readable.
func (s *Source) Images() int {
	return s.count(func(e entry) bool { return e.refusal == "" })
}

// Refused returns the number of image files that are known to be unreadable, such as
// those of other formats.
func (s *Source) Refused() int {
	return s.count(func(e entry) bool { return e.refusal != "" })
}

func (s *Source) count(counts func(entry) bool) int {
	n := 0
	for _, e := range s.entries {
		if !e.yaml && counts(e) {
			n++
		}
	}
	return n
}
