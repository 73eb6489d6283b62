package dataset

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// OpenFiles gives a source of single files, whatever their names end in. They are
// opened when they are read. It returns ErrTooLarge.
func OpenFiles(paths []string, lim Limits) (*Source, error) {
	if len(paths) > lim.Entries {
		return nil, fmt.Errorf("%w: %d files, at most %d are taken", ErrTooLarge, len(paths), lim.Entries)
	}
	s := &Source{}
	for _, p := range paths {
		s.entries = append(s.entries, entry{name: filepath.ToSlash(p), open: func() (io.ReadCloser, error) { return os.Open(p) }})
	}
	s.sort()
	return s, nil
}

// JoinSources gives a source of the files of several, which must stay readable while
// it is used. What their zips may unpack to, they may together. It returns
// ErrTooLarge.
func JoinSources(sources []*Source, lim Limits) (*Source, error) {
	joined := &Source{}
	packed := true
	for _, s := range sources {
		joined.entries = append(joined.entries, s.entries...)
		joined.packed += s.packed
		packed = packed && s.packed > 0
	}
	if !packed { // no ratio bounds what lies in folders
		joined.packed = 0
	}
	if len(joined.entries) > lim.Entries {
		return nil, fmt.Errorf("%w: %d files, at most %d are taken", ErrTooLarge, len(joined.entries), lim.Entries)
	}
	joined.sort()
	return joined, nil
}

// Images is how many files of the source are taken for images.
func (s *Source) Images() int {
	n := 0
	for _, e := range s.entries {
		if !isYAML(e.name) {
			n++
		}
	}
	return n
}
