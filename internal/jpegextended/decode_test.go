package jpegextended

import (
	"bytes"
	"errors"
	"testing"

	"github.com/deepmed/anomaly/internal/codectest"
)

var codec = codectest.Codec{
	Pattern: "jpeg_12_*.dcm", Start: "\xff\xd8\xff",
	Decode: func(data []byte, check func(int) error) (int, []uint16, error) {
		h, samples, err := Decode(data, func(h Header) error { return check(h.W * h.H * h.Components) })
		return h.W * h.H * h.Components, samples, err
	},
	Errors: []error{ErrDamaged, ErrUnsupported},
}

func TestDecode(t *testing.T) { codec.Run(t) }

func FuzzDecode(f *testing.F) { codec.Fuzz(f) }

// stream is a JPEG of 12 bits whose blocks are a DC coefficient each, in codes of 2 bits for
// the categories 0 and 4.
type stream struct {
	out  []byte
	acc  int
	bits int
}

func (s *stream) put(v, n int) {
	for n--; n >= 0; n-- {
		s.acc, s.bits = s.acc<<1|v>>n&1, s.bits+1
		if s.bits == 8 {
			if s.out = append(s.out, byte(s.acc)); byte(s.acc) == 0xff {
				s.out = append(s.out, 0)
			}
			s.acc, s.bits = 0, 0
		}
	}
}

func (s *stream) pad() {
	for s.bits != 0 {
		s.put(1, 1)
	}
}

// encode returns a JPEG of w×8 pixels with one difference for each block and component.
func encode(components, w, restart int, interleaved bool, diffs ...int) []byte {
	s := &stream{out: []byte{0xff, 0xd8, 0xff, 0xdb, 0, 67, 0}}
	s.out = append(s.out, bytes.Repeat([]byte{1}, blockSize)...)
	s.out = append(s.out, 0xff, 0xc1, 0, byte(8+3*components), 12, 0, 8, 0, byte(w), byte(components))
	for c := range components {
		s.out = append(s.out, byte(c+1), 0x11, 0)
	}
	for _, class := range []byte{0, 0x10} {
		s.out = append(s.out, 0xff, 0xc4, 0, 21, class, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4)
	}
	if restart > 0 {
		s.out = append(s.out, 0xff, 0xdd, 0, 4, 0, byte(restart))
	}
	scans := components
	if interleaved {
		scans = 1
	}
	for scan := range scans {
		of := components / scans
		s.out = append(s.out, 0xff, 0xda, 0, byte(6+2*of), byte(of))
		for c := range of {
			s.out = append(s.out, byte(scan+c+1), 0)
		}
		s.out = append(s.out, 0, 63, 0)
		for i := range len(diffs) / scans {
			if restart > 0 && i > 0 && i%(restart*of) == 0 {
				s.pad()
				s.out = append(s.out, 0xff, byte(0xd0+(i/(restart*of)-1)%8))
			}
			if d := diffs[scan*len(diffs)/scans+i]; d == 0 {
				s.put(0, 2)
			} else {
				s.put(1, 2)
				s.put(d, 4) // 8 to 15
			}
			s.put(0, 2) // the end of the block
		}
		s.pad()
	}
	return append(s.out, 0xff, 0xd9)
}

func TestDecode_ReadsRestartsAndSeveralComponents(t *testing.T) {
	const grey = 2048
	for name, c := range map[string]struct {
		data []byte
		want []int // of the first row, each eighth pixel
	}{
		"one component":          {encode(1, 24, 0, true, 8, 8, 0), []int{grey + 1, grey + 2, grey + 2}},
		"a restart each block":   {encode(1, 24, 1, true, 8, 8, 0), []int{grey + 1, grey + 1, grey}},
		"a restart of two":       {encode(1, 24, 2, true, 8, 8, 8), []int{grey + 1, grey + 2, grey + 1}},
		"three, interleaved":     {encode(3, 16, 0, true, 8, 0, 8, 8, 0, 0), []int{grey + 1, grey, grey + 1, grey + 2, grey, grey + 1}},
		"three, in three scans":  {encode(3, 16, 0, false, 8, 8, 0, 0, 8, 0), []int{grey + 1, grey, grey + 1, grey + 2, grey, grey + 1}},
		"three with restarts":    {encode(3, 16, 1, true, 8, 0, 8, 8, 0, 0), []int{grey + 1, grey, grey + 1, grey + 1, grey, grey}},
		"a width of part blocks": {encode(1, 9, 0, true, 8, 8), []int{grey + 1, grey + 2}},
	} {
		h, samples, err := Decode(c.data, func(Header) error { return nil })
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, want := range c.want {
			at := i/h.Components*side*h.Components + i%h.Components
			if got := int(samples[at]); got != want {
				t.Errorf("%s: sample %d is %d, expected %d", name, at, got, want)
			}
		}
	}
}

func TestDecode_RefusesOtherProcesses(t *testing.T) {
	good := encode(1, 8, 0, true, 8)
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"8 bits":                 {bytes.Replace(good, []byte{0xff, 0xc1, 0, 11, 12}, []byte{0xff, 0xc1, 0, 11, 8}, 1), ErrUnsupported},
		"progressive":            {bytes.Replace(good, []byte{0xff, 0xc1}, []byte{0xff, 0xc2}, 1), ErrUnsupported},
		"no quantization table":  {bytes.Replace(good, []byte{0xff, 0xdb, 0, 67, 0}, []byte{0xff, 0xdb, 0, 67, 1}, 1), ErrDamaged},
		"no Huffman table":       {bytes.Replace(good, []byte{0xff, 0xc4, 0, 21, 0x10}, []byte{0xff, 0xc4, 0, 21, 0x11}, 1), ErrDamaged},
		"a table of class 2":     {bytes.Replace(good, []byte{0xff, 0xc4, 0, 21, 0x10}, []byte{0xff, 0xc4, 0, 21, 0x20}, 1), ErrDamaged},
		"no component":           {bytes.Replace(good, []byte{0xff, 0xda, 0, 8, 1, 1}, []byte{0xff, 0xda, 0, 8, 1, 7}, 1), ErrDamaged},
		"two frames":             {bytes.Replace(good, []byte{0xff, 0xc4, 0, 21, 0}, append([]byte{0xff, 0xc1, 0, 11, 12, 0, 8, 0, 8, 1, 1, 0x11, 0}, 0xff, 0xc4, 0, 21, 0), 1), ErrDamaged},
		"the end before a scan":  {append(bytes.Clone(good[:bytes.Index(good, []byte{0xff, 0xda})]), 0xff, 0xd9), ErrDamaged},
		"a restart that is not":  {encode(1, 8, 0, true, 8)[:len(good)-4], ErrDamaged},
		"no image":               {[]byte("no image"), ErrDamaged},
		"a short quantization":   {[]byte{0xff, 0xd8, 0xff, 0xdb, 0, 10, 0, 1, 1, 1, 1, 1, 1, 1}, ErrDamaged},
		"a frame of no pixels":   {bytes.Replace(good, []byte{12, 0, 8, 0, 8}, []byte{12, 0, 0, 0, 8}, 1), ErrUnsupported},
		"a Huffman code missing": {bytes.Replace(good, []byte{0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4}, []byte{0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4}, 2), ErrDamaged},
	} {
		if _, _, err := Decode(c.data, func(Header) error { return nil }); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
	}
}
