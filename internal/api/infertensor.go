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

const (
	datatype   = "FP32" // of all inputs and outputs
	floatBytes = 4
	binarySize = "binary_data_size" // a parameter of the binary extension
)

// tensor is an output. Its data is in row-major order.
type tensor struct {
	shape []int
	data  []float32
}

// inferRequest is a parsed inference request.
type inferRequest struct {
	id      string
	images  []float32 // N×3×S×S, row-major
	outputs []inferOutput
}

// inferOutput is a requested output.
type inferOutput struct {
	name   string
	binary bool
}

// inferJSON is the JSON of an inference request. Decoding it must not take more memory
// than its text has. A slice would: the elements of "[{},{},…" take many times their
// text. The lists are therefore arrays, with one element more than a valid request has;
// unknown parameters are ignored, and numbers remain text.
type inferJSON struct {
	ID         string         `json:"id"`
	Parameters parametersJSON `json:"parameters"`
	Inputs     [2]*inputJSON  `json:"inputs"`
	Outputs    [4]*outputJSON `json:"outputs"`
}

type inputJSON struct {
	Name       string          `json:"name"`
	Datatype   string          `json:"datatype"`
	Shape      [5]json.Number  `json:"shape"`
	Parameters parametersJSON  `json:"parameters"`
	Data       json.RawMessage `json:"data"`
}

type outputJSON struct {
	Name       string         `json:"name"`
	Parameters parametersJSON `json:"parameters"`
}

// parametersJSON holds the supported parameters of an input, an output and a request, in
// this order.
type parametersJSON struct {
	BinarySize   json.Number `json:"binary_data_size"`
	BinaryWanted *bool       `json:"binary_data"`
	BinaryAll    bool        `json:"binary_data_output"`
}

const (
	// maxStringBytes and maxNumberBytes bound the text of a string and of a number in a
	// request.
	maxStringBytes = 16 << 10
	maxNumberBytes = 1 << 10
)

// jsonValueBytes is the memory for one value of an output in JSON. Nearly all values
// from 0 to 1 have 12 bytes of text or fewer. Three times that are needed, for the
// encoder's buffer (which doubles) and the smaller buffer or the final copy beside it.
const jsonValueBytes = 3 * 12

func badInfer(format string, values ...any) error {
	return badRequest("Unusable inference request: " + fmt.Sprintf(format, values...))
}

func errLongNumber[T ~string | ~[]byte](text T) error {
	return badInfer("the number %.40s… is longer than %d bytes", text, maxNumberBytes)
}

// parseInferRequest parses a request for a model with images of that size.
// headerLength is the request's header with the length of the JSON that binary data
// follows; empty if the whole body is JSON. Before allocating, parseInferRequest calls
// reserve with the bytes that the request needs beyond its body: for the parsed input,
// the outputs and the answer.
func parseInferRequest(body []byte, headerLength string, size models.Size, reserve func(bytes int) error) (*inferRequest, error) {
	header, data, err := splitBody(body, headerLength)
	if err != nil {
		return nil, err
	}
	q, err := parseInferJSON(header, reserve)
	if err != nil {
		return nil, err
	}
	in := q.Inputs[0]
	images, err := in.images(size)
	if err != nil {
		return nil, err
	}
	imageValues := models.InputChannels * size.Area()
	// A value has two bytes of text or more. This rejects shapes that need much more
	// memory than the request has, and those whose size overflows.
	if images > len(body)/imageValues/2+1 {
		return nil, badInfer("the input's shape has %d images, too many for a request of %d bytes", images, len(body))
	}
	r := &inferRequest{id: q.ID}
	if r.outputs, err = q.selectOutputs(); err != nil {
		return nil, err
	}
	values := images * imageValues
	if err := reserve(values*floatBytes + r.outputBytes(images, values)); err != nil {
		return nil, err
	}
	if r.images, err = in.values(data, values); err != nil {
		return nil, err
	}
	if !models.Finite(r.images...) {
		return nil, badInfer("the input has values that are not finite")
	}
	return r, nil
}

// splitBody splits a body into its JSON header and the binary data after it.
func splitBody(body []byte, headerLength string) (header, data []byte, err error) {
	if headerLength == "" {
		return body, nil, nil
	}
	n, err := strconv.Atoi(headerLength)
	if err != nil || n < 0 || n > len(body) {
		return nil, nil, badInfer("%s is %.40q for a body of %d bytes", headerBinaryLength, headerLength, len(body))
	}
	return body[:n], body[n:], nil
}

