package dataset

import (
	"archive/zip"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/internal/files"
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
	// ErrLayout is returned, wrapped, when the folders of a data set show that it has
	// images of defects, and which images are normal cannot be known for sure.
	ErrLayout = errors.New("the data set has more than normal images")
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
	// passedOver are files without an image that are worth a warning.
	passedOver passedOverFiles
	warnings   []string
	// evaluation is the folder with the layout of an evaluation, whose training images
	// the entries are; empty if there is none, "." for the data set itself.
	evaluation string
}

// passedOverFiles are names of files and the reasons why they were passed over.
type passedOverFiles struct{ names, reasons []string }

func (p *passedOverFiles) add(name, reason string) {
	p.names, p.reasons = append(p.names, name), append(p.reasons, reason)
}

// entry is an image or a YAML file of a Source.
type entry struct {
	name string
	yaml bool
	open func() (io.ReadCloser, error)
	// size is the unpacked size that a zip states, in bytes; 0 in a folder.
	size uint64
	// refusal is why the file cannot be read, if that is known before it is read.
	refusal string
	// frame is the number of the frame, from 0, that the entry is of a DICOM file of
	// several, whose number of frames is frames; else both are 0.
	frame, frames int
}

// zipMethods are the names of compression methods of zips that are not read.
var zipMethods = map[uint16]string{
	1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd", 99: "AES encryption",
}

// refusalOf returns why an entry of a zip cannot be read, or "".
func refusalOf(f *zip.File) string {
	const encrypted, link = 1, "it is a link, which is not followed in a zip: pack the file itself"
	switch mode := f.Mode(); {
	case f.Flags&encrypted != 0:
		return "it is encrypted: pack the zip without a password"
	case mode&fs.ModeSymlink != 0:
		return link
	case !mode.IsRegular():
		return files.NotRegular(mode).Error()
	case f.Method == zip.Store || f.Method == zip.Deflate || f.Method == deflate64:
		return ""
	case zipMethods[f.Method] != "":
		return fmt.Sprintf("it is packed by %s (method %d): pack the zip by Deflate", zipMethods[f.Method], f.Method)
	}
	return fmt.Sprintf("it is packed by the unknown method %d: pack the zip by Deflate", f.Method)
}

// OpenZip returns the images and YAML files of a zip of size bytes, which must stay
// readable while the source is used; of a data set in the layout of an evaluation those
// of its training images. It returns ErrNotZip, ErrTooLarge and ErrLayout.
func OpenZip(r io.ReaderAt, size int64, lim Limits) (*Source, error) {
	s, err := readZip(r, size, lim)
	if err != nil {
		return nil, err
	}
	return s, s.arrange()
}

// readZip returns the images and YAML files of a zip, in the order of its directory. It
// returns ErrNotZip and ErrTooLarge.
func readZip(r io.ReaderAt, size int64, lim Limits) (*Source, error) {
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
	z.RegisterDecompressor(deflate64, newInflater64)
	s := &Source{packed: size}
	var unpacked uint64
	heads := 0
	for _, f := range z.File {
		name := strings.ReplaceAll(f.Name, `\`, "/")
		c := classify(name)
		if f.FileInfo().IsDir() || hidden(name) || c == otherFile {
			continue
		}
		e := entry{name: name, yaml: c == yamlFile, open: f.Open, refusal: refusalOf(f), size: f.UncompressedSize64}
		if c == unclearFile {
			k := noImage
			if heads++; heads <= maxHeads && e.refusal == "" {
				k, _ = kindOfContent(name, f.Open)
			} else if heads <= maxHeads {
				k = kindOf(name, nil)
			}
			if !k.image {
				if k.refusal != "" {
					s.passedOver.add(name, k.refusal)
				}
				continue
			}
			if e.refusal == "" {
				e.refusal = k.refusal
			}
			if k.refusal != "" { // never unpacked
				s.entries = append(s.entries, e)
				continue
			}
		}
		unpacked += f.UncompressedSize64
		if err := s.withinRatio(int64(min(unpacked, 1<<62)), lim); err != nil {
			return nil, err
		}
		s.entries = append(s.entries, e)
	}
	return s, nil
}

// OpenFolder returns the images and YAML files in a folder and its subfolders, of a data
// set in the layout of an evaluation those of its training images. It returns ErrTooLarge
// for more than lim.Entries files, and ErrLayout.
func OpenFolder(dir string, lim Limits) (*Source, error) {
	all, err := listFolder(dir, lim.Entries)
	if err != nil {
		return nil, err
	}
	s := &Source{}
	for _, f := range all {
		if !f.Image && !f.yaml {
			s.passedOver.add(f.name, f.Reason)
			continue
		}
		s.entries = append(s.entries, entry{name: f.name, yaml: f.yaml, refusal: f.Reason,
			open: func() (io.ReadCloser, error) { return files.OpenRegular(f.Path) }})
	}
	return s, s.arrange()
}

// arrange restricts the images to those of a training, adds a warning for each reason for
// which several are refused, and sorts them. It returns ErrLayout.
func (s *Source) arrange() error {
	if err := s.restrict(); err != nil {
		return err
	}
	s.sort()
	var refused passedOverFiles
	for _, e := range s.entries {
		if e.refusal != "" {
			refused.add(e.name, e.refusal)
		}
	}
	s.warnings = append(s.warnings, grouped(refused, 2)...)
	return nil
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
