package dicom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// frameBytes returns the size of a native frame in bytes, rounded up for samples of 1 bit.
func (f *file) frameBytes() int64 {
	n := int64(f.rows) * int64(f.columns) * int64(f.samples)
	switch {
	case f.allocated == 1:
		return (n + 7) / 8
	case f.photometric == "YBR_FULL_422" && f.syntax.codec == codecNone:
		n = int64(f.rows) * int64(f.columns) * 2
	}
	return n * int64(f.allocated/8)
}

// encoded returns the encoded bytes of a frame.
func (f *file) encoded(frame int) ([]byte, error) {
	switch {
	case !f.syntax.encapsulated:
		return f.nativeFrame(frame)
	case f.parts == nil:
		return joined(f.fragments), nil
	}
	p := f.parts[frame]
	data := joined(f.fragments[p.from:p.to])
	if p.length > 0 && p.length < uint64(len(data)) {
		data = data[:p.length]
	}
	return data, nil
}

func (f *file) nativeFrame(frame int) ([]byte, error) {
	size := f.frameBytes()
	from, total := int64(frame)*size, size*int64(f.frames)
	if f.allocated == 1 { // frames are not padded to bytes
		pixels := int64(f.rows) * int64(f.columns)
		from, total = int64(frame)*pixels/8, (pixels*int64(f.frames)+7)/8
		size = (int64(frame+1)*pixels+7)/8 - from
	}
	if total > int64(len(f.native)) {
		return nil, fmt.Errorf("the DICOM file has %d bytes of pixel data for %d frames of %d×%d pixels, expected %d: export it again",
			len(f.native), f.frames, f.columns, f.rows, total)
	}
	return f.native[from : from+size], nil
}

// joined returns the fragments as one.
func joined(fragments [][]byte) []byte {
	if len(fragments) == 1 {
		return fragments[0]
	}
	return bytes.Join(fragments, nil)
}

// unpackNative returns the samples of a native frame. The samples of a pixel are adjacent.
func (f *file) unpackNative(frame int, data []byte) ([]uint16, error) {
	if size := f.frameBytes(); size > int64(len(data)) { // a fragment may be shorter
		return nil, fmt.Errorf("a frame of the DICOM file has %d bytes, expected %d: export it again", len(data), size)
	}
	n := f.rows * f.columns * f.samples
	out := make([]uint16, n)
	switch {
	case f.allocated == 1:
		shift := 0
		if !f.syntax.encapsulated {
			shift = frame * n % 8
		}
		if (shift+n+7)/8 > len(data) {
			return nil, fmt.Errorf("a frame of the DICOM file has %d bytes: export it again", len(data))
		}
		for i := range out {
			at := shift + i
			out[i] = uint16(data[at/8] >> (at % 8) & 1)
		}
		return out, nil
	case f.photometric == "YBR_FULL_422":
		return f.unpack422(f.byteAt(frame, data), out)
	}
	at := func(i int) uint16 { return f.order.Uint16(data[2*i:]) }
	if f.allocated == 8 {
		at = f.byteAt(frame, data)
	}
	if f.samples == 1 || f.planar == 0 {
		for i := range out {
			out[i] = at(i)
		}
		return out, nil
	}
	plane := f.rows * f.columns
	for i := range plane {
		for c := range f.samples {
			out[i*f.samples+c] = at(c*plane + i)
		}
	}
	return out, nil
}

// byteAt returns the function that returns a sample of 8 bits of a native frame. In big
// endian, the bytes of OW are swapped in pairs, which begin at the first frame.
func (f *file) byteAt(frame int, data []byte) func(i int) uint16 {
	if f.order == binary.BigEndian && f.pixelVR == "OW" {
		base := frame * int(f.frameBytes())
		return func(i int) uint16 { return uint16(f.native[min((base+i)^1, len(f.native)-1)]) }
	}
	return func(i int) uint16 { return uint16(data[i]) }
}

// unpack422 repeats the chroma of two pixels: Y, Y, Cb, Cr.
func (f *file) unpack422(at func(i int) uint16, out []uint16) ([]uint16, error) {
	if f.columns%2 != 0 {
		return nil, errors.New("the DICOM file states YBR_FULL_422 with an odd number of columns, which is impossible: export it again")
	}
	for i := 0; i < f.rows*f.columns/2; i++ {
		for p := range 2 {
			o := out[6*i+3*p:]
			o[0], o[1], o[2] = at(4*i+p), at(4*i+2), at(4*i+3)
		}
	}
	return out, nil
}

// unpackRLE returns the samples of a run-length encoded frame (DICOM PS3.5, annex G).
func (f *file) unpackRLE(data []byte) ([]uint16, error) {
	const header, segments = 64, 15
	damaged := errors.New("the run-length encoded pixel data of the DICOM file is damaged: export it again")
	if f.allocated == 1 {
		return nil, errors.New("run-length encoded DICOM images of 1 bit are not read: convert them to 8 bits")
	}
	bytesPerSample := f.allocated / 8
	n := f.samples * bytesPerSample
	if len(data) < header || int(binary.LittleEndian.Uint32(data)) != n || n > segments {
		return nil, damaged
	}
	size := f.rows * f.columns
	// 2 bytes encode at most 128.
	if int64(size)*int64(n) > 64*int64(len(data)) {
		return nil, damaged
	}
	out := make([]uint16, size*f.samples)
	for i := range n {
		start := int64(binary.LittleEndian.Uint32(data[4+4*i:]))
		end := int64(len(data))
		if i+1 < n {
			end = int64(binary.LittleEndian.Uint32(data[8+4*i:]))
		}
		if start < header || end > int64(len(data)) || start > end {
			return nil, damaged
		}
		shift := 8 * (bytesPerSample - 1 - i%bytesPerSample)
		if !expandRuns(out[i/bytesPerSample:], f.samples, shift, size, data[start:end]) {
			return nil, damaged
		}
	}
	return out, nil
}

// expandRuns adds one byte of each of n samples, which are stride apart. It reports
// whether the segment had all.
func expandRuns(out []uint16, stride, shift, n int, segment []byte) bool {
	at := 0
	for at < n {
		if len(segment) < 2 {
			return false
		}
		control := int(int8(segment[0]))
		segment = segment[1:]
		switch {
		case control >= 0:
			count := control + 1
			if len(segment) < count {
				return false
			}
			for _, b := range segment[:min(count, n-at)] {
				out[at*stride] |= uint16(b) << shift
				at++
			}
			segment = segment[count:]
		case control != -128:
			for range min(1-control, n-at) {
				out[at*stride] |= uint16(segment[0]) << shift
				at++
			}
			segment = segment[1:]
		}
	}
	return true
}
