package jpeg2000

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
)

func TestDecode_ReadsTheCodestreamOfAJP2(t *testing.T) {
	const name = "jpeg2000_mono2_8.dcm"
	stream := codec.Streams(t)[name]
	_, want, err := Decode(stream, small)
	if err != nil {
		t.Fatal(err)
	}
	jp2 := []byte("\x00\x00\x00\x0cjP  \r\n\x87\n")
	jp2 = binary.BigEndian.AppendUint32(jp2, uint32(8+len(stream)))
	jp2 = append(append(jp2, "jp2c"...), stream...)
	_, got, err := Decode(jp2, small)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d samples, %v", len(got), err)
	}
	if _, _, err := Decode(jp2[:20], small); !errors.Is(err, ErrDamaged) {
		t.Errorf("a JP2 that is cut: %v", err)
	}
}

func TestBlockDecoder_StopsAfterTooMuchWork(t *testing.T) {
	d := &blockDecoder{work: 64*64*4 - 1}
	area := rect{0, 0, 64, 64}
	b := &band{rect: area, planes: 20, values: make([]int32, 64*64)}
	blk := &block{rect: area, segments: []segment{{passes: 4, data: []byte{1, 2, 3}}}}
	if err := d.decode(blk, b, 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, expected ErrDamaged", err)
	}
}
