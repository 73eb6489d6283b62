package dataset

import (
	"errors"
	"io"
	"slices"
)

// ImageList lists all images of a zip in the order of its directory, those of test folders
// included: images to be judged, not to be learned from. It reads them on demand.
type ImageList struct {
	entries  []entry
	warnings []string
}

// OpenImages returns the images of a zip of size bytes, which must stay readable while the
// list is used. It returns ErrNotZip, ErrTooLarge and ErrNoImages.
func OpenImages(r io.ReaderAt, size int64, lim Limits) (*ImageList, error) {
	s, err := readZip(r, size, lim)
	if err != nil {
		return nil, err
	}
	l := &ImageList{warnings: grouped(s.passedOver, 1)}
	l.entries = slices.DeleteFunc(s.entries, func(e entry) bool { return e.yaml })
	if len(l.entries) == 0 {
		return nil, (&Dataset{Warnings: l.warnings}).noImages()
	}
	return l, nil
}

// Len returns the number of images.
func (l *ImageList) Len() int { return len(l.entries) }

// Name returns the name of image i in the zip.
func (l *ImageList) Name(i int) string { return l.entries[i].name }

// Bytes returns the size of image i. A zip that states another size than the real one has
// an image that cannot be read.
func (l *ImageList) Bytes(i int) int64 { return int64(min(l.entries[i].size, 1<<62)) }

// Refusal returns why image i is known to be unreadable, or "".
func (l *ImageList) Refusal(i int) string { return l.entries[i].refusal }

// Warnings returns a sentence for each reason for which files were passed over.
func (l *ImageList) Warnings() []string { return l.warnings }

// Read reads image i into a buffer of Bytes(i) bytes.
func (l *ImageList) Read(i int, into []byte) error {
	e := l.entries[i]
	if e.refusal != "" {
		return errors.New(e.refusal)
	}
	f, err := e.open()
	if err != nil {
		return withoutPath(err)
	}
	defer f.Close()
	// The end is read too: only there the checksum is compared.
	if _, err = io.ReadFull(f, into); err == nil {
		_, err = io.ReadFull(f, make([]byte, 1))
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return withoutPath(err)
}
