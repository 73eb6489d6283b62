package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
)

// datatype is the one that the networks here take and give, in the protocol's
// words, and binarySize and binaryWanted are parameters of its binary extension.
const (
	datatype     = "FP32"
	floatBytes   = 4
	binarySize   = "binary_data_size"
	binaryWanted = "binary_data"
	binaryAll    = "binary_data_output"
)

// tensor is an output: its shape, and its values in row-major order.
type tensor struct {
	shape []int
	data  []float32
}

// inferRequest is what a request to infer asks for.
type inferRequest struct {
	id      string
	images  []float32 // N×3×S×S, in row-major order
	outputs []inferOutput
}

// inferOutput is an output that is asked for, and how it is to be written.
type inferOutput struct {
	name   string
	binary bool
}

// inferJSON is the protocol's request.
type inferJSON struct {
	ID         string         `json:"id"`
	Parameters map[string]any `json:"parameters"`
	Inputs     []struct {
		Name       string          `json:"name"`
		Datatype   string          `json:"datatype"`
		Shape      []int           `json:"shape"`
		Parameters map[string]any  `json:"parameters"`
		Data       json.RawMessage `json:"data"`
	} `json:"inputs"`
	Outputs []struct {
		Name       string         `json:"name"`
		Parameters map[string]any `json:"parameters"`
	} `json:"outputs"`
}

func badInfer(format string, values ...any) error {
	return badRequest("Unusable inference request: " + fmt.Sprintf(format, values...))
}

// parseInfer reads a request for a model of that image side. headerLength is
// the header that says where JSON ends and binary data begins; empty when all of
// the body is JSON.
func parseInfer(body []byte, headerLength string, side int) (*inferRequest, error) {
	header, rest := body, []byte(nil)
	if headerLength != "" {
		n, err := strconv.Atoi(headerLength)
		if err != nil || n < 0 || n > len(body) {
			return nil, badInfer("%s is %.40q for a body of %d bytes", headerBinaryLength, headerLength, len(body))
		}
		header, rest = body[:n], body[n:]
	}
	var q inferJSON
	if err := json.Unmarshal(header, &q); err != nil {
		return nil, badInfer("it is not the protocol's JSON: %v", err)
	}
	if len(q.Inputs) != 1 || q.Inputs[0].Name != network.ImageName {
		return nil, badInfer("it must have one input, named %s", network.ImageName)
	}
	in := q.Inputs[0]
	if in.Datatype != datatype {
		return nil, badInfer("the input's datatype is %.40q, expected %s", in.Datatype, datatype)
	}
	one := models.InputChannels * side * side
	if len(in.Shape) != 4 || in.Shape[0] < 1 || !slices.Equal(in.Shape[1:], []int{models.InputChannels, side, side}) {
		return nil, badInfer("the input's shape is %.100s, expected [N,%d,%d,%d]", fmt.Sprint(in.Shape), models.InputChannels, side, side)
	}
	// A value takes two bytes at least, so that no shape asks for more memory
	// than the request took.
	if in.Shape[0] > len(body)/one/2+1 {
		return nil, badInfer("the input's shape is %v, for a request of %d bytes", in.Shape, len(body))
	}
	r := &inferRequest{id: q.ID}
	count := in.Shape[0] * one
	size, ok := in.Parameters[binarySize]
	var err error
	switch {
	case ok && in.Data != nil:
		return nil, badInfer("the input has both data and %s", binarySize)
	case ok:
		if n, isNumber := size.(float64); !isNumber || n != float64(count*floatBytes) || len(rest) != count*floatBytes {
			return nil, badInfer("the shape %v takes %d bytes, %s says %v and %d follow the header", in.Shape, count*floatBytes, binarySize, size, len(rest))
		}
		r.images = readFloats(rest)
	case len(rest) > 0:
		return nil, badInfer("%d bytes follow the header, and the input has no %s", len(rest), binarySize)
	default:
		if r.images, err = flatten(in.Data, count); err != nil {
			return nil, err
		}
	}
	if !finite(r.images) {
		return nil, badInfer("the input has values that are no finite numbers")
	}
	return r, r.choose(&q)
}

// choose settles on the outputs: those named, else all.
func (r *inferRequest) choose(q *inferJSON) error {
	all, _ := q.Parameters[binaryAll].(bool)
	known := []string{network.ReconstructionName, network.ErrorName, network.MSEName}
	if len(q.Outputs) == 0 {
		for _, name := range known {
			r.outputs = append(r.outputs, inferOutput{name, all})
		}
		return nil
	}
	for _, o := range q.Outputs {
		if !slices.Contains(known, o.Name) {
			return badInfer("there is no output %.100q, only %v", o.Name, known)
		}
		if slices.ContainsFunc(r.outputs, func(other inferOutput) bool { return other.name == o.Name }) {
			return badInfer("the output %s is asked for twice", o.Name)
		}
		binary := all
		if b, ok := o.Parameters[binaryWanted].(bool); ok {
			binary = b
		}
		r.outputs = append(r.outputs, inferOutput{o.Name, binary})
	}
	return nil
}

// flatten reads the numbers of JSON arrays within arrays, which may be nested as
// the shape is or not at all. The text is JSON already.
func flatten(data json.RawMessage, count int) ([]float32, error) {
	if len(data) == 0 || data[0] != '[' {
		return nil, badInfer("the input's data is no array")
	}
	out := make([]float32, 0, count)
	for i := 0; i < len(data); {
		switch c := data[i]; {
		case c == '-' || (c >= '0' && c <= '9'):
			end := i + 1
			for end < len(data) && bytes.IndexByte([]byte("+-.eE0123456789"), data[end]) >= 0 {
				end++
			}
			v, err := strconv.ParseFloat(string(data[i:end]), 32)
			if err != nil {
				return nil, badInfer("the number %.40s does not fit %s", data[i:end], datatype)
			}
			if len(out) == count {
				return nil, badInfer("the input has more than the %d values of its shape", count)
			}
			out = append(out, float32(v))
			i = end
		case bytes.IndexByte([]byte("[], \t\r\n"), c) >= 0:
			i++
		default:
			return nil, badInfer("the input's data holds something else than numbers")
		}
	}
	if len(out) != count {
		return nil, badInfer("the input has %d values, its shape %d", len(out), count)
	}
	return out, nil
}

// readFloats reads little-endian values.
func readFloats(data []byte) []float32 {
	out := make([]float32, len(data)/floatBytes)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[floatBytes*i:]))
	}
	return out
}

// appendFloats writes little-endian values.
func appendFloats(out []byte, values []float32) []byte {
	out = slices.Grow(out, len(values)*floatBytes)
	for _, v := range values {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}
