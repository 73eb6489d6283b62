package dicom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// part is the fragments of a frame, and the length of the frame in bytes if it is known,
// else 0.
type part struct {
	from, to int
	length   uint64
}

// itemHeader is the length of a fragment's header in bytes, which offsets include.
const itemHeader = 8

// divide finds the fragments of each frame, once for all frames: by their number, an offset
// table, or how they begin.
func (f *file) divide() error {
	if !f.syntax.encapsulated {
		return nil
	}
	switch n := len(f.fragments); {
	case n == 0:
		return errors.New("the DICOM file has no image: its pixel data has no fragments")
	case f.frames == 1:
		return nil
	case n < f.frames:
		return fmt.Errorf("the DICOM file states %d frames and has %d fragments of pixel data: export it again", f.frames, n)
	case len(f.extended) == 8*f.frames && len(f.lengths) == 8*f.frames:
		if err := f.byOffsets(func(i int) uint64 { return f.order.Uint64(f.extended[8*i:]) }); err != nil {
			return err
		}
		for i := range f.parts {
			f.parts[i].length = f.order.Uint64(f.lengths[8*i:])
		}
		return nil
	case n == f.frames:
		f.parts = make([]part, n)
		for i := range f.parts {
			f.parts[i] = part{from: i, to: i + 1}
		}
		return nil
	case len(f.offsets) == 4*f.frames:
		return f.byOffsets(func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(f.offsets[4*i:])) })
	}
	return f.byBeginning()
}

// byOffsets divides the fragments by the offsets of frames from the first fragment.
func (f *file) byOffsets(offset func(i int) uint64) error {
	f.parts = make([]part, f.frames)
	at, fragment := uint64(0), 0
	skip := func(to uint64) {
		for fragment < len(f.fragments) && at < to {
			at += itemHeader + uint64(len(f.fragments[fragment]))
			fragment++
		}
	}
	for i := range f.parts {
		if skip(offset(i)); at != offset(i) {
			fragment = len(f.fragments) // not the beginning of a fragment
		}
		f.parts[i].from = fragment
		if i+1 < f.frames {
			skip(offset(i + 1))
		} else {
			fragment = len(f.fragments)
		}
		if f.parts[i].to = fragment; f.parts[i].from == fragment {
			return errors.New("the offsets of frames in the DICOM file are outside its pixel data: export it again")
		}
	}
	return nil
}

// byBeginning divides the fragments at those that begin an image.
func (f *file) byBeginning() error {
	for i, fragment := range f.fragments {
		if bytes.HasPrefix(fragment, []byte("\xff\xd8\xff")) || bytes.HasPrefix(fragment, []byte("\xff\x4f\xff\x51")) {
			f.parts = append(f.parts, part{from: i, to: len(f.fragments)})
			if n := len(f.parts); n > 1 {
				f.parts[n-2].to = i
			}
		}
	}
	if len(f.parts) != f.frames {
		return errors.New("the frames of the DICOM file cannot be told apart: export it with an offset table")
	}
	return nil
}
