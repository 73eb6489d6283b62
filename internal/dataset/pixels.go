package dataset

import (
	"errors"
	"fmt"
	"os"
)

// ErrStorage is returned, wrapped, when the prepared images cannot be stored or read
// back, for example because the disk is full.
var ErrStorage = errors.New("the prepared images cannot be stored")

// pixels store prepared images of one size: the first ones in memory up to a limit, the
// others in a temporary file. Goroutines may put and get different images concurrently.
// pixels must be closed.
type pixels struct {
	size   int // bytes of an image
	memory [][]byte
	file   *os.File // nil if all images are in memory
}

// newPixels returns storage for n images of size bytes each, of which memory bytes are
// in memory. The rest is in a file in dir; "" means the system's folder for temporary
// files.
func newPixels(n, size int, memory int64, dir string) (*pixels, error) {
	p := &pixels{size: size, memory: make([][]byte, min(int64(n), memory/int64(size)))}
	if len(p.memory) == n {
		return p, nil
	}
	file, err := os.CreateTemp(dir, "dataset-*")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	p.file = file
	// A file without a name disappears when the process ends, even if it is killed.
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrStorage, err), p.Close())
	}
	return p, nil
}

// put stores image i. The caller must not use the slice afterwards.
func (p *pixels) put(i int, image []byte) error {
	if len(image) != p.size {
		return fmt.Errorf("dataset: an image of %d bytes, expected %d", len(image), p.size)
	}
	if i < len(p.memory) {
		p.memory[i] = image
		return nil
	}
	if _, err := p.file.WriteAt(image, p.offset(i)); err != nil {
		return fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return nil
}

// get returns image i, which the caller must not change. An image on disk is read into
// the buffer, which get allocates if it is nil.
func (p *pixels) get(i int, buffer *[]byte) (image []byte, err error) {
	if i < len(p.memory) {
		return p.memory[i], nil
	}
	if *buffer == nil {
		*buffer = make([]byte, p.size)
	}
	if n, err := p.file.ReadAt(*buffer, p.offset(i)); n < p.size {
		return nil, fmt.Errorf("%w: reading an image: %w", ErrStorage, err)
	}
	return *buffer, nil
}

func (p *pixels) offset(i int) int64 { return int64(i-len(p.memory)) * int64(p.size) }

// Close releases memory and file.
func (p *pixels) Close() error {
	p.memory = nil
	if p.file == nil {
		return nil
	}
	file := p.file
	p.file = nil
	return file.Close()
}
