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
// words, and binarySize a parameter of its binary extension.
const (
	datatype   = "FP32"
	floatBytes = 4
	binarySize = "binary_data_size"
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

// inferJSON is the protocol's request. Nothing in it takes more memory than its
// text: the lists are arrays of one element more than a request may have, as a
// slice takes many times the text of "[{},{},…", parameters nobody knows are
// passed over, and numbers are kept as they are written.
type inferJSON struct {
	ID         string         `json:"id"`
	Parameters parametersJSON `json:"parameters"`
	Inputs     [2]*struct {
		Name       string          `json:"name"`
		Datatype   string          `json:"datatype"`
		Shape      [5]json.Number  `json:"shape"`
		Parameters parametersJSON  `json:"parameters"`
		Data       json.RawMessage `json:"data"`
	} `json:"inputs"`
	Outputs [4]*outputJSON `json:"outputs"`
}

type outputJSON struct {
	Name       string         `json:"name"`
	Parameters parametersJSON `json:"parameters"`
}

// parametersJSON are the parameters that count: of an input, of an output, and of
// the request.
type parametersJSON struct {
	BinarySize   json.Number `json:"binary_data_size"`
	BinaryWanted *bool       `json:"binary_data"`
	BinaryAll    bool        `json:"binary_data_output"`
}

// maxStringBytes and maxNumberBytes bound a string and a number of a request, as
// they are written.
const (
	maxStringBytes = 16 << 10
	maxNumberBytes = 1 << 10
)

// jsonValueBytes is what a value of an output in JSON takes: 12 bytes of text for
// nearly all in 0…1, in a buffer that doubles while the one before is still there,
// or twice as large as what is copied from it.
const jsonValueBytes = 3 * 12

func badInfer(format string, values ...any) error {
	return badRequest("Unusable inference request: " + fmt.Sprintf(format, values...))
}

func errLongNumber[T ~string | ~[]byte](text T) error {
	return badInfer("the number %.40s… is longer than %d bytes", text, maxNumberBytes)
}

// parseInfer reads a request for a model of that image side. headerLength is
// the header that says where JSON ends and binary data begins; empty when all of
// the body is JSON. What the request takes beyond its body is asked of take
// before: what is made here, and what its outputs and their answer will be.
func parseInfer(body []byte, headerLength string, side int, take func(bytes int) error) (*inferRequest, error) {
	header, rest := body, []byte(nil)
	if headerLength != "" {
		n, err := strconv.Atoi(headerLength)
		if err != nil || n < 0 || n > len(body) {
			return nil, badInfer("%s is %.40q for a body of %d bytes", headerBinaryLength, headerLength, len(body))
		}
		header, rest = body[:n], body[n:]
	}
	if longString(header) {
		return nil, badInfer("it has a string of more than %d bytes", maxStringBytes)
	}
	if err := take(len(header)); err != nil { // the data is copied
		return nil, err
	}
	var q inferJSON
	if err := json.Unmarshal(header, &q); err != nil {
		return nil, badInfer("it is not the protocol's JSON: %.200s", err)
	}
	in := q.Inputs[0]
	if in == nil || q.Inputs[1] != nil || in.Name != network.ImageName {
		return nil, badInfer("it must have one input, named %s", network.ImageName)
	}
	if in.Datatype != datatype {
		return nil, badInfer("the input's datatype is %.40q, expected %s", in.Datatype, datatype)
	}
	one := models.InputChannels * side * side
	for _, text := range append(in.Shape[:], in.Parameters.BinarySize) {
		if len(text) > maxNumberBytes {
			return nil, errLongNumber(text)
		}
	}
	var shape []int
	for _, text := range in.Shape {
		if n, err := strconv.Atoi(string(text)); err == nil {
			shape = append(shape, n)
		} else if text != "" {
			return nil, badInfer("the input's shape has %.40s, which is no size", text)
		}
	}
	if len(shape) != 4 || shape[0] < 1 || !slices.Equal(shape[1:], []int{models.InputChannels, side, side}) {
		return nil, badInfer("the input's shape is %v, expected [N,%d,%d,%d]", shape, models.InputChannels, side, side)
	}
	// A value takes two bytes at least, so that no shape asks for many times
	// the memory that the request took.
	if shape[0] > len(body)/one/2+1 {
		return nil, badInfer("the input's shape is %v, for a request of %d bytes", shape, len(body))
	}
	r := &inferRequest{id: q.ID}
	if err := r.choose(&q); err != nil {
		return nil, err
	}
	count, size := shape[0]*one, in.Parameters.BinarySize
	if err := take(count*floatBytes + r.outputBytes(shape[0], count)); err != nil {
		return nil, err
	}
	var err error
	switch {
	case size != "" && in.Data != nil:
		return nil, badInfer("the input has both data and %s", binarySize)
	case size != "":
		if n, err := size.Float64(); err != nil || n != float64(count*floatBytes) || len(rest) != count*floatBytes {
			return nil, badInfer("the shape %v takes %d bytes, %s says %.40s and %d follow the header", shape, count*floatBytes, binarySize, size, len(rest))
		}
		r.images = readFloats(rest)
	case len(rest) > 0:
		return nil, badInfer("%d bytes follow the header, and the input has no %s", len(rest), binarySize)
	default:
		if r.images, err = flatten(in.Data, count); err != nil {
			return nil, err
		}
	}
	if !models.Finite(r.images...) {
		return nil, badInfer("the input has values that are no finite numbers")
	}
	return r, nil
}

// longString says whether a text in JSON has a string of more than maxStringBytes.
// Reading one takes several times its length.
func longString(text []byte) bool {
	for {
		start := bytes.IndexByte(text, '"')
		if start < 0 {
			return false
		}
		text = text[start+1:]
		end := 0
		for end < len(text) && text[end] != '"' {
			if text[end] == '\\' { // what follows is no end
				end++
			}
			end++
		}
		if end > maxStringBytes {
			return true
		}
		text = text[min(end+1, len(text)):]
	}
}

// outputBytes is what the outputs for so many images, of so many values together,
// take, and the answer that they are written to.
func (r *inferRequest) outputBytes(images, values int) int {
	bytes := 0
	for _, o := range r.outputs {
		n := images
		if o.name == network.ReconstructionName {
			n = values
		}
		bytes += n * floatBytes
		if o.binary {
			bytes += n * floatBytes
		} else {
			bytes += n * jsonValueBytes
		}
	}
	return bytes
}

// choose settles on the outputs: those named, else all.
func (r *inferRequest) choose(q *inferJSON) error {
	all := q.Parameters.BinaryAll
	known := []string{network.ReconstructionName, network.ErrorName, network.MSEName}
	if q.Outputs == [len(q.Outputs)]*outputJSON{} {
		for _, name := range known {
			r.outputs = append(r.outputs, inferOutput{name, all})
		}
		return nil
	}
	for _, o := range q.Outputs {
		if o == nil {
			continue
		}
		if !slices.Contains(known, o.Name) {
			return badInfer("there is no output %.100q, only %v", o.Name, known)
		}
		if slices.ContainsFunc(r.outputs, func(other inferOutput) bool { return other.name == o.Name }) {
			return badInfer("the output %s is asked for twice", o.Name)
		}
		binary := all
		if wanted := o.Parameters.BinaryWanted; wanted != nil {
			binary = *wanted
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
			if end-i > maxNumberBytes {
				return nil, errLongNumber(data[i:end])
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
