package jpeglossless

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/jpegmarkers"
)

// maxCategory is the highest category of a difference.
const maxCategory = 16

// scan is the state of decoding one scan.
type scan struct {
	w, h, stride     int
	samples          []uint16
	components       []int
	tables           []*jpegmarkers.HuffmanTable
	predictor, shift int
	first            int // the prediction of the first sample
	restart          int // rows between restarts, or 0
}

// decode decodes the samples and returns the rest of the file.
func (s *scan) decode(data []byte) ([]byte, error) {
	r := jpegmarkers.NewBitReader(data, failures)
	top := 0 // the first row since the last restart
	for y := range s.h {
		if s.restart > 0 && y > 0 && y%s.restart == 0 {
			if err := r.Restart(); err != nil {
				return nil, err
			}
			top = y
		}
		row := s.samples[y*s.w*s.stride : (y+1)*s.w*s.stride]
		var above []uint16
		if y > top {
			above = s.samples[(y-1)*s.w*s.stride : y*s.w*s.stride]
		}
		if err := s.row(&r, row, above); err != nil {
			return nil, fmt.Errorf("%w in row %d of %d", err, y, s.h)
		}
	}
	return r.Rest(), nil
}

// row decodes a row; above is nil for the first one.
func (s *scan) row(r *jpegmarkers.BitReader, row, above []uint16) error {
	for x := range s.w {
		for i, c := range s.components {
			at := x*s.stride + c
			diff, err := difference(r, s.tables[i])
			if err != nil {
				return err
			}
			var p int
			switch {
			case x == 0 && above == nil:
				p = s.first
			case above == nil:
				p = int(row[at-s.stride] >> s.shift)
			case x == 0:
				p = int(above[at] >> s.shift)
			default:
				p = s.predict(int(row[at-s.stride]>>s.shift), int(above[at]>>s.shift), int(above[at-s.stride]>>s.shift))
			}
			row[at] = uint16(p+diff) << s.shift
		}
	}
	return nil
}

// predict is the predictor of T.81, table H.1, of the samples on the left (a), above (b)
// and above on the left (c).
func (s *scan) predict(a, b, c int) int {
	switch s.predictor {
	case 1:
		return a
	case 2:
		return b
	case 3:
		return c
	case 4:
		return a + b - c
	case 5:
		return a + (b-c)>>1
	case 6:
		return b + (a-c)>>1
	}
	return (a + b) >> 1
}

// difference decodes the difference of a sample and its prediction.
func difference(r *jpegmarkers.BitReader, t *jpegmarkers.HuffmanTable) (int, error) {
	category, err := r.Symbol(t)
	if err != nil || category == 0 {
		return 0, err
	}
	if category == maxCategory {
		return 1 << 15, nil // without further bits
	}
	return r.Signed(category)
}
