package dataset

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// OpenFiles returns a source of single files with any extension. Files are opened when
// they are read. It returns ErrTooLarge for more than lim.Entries files.
func OpenFiles(paths []string, lim Limits) (*Source, error) {
	if len(paths) > lim.Entries {
		return nil, fmt.Errorf("%w: %d files, at most %d are allowed", ErrTooLarge, len(paths), lim.Entries)
	}
	s := &Source{}
	for _, p := range paths {
		s.entries = append(s.entries, entry{name: filepath.ToSlash(p), open: func() (io.ReadCloser, error) { return os.Open(p) }})
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

// Images returns the number of image files, readable or not.
func (s *Source) Images() int {
	n := 0
	for _, e := range s.entries {
		if !isYAML(e.name) {
			n++
		}
	}
	return n
}
