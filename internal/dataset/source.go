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

// Errors of a data set that cannot be used.
var (
	// ErrNoImages is returned when a data set has no image, or none that can be read.
	// Clients may match its text, which is the Python service's.
	//
	//lint:ignore ST1005 the contract's words
	ErrNoImages = errors.New("No image files found in the uploaded dataset")
	// ErrNotZip is returned when a zip cannot be read.
	ErrNotZip = errors.New("the data set is not a readable ZIP file")
	// ErrTooLarge is returned when a data set exceeds one of its Limits.
	ErrTooLarge = errors.New("the data set is too large")
)

// Limits bound the files, bytes and memory of a data set.
type Limits struct {
	// Entries bounds the files in a zip or folder.
	Entries int
	// UnpackedBytes bounds the unpacked size of all images and YAML files.
	UnpackedBytes int64
	// Ratio bounds the unpacked size of a zip in multiples of its own size. It does not
	// apply to the first 256 MiB.
	Ratio int64
	// PreparedBytes bounds the size of all prepared images: images × side × side × 3.
	PreparedBytes int64
	// MemoryBytes is how many bytes of the prepared images are kept in memory. The rest
	// is in a temporary file, which costs little time.
	MemoryBytes int64
}

// ratioFreeBytes is the unpacked size up to which Limits.Ratio does not apply. A few
// blank bitmaps compress a thousandfold and do no harm.
const ratioFreeBytes = 256 << 20

// DefaultLimits returns limits that allow 10,000 image files of 10 MB, and 80,000
// prepared images of 256×256 pixels, 1,300 of them in memory.
func DefaultLimits() Limits {
	return Limits{Entries: 200_000, UnpackedBytes: 100 << 30, Ratio: 200, PreparedBytes: 16 << 30, MemoryBytes: 256 << 20}
}

// Source lists the files of a data set in a zip or folder. It reads them on demand and
// never unpacks them to disk.
type Source struct {
	entries []entry
	packed  int64 // size of the zip in bytes; 0 for a folder
}

// entry is one file of a Source.
type entry struct {
	name string
	open func() (io.ReadCloser, error)
	// refusal is why the file cannot be read, if that is known from the zip's directory.
	refusal string
}

var imageExtensions = []string{".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"}

// IsImage reports whether the name has the extension of an image file.
func IsImage(name string) bool {
	return slices.Contains(imageExtensions, strings.ToLower(path.Ext(name)))
}

// hidden reports whether any part of a path begins with a dot or is macOS's folder of
// resource forks.
func hidden(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == "__MACOSX" || (strings.HasPrefix(part, ".") && part != "." && part != "..") {
			return true
		}
	}
	return false
}

// OpenZip returns the images and YAML files of a zip of size bytes, which must stay
// readable while the source is used. It returns ErrNotZip and ErrTooLarge.
func OpenZip(r io.ReaderAt, size int64, lim Limits) (*Source, error) {
	z, err := listZip(r, size, lim)
	if errors.Is(err, ErrTooLarge) {
		return nil, err
	}
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, fmt.Errorf("%w: %w", ErrNotZip, withoutPath(err))
	}
	if len(z.File) > lim.Entries {
		return nil, fmt.Errorf("%w: %d files in the zip, at most %d are allowed", ErrTooLarge, len(z.File), lim.Entries)
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

// OpenFolder returns the images and YAML files in a folder and its subfolders. It
// returns ErrTooLarge for more than lim.Entries files.
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

// sort sorts the files by name, so that a folder and its zip result in the same
// training.
func (s *Source) sort() {
	slices.SortStableFunc(s.entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
}

// withinRatio returns ErrTooLarge if the limits do not allow this number of unpacked
// bytes for the size of the zip.
func (s *Source) withinRatio(unpacked int64, lim Limits) error {
	if unpacked > lim.UnpackedBytes {
		return fmt.Errorf("%w: it unpacks to more than %d bytes", ErrTooLarge, lim.UnpackedBytes)
	}
	if s.packed > 0 && unpacked > ratioFreeBytes && unpacked/lim.Ratio > s.packed {
		return fmt.Errorf("%w: a zip of %d bytes unpacks to more than %d times as much", ErrTooLarge, s.packed, lim.Ratio)
	}
	return nil
}

// read returns the content of a file. It returns an error if that is longer than limit
// bytes.
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

// withoutPath removes the path from an error, because clients must not learn the paths
// of the server.
func withoutPath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
