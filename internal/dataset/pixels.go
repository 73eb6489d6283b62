package dataset

import (
	"errors"
	"fmt"
	"os"
)

// ErrStorage is returned, wrapped, when the prepared images cannot be kept: the
// disk is full, or the folder for temporary files cannot be written.
var ErrStorage = errors.New("the prepared images cannot be kept")

// pixels keep the prepared images of a data set: as many as fit into an amount
// of memory, the others in a temporary file. Images are of one size. Different
// images may be put and read at the same time. It must be closed.
type pixels struct {
	size   int // bytes of an image
	memory [][]byte
	file   *os.File // nil where all are in memory
}

// newPixels makes room for n images of so many bytes, in memory up to a bound
// and in a file in dir beyond it ("" is the system's folder for those).
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
	// Without a name the file is gone when the process is, however it ends.
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrStorage, err), p.Close())
	}
	return p, nil
}

// put keeps image i, which is the callee's from then on.
func (p *pixels) put(i int, image []byte) error {
	if len(image) != p.size {
		return fmt.Errorf("dataset: an image of %d bytes among those of %d", len(image), p.size)
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

// get gives image i, which nobody may change. Where it is on disk it is read
// into the buffer, which is made when there is none yet.
func (p *pixels) get(i int, buffer *[]byte) (image []byte, err error) {
	if i < len(p.memory) {
		return p.memory[i], nil
	}
	if *buffer == nil {
		*buffer = make([]byte, p.size)
	}
	if n, err := p.file.ReadAt(*buffer, p.offset(i)); n < p.size {
		return nil, fmt.Errorf("%w: reading one back: %w", ErrStorage, err)
	}
	return *buffer, nil
}

func (p *pixels) offset(i int) int64 { return int64(i-len(p.memory)) * int64(p.size) }

// Close gives memory and disk back.
func (p *pixels) Close() error {
	p.memory = nil
	if p.file == nil {
		return nil
	}
	file := p.file
	p.file = nil
	return file.Close()
}
