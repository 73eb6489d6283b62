package jpeg2000

import (
	"testing"

	"github.com/deepmed/anomaly/internal/codectest"
)

var codec = codectest.Codec{
	Pattern: "jpeg2000*.dcm", Start: "\xff\x4f\xff\x51",
	Decode: func(data []byte, check func(int) error) (int, []uint16, error) {
		h, samples, err := Decode(data, func(h Header) error { return check(h.W * h.H * h.Components) })
		return h.W * h.H * h.Components, samples, err
	},
	Errors: []error{ErrDamaged, ErrUnsupported},
}

// small refuses images of more than 2^16 samples.
func small(h Header) error { return codectest.Small(h.W * h.H * h.Components) }

func TestDecode(t *testing.T) { codec.Run(t) }

func FuzzDecode(f *testing.F) { codec.Fuzz(f) }