// parseInferJSON parses the JSON of a request and checks everything about its input but
// the shape and the values.
func parseInferJSON(header []byte, reserve func(bytes int) error) (*inferJSON, error) {
	if hasLongString(header) {
		return nil, badInfer("it has a string of more than %d bytes", maxStringBytes)
	}
	if err := reserve(len(header)); err != nil { // Unmarshal copies the input's data
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
	for _, text := range append(in.Shape[:], in.Parameters.BinarySize) {
		if len(text) > maxNumberBytes {
			return nil, errLongNumber(text)
		}
	}
	return &q, nil
}

// images returns the number of images of an input, whose shape must be N×3×H×W.
func (in *inputJSON) images(size models.Size) (int, error) {
	var shape []int
	for _, text := range in.Shape {
		if n, err := strconv.Atoi(string(text)); err == nil {
			shape = append(shape, n)
		} else if text != "" {
			return 0, badInfer("the input's shape has %.40s, expected an integer", text)
		}
	}
	if len(shape) != 4 || shape[0] < 1 || !slices.Equal(shape[1:], []int{models.InputChannels, size.H, size.W}) {
		return 0, badInfer("the input's shape is %v, expected [N,%d,%d,%d]", shape, models.InputChannels, size.H, size.W)
	}
	return shape[0], nil
}

// values returns the count values of an input, from its JSON or from the binary data
// after the JSON.
func (in *inputJSON) values(data []byte, count int) ([]float32, error) {
	size := in.Parameters.BinarySize
	switch {
	case size != "" && in.Data != nil:
		return nil, badInfer("the input has both data and %s", binarySize)
	case size != "":
		if n, err := size.Float64(); err != nil || n != float64(count*floatBytes) || len(data) != count*floatBytes {
			return nil, badInfer("the input's shape needs %d bytes, but %s is %.40s and %d bytes follow the header", count*floatBytes, binarySize, size, len(data))
		}
		return decodeFloats(data), nil
	case len(data) > 0:
		return nil, badInfer("%d bytes follow the header, but the input has no %s", len(data), binarySize)
	}
	return parseFloats(in.Data, count)
}

// hasLongString reports whether a JSON text has a string of more than maxStringBytes.
// Decoding a string takes several times its length in memory.
func hasLongString(text []byte) bool {
	for {
		start := bytes.IndexByte(text, '"')
		if start < 0 {
			return false
		}
		text = text[start+1:]
		end := 0
		for end < len(text) && text[end] != '"' {
			if text[end] == '\\' { // skip the escaped character
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

// outputBytes returns the memory for the request's outputs and for the answer, in bytes.
// values is the number of values of all images together.
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

// selectOutputs returns the outputs that the request names; if it names none, all of
// them.
func (q *inferJSON) selectOutputs() (outputs []inferOutput, err error) {
	byDefault := q.Parameters.BinaryAll
	known := []string{network.ReconstructionName, network.ErrorName, network.MSEName}
	if q.Outputs == [len(q.Outputs)]*outputJSON{} {
		for _, name := range known {
			outputs = append(outputs, inferOutput{name, byDefault})
		}
		return outputs, nil
	}
	for _, o := range q.Outputs {
		if o == nil {
			continue
		}
		if !slices.Contains(known, o.Name) {
			return nil, badInfer("there is no output %.100q, only %v", o.Name, known)
		}
		if slices.ContainsFunc(outputs, func(other inferOutput) bool { return other.name == o.Name }) {
			return nil, badInfer("the output %s is requested twice", o.Name)
		}
		binary := byDefault
		if wanted := o.Parameters.BinaryWanted; wanted != nil {
			binary = *wanted
		}
		outputs = append(outputs, inferOutput{o.Name, binary})
	}
	return outputs, nil
}

// parseFloats parses the numbers in nested JSON arrays, and ignores how they are nested:
// the protocol allows flat data and data nested as its shape. data must be valid JSON.
func parseFloats(data json.RawMessage, count int) ([]float32, error) {
	if len(data) == 0 || data[0] != '[' {
		return nil, badInfer("the input's data is not an array")
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
			return nil, badInfer("the input's data has elements that are not numbers")
		}
	}
	if len(out) != count {
		return nil, badInfer("the input has %d values, its shape needs %d", len(out), count)
	}
	return out, nil
}

// decodeFloats decodes little-endian values.
func decodeFloats(data []byte) []float32 {
	out := make([]float32, len(data)/floatBytes)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[floatBytes*i:]))
	}
	return out
}

// appendFloats appends values to out in little-endian order.
func appendFloats(out []byte, values []float32) []byte {
	out = slices.Grow(out, len(values)*floatBytes)
	for _, v := range values {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
	}
	return out
}
