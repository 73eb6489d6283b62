package backbone

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"testing"
)

func TestWeights_AreThoseOfTheEmbeddedNetwork(t *testing.T) {
	metadata, _, err := parse(file)
	if err != nil {
		t.Fatal(err)
	}
	if metadata["name"] != Embedded {
		t.Errorf("the file has the weights of %q, expected %q", metadata["name"], Embedded)
	}
	tensors, err := Weights(Embedded)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := Named(Embedded)
	if err != nil {
		t.Fatal(err)
	}
	if want := len(spec.Parameters(LastBlock)); len(tensors) != want {
		t.Errorf("%d tensors, expected %d", len(tensors), want)
	}
	data, err := os.ReadFile(Embedded + ".safetensors")
	if err != nil {
		t.Fatal(err)
	}
	if len(data) != len(file) {
		t.Errorf("the file of %s differs from the embedded one", Embedded)
	}
	if sum := SHA256(); hex.EncodeToString(sum[:]) != "736d193fd8b5e0a72b636b1d326c8ac9e887430ddd7b517e76ec936b4ea3e009" {
		t.Errorf("the file has SHA-256 %x", sum)
	}
}

func TestWeights_RejectsNetworksThatAreNotEmbedded(t *testing.T) {
	if _, err := Weights("efficientnet-lite4"); !errors.Is(err, ErrNotEmbedded) {
		t.Errorf("%v", err)
	}
}

func TestFloat16_DecodesIEEE754(t *testing.T) {
	for bits, want := range map[uint16]float64{
		0x0000: 0, 0x0001: 0x1p-24, 0x03ff: 1023 * 0x1p-24, 0x0400: 0x1p-14, 0x3c00: 1, 0x3c01: 1 + 0x1p-10,
		0xc000: -2, 0x7bff: 65504, 0x7c00: math.Inf(1), 0xfc00: math.Inf(-1), 0x3555: 0.333251953125,
	} {
		if got := float64(float16(bits)); got != want {
			t.Errorf("%#04x is %v, expected %v", bits, got, want)
		}
	}
	if v := float16(0x8000); v != 0 || !math.Signbit(float64(v)) {
		t.Errorf("0x8000 is %v, expected −0", v)
	}
	if v := float16(0x7e00); v == v {
		t.Errorf("0x7e00 is %v, expected NaN", v)
	}
}

// packed returns a file with a header and n zero bytes of data.
func packed(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

func TestParse_ReadsTensorsInFileOrder(t *testing.T) {
	data := packed(`{"__metadata__":{"name":"x"},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]}}  `, 8)
	binary.LittleEndian.PutUint16(data[len(data)-6:], 0x3c00)
	binary.LittleEndian.PutUint32(data[len(data)-4:], math.Float32bits(-3))
	metadata, tensors, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(metadata, tensors); got != "map[name:x] [{a [2 1] [0 1]} {b [1] [-3]}]" {
		t.Error(got)
	}
}

var malformed = map[string][]byte{
	"nothing":            nil,
	"no header":          make([]byte, 4),
	"a longer header":    packed(`{}`, 0)[:9],
	"no JSON":            packed(`{"a":`, 0),
	"an empty shape":     packed(`{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}`, 4),
	"five dimensions":    packed(`{"a":{"dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4]}}`, 4),
	"a shape of nothing": packed(`{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,4]}}`, 4),
	"a huge shape":       packed(`{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}`, 4),
	"another shape":      packed(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 4),
	"another type":       packed(`{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}`, 8),
	"a gap":              packed(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8),
	"an overlap":         packed(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
	"a negative size":    packed(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,-4]}}`, 4),
	"more data":          packed(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 5),
	"less data":          packed(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 3),
	"an unknown field":   packed(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}`, 4),
	"NaN":                append(packed(`{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}`, 0), 0, 0x7e),
}

func TestParse_RejectsMalformedFiles(t *testing.T) {
	for name, data := range malformed {
		if _, tensors, err := parse(data); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, tensors, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, data := range malformed {
		f.Add(data)
	}
	f.Add(packed(`{"a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}`, 8))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, tensors, err := parse(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("unexpected error: %v", err)
			}
			return
		}
		total := 0
		for _, x := range tensors {
			size := 1
			for _, d := range x.Shape {
				size *= d
			}
			if size != len(x.Data) {
				t.Errorf("%d numbers of shape %v", len(x.Data), x.Shape)
			}
			total += len(x.Data)
		}
		if 2*total > len(data) {
			t.Errorf("%d numbers of %d bytes", total, len(data))
		}
	})
}
