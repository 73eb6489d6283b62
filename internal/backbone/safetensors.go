package backbone

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
)

// ErrFormat is returned, wrapped, for a file that does not have the format that
// convert.py writes.
var ErrFormat = errors.New("backbone: malformed weights file")

// maxHeader is the maximum size of a header, in bytes; Lite2's has 13 kB.
const maxHeader = 1 << 20

// maxDims is the maximum number of dimensions; kernels have four.
const maxDims = 4

// metadataKey is the key of the metadata in a safetensors header.
const metadataKey = "__metadata__"

// parse parses a safetensors file: the header's length as a little-endian uint64,
// the header as JSON, then the tensors. It supports only float16 and float32, and
// requires that tensors are contiguous and extend to the end of the file. It returns
// the tensors in file order.
func parse(data []byte) (metadata map[string]string, tensors []Tensor, err error) {
	if len(data) < 8 {
		return nil, nil, fmt.Errorf("%w: %d bytes", ErrFormat, len(data))
	}
	n := binary.LittleEndian.Uint64(data)
	if data = data[8:]; n > maxHeader || n > uint64(len(data)) {
		return nil, nil, fmt.Errorf("%w: header of %d bytes", ErrFormat, n)
	}
	entries := map[string]json.RawMessage{}
	if err := json.Unmarshal(data[:n], &entries); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if raw, ok := entries[metadataKey]; ok {
		if err := json.Unmarshal(raw, &metadata); err != nil {
			return nil, nil, fmt.Errorf("%w: metadata: %w", ErrFormat, err)
		}
		delete(entries, metadataKey)
	}
	data = data[n:]
	all := make([]entry, 0, len(entries))
	for name, raw := range entries {
		e := entry{name: name}
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		if err := d.Decode(&e); err != nil {
			return nil, nil, fmt.Errorf("%w: %.60q: %w", ErrFormat, name, err)
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.Offsets[0], b.Offsets[0]) })
	end := int64(0)
	for _, e := range all {
		t, err := e.tensor(data, end)
		if err != nil {
			return nil, nil, err
		}
		tensors = append(tensors, t)
		end = e.Offsets[1]
	}
	if end != int64(len(data)) {
		return nil, nil, fmt.Errorf("%w: %d bytes after the last tensor", ErrFormat, int64(len(data))-end)
	}
	return metadata, tensors, nil
}

// entry describes a tensor in the header.
type entry struct {
	name    string
	Kind    string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// tensor decodes the data of an entry, which must begin at offset begin.
func (e entry) tensor(data []byte, begin int64) (Tensor, error) {
	width := map[string]int64{"F16": 2, "F32": 4}[e.Kind]
	if width == 0 {
		return Tensor{}, fmt.Errorf("%w: %.60q has type %.20q, expected F16 or F32", ErrFormat, e.name, e.Kind)
	}
	if e.Offsets[0] != begin || e.Offsets[1] <= begin || e.Offsets[1] > int64(len(data)) {
		return Tensor{}, fmt.Errorf("%w: %.60q is at %v, expected an offset of %d and an end of at most %d", ErrFormat, e.name, e.Offsets, begin, len(data))
	}
	raw := data[begin:e.Offsets[1]]
	if len(e.Shape) == 0 || len(e.Shape) > maxDims {
		return Tensor{}, fmt.Errorf("%w: %.60q has %d dimensions", ErrFormat, e.name, len(e.Shape))
	}
	t := Tensor{Name: e.name}
	size := width
	for _, d := range e.Shape {
		if d < 1 || d > int64(len(raw)) { // bounds the product
			return Tensor{}, fmt.Errorf("%w: %.60q has shape %v", ErrFormat, e.name, e.Shape)
		}
		if size *= d; size > int64(len(raw)) {
			break
		}
		t.Shape = append(t.Shape, int(d))
	}
	if size != int64(len(raw)) {
		return Tensor{}, fmt.Errorf("%w: %.60q has shape %v and %d bytes", ErrFormat, e.name, e.Shape, len(raw))
	}
	t.Data = make([]float32, size/width)
	for i := range t.Data {
		if e.Kind == "F16" {
			t.Data[i] = float16(binary.LittleEndian.Uint16(raw[2*i:]))
		} else {
			t.Data[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
		if v := float64(t.Data[i]); math.IsNaN(v) || math.IsInf(v, 0) {
			return Tensor{}, fmt.Errorf("%w: element %d of %.60q is not finite", ErrFormat, i, e.name)
		}
	}
	return t, nil
}

// float16 converts IEEE 754 binary16 to float32.
func float16(b uint16) float32 {
	sign, exponent, fraction := uint32(b>>15)<<31, uint32(b>>10&31), uint32(b&1023)
	switch exponent {
	case 0: // zero and subnormal numbers, which float32 represents exactly
		v := float32(fraction) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31:
		return math.Float32frombits(sign | 255<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}
