package dataset

import (
	"archive/zip"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Errors of a data set that cannot be trained on. The first two begin with the
// Python service's words, which clients may match.
var (
	// ErrNoImages is returned when a data set holds no image, or none that can
	// be read.
	//
	//lint:ignore ST1005 the contract's words
	ErrNoImages = errors.New("No image files found in the uploaded dataset")
	// ErrNotZip is returned when the upload is not a readable zip.
	ErrNotZip = errors.New("the data set is not a readable ZIP file")
	// ErrTooLarge is returned when a data set exceeds one of its Limits.
	ErrTooLarge = errors.New("the data set is too large")
)

// Limits bound what a data set may ask of this machine.
type Limits struct {
	// Entries is how many files a zip or folder may list.
	Entries int
	// UnpackedBytes is how much all that is read may unpack to.
	UnpackedBytes int64
	// Ratio is how many times its compressed size a zip may unpack to, beyond
	// the first RatioFreeBytes.
	Ratio int64
	// PreparedBytes is how much the prepared images may take in all: images ×
	// side × side × 3 bytes.
	PreparedBytes int64
	// MemoryBytes is how much of that is kept in memory; what is beyond lies in
	// a temporary file, which the processor waits for little and the memory not
	// at all.
	MemoryBytes int64
}

// ratioFreeBytes is what a zip may unpack to at any ratio: a few blank bitmaps
// compress a thousandfold and harm nobody.
const ratioFreeBytes = 256 << 20

// DefaultLimits let 10,000 images of 10 MB pass and 80,000 prepared ones at
// 256 px, 1,300 of them in memory.
func DefaultLimits() Limits {
	return Limits{Entries: 200_000, UnpackedBytes: 100 << 30, Ratio: 200, PreparedBytes: 16 << 30, MemoryBytes: 256 << 20}
}

// Source is a data set's files, not read yet: those of a zip or of a folder.
// Nothing of it is ever written to disk.
type Source struct {
	entries []entry
	// packed is the size of the zip; 0 for a folder.
	packed int64
}

// entry is one file of a Source.
type entry struct {
	name string
	open func() (io.ReadCloser, error)
	// refusal says why the file cannot be read, if that is known already.
	refusal string
}

var imageEndings = []string{".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"}

// IsImage reports whether a file of that name is taken for an image.
func IsImage(name string) bool {
	return slices.Contains(imageEndings, strings.ToLower(path.Ext(name)))
}

// hidden reports whether any part of a path begins with a dot or is the folder
// of resource forks that macOS packs.
func hidden(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "__MACOSX" || (strings.HasPrefix(part, ".") && part != "." && part != "..") {
			return true
		}
	}
	return false
}

// OpenZip lists the images and YAML files of a zip, which must stay readable
// while the source is used. It returns ErrNotZip and ErrTooLarge.
func OpenZip(r io.ReaderAt, size int64, lim Limits) (*Source, error) {
	z, err := listZip(r, size, lim)
	if errors.Is(err, ErrTooLarge) {
		return nil, err
	}
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, fmt.Errorf("%w: %w", ErrNotZip, withoutPath(err))
	}
	if len(z.File) > lim.Entries {
		return nil, fmt.Errorf("%w: %d files in the zip, at most %d are taken", ErrTooLarge, len(z.File), lim.Entries)
	}
	z.RegisterDecompressor(zip.Deflate, flate.NewReader)
	s := &Source{packed: size}
	var unpacked uint64
	for _, f := range z.File {
		name := strings.ReplaceAll(f.Name, `\`, "/")
		if f.FileInfo().IsDir() || hidden(name) || !(IsImage(name) || isYAML(name)) {
			continue
		}
		unpacked += f.UncompressedSize64
		if err := s.withinRatio(int64(min(unpacked, 1<<62)), lim); err != nil {
			return nil, err
		}
		e := entry{name: name, open: f.Open}
		if f.Flags&1 != 0 {
			e.refusal = "it is encrypted"
		}
		s.entries = append(s.entries, e)
	}
	s.sort()
	return s, nil
}

// OpenFolder lists the images and YAML files below a folder.
func OpenFolder(dir string, lim Limits) (*Source, error) {
	s := &Source{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		if hidden(name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !(IsImage(name) || isYAML(name)) {
			return nil
		}
		if len(s.entries) >= lim.Entries {
			return fmt.Errorf("%w: more than %d files in the folder", ErrTooLarge, lim.Entries)
		}
		s.entries = append(s.entries, entry{name: name, open: func() (io.ReadCloser, error) { return os.Open(p) }})
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.sort()
	return s, nil
}

// sort puts the files in the order of their names, so that a folder and its zip
// give the same training however either lists them.
func (s *Source) sort() {
	slices.SortStableFunc(s.entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
}

// withinRatio returns ErrTooLarge when so many unpacked bytes are more
// than the limits allow for the size of the zip.
func (s *Source) withinRatio(unpacked int64, lim Limits) error {
	if unpacked > lim.UnpackedBytes {
		return fmt.Errorf("%w: it unpacks to more than %d bytes", ErrTooLarge, lim.UnpackedBytes)
	}
	if s.packed > 0 && unpacked > ratioFreeBytes && unpacked/lim.Ratio > s.packed {
		return fmt.Errorf("%w: a zip of %d bytes unpacks to more than %d times as much", ErrTooLarge, s.packed, lim.Ratio)
	}
	return nil
}

// read gives an entry's content, or an error when it is longer than limit.
func (e entry) read(limit int64) ([]byte, error) {
	if e.refusal != "" {
		return nil, errors.New(e.refusal)
	}
	f, err := e.open()
	if err != nil {
		return nil, withoutPath(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, nil
}

// withoutPath leaves out where the file lies: who reads the reason knows its
// name, and need not know the name of the folder for uploads.
func withoutPath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
