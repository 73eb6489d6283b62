package models

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/deepmed/anomaly/internal/onnx"
)

// Field numbers of internal/onnx/onnx.proto that are walked by hand: a message
// of two bytes in the file becomes hundreds in memory, so a file is never
// decoded as a whole. What is decoded is picked out first.
const (
	modelGraph    = 7
	modelMetadata = 14

	graphNode        = 1
	graphInitializer = 5
	graphInput       = 11

	nodeOpType = 4

	tensorDims       = 1
	tensorInt32Data  = 5
	tensorInt64Data  = 7
	tensorName       = 8
	tensorExternal   = 13
	valueInfoName    = 1
	maxMetadataProps = 256
	maxInputs        = 1024
	maxValueInfo     = 4096
)

// maxMessageDepth bounds a decoded message's nesting: an input's shape, the deepest
// there is, has four levels.
const maxMessageDepth = 8

// parameterName is what the names of this project's parameters look like.
var parameterName = regexp.MustCompile(`^(encoder|decoder)\.\d{1,3}\.(weight|bias)$`)

// foreignOps are operators that no network of this project's has, whatever it
// computes beside: one of them means that the weights do something else.
var foreignOps = map[string]bool{
	"LeakyRelu": true, "PRelu": true, "Elu": true, "Selu": true, "Celu": true, "Gelu": true, "HardSwish": true, "Tanh": true, "Softplus": true,
	"BatchNormalization": true, "InstanceNormalization": true, "LayerNormalization": true, "GroupNormalization": true,
	"MaxPool": true, "GRU": true, "LSTM": true,
}

var errTruncated = errors.New("a field is damaged or cut short")

// walk calls visit with each field of an encoded message; value is the content
// of a length-delimited field and the bare encoding of others.
func walk(b []byte, visit func(num protowire.Number, typ protowire.Type, value []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		// ONNX has no groups; refusing them leaves nothing that nests here.
		if n < 0 || typ == protowire.StartGroupType || typ == protowire.EndGroupType {
			return errTruncated
		}
		b = b[n:]
		n = protowire.ConsumeFieldValue(num, typ, b)
		if n < 0 {
			return errTruncated
		}
		value := b[:n]
		b = b[n:]
		if typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		if err := visit(num, typ, value); err != nil {
			return err
		}
	}
	return nil
}

// decode decodes one small message that was picked out.
func decode(b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: maxMessageDepth}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: the ONNX file is damaged: %w", ErrFormat, err)
	}
	return nil
}

// onnxFile gathers what counts of an ONNX file.
type onnxFile struct {
	graph       []byte
	metadata    map[string]string
	tensors     map[string]*onnx.TensorProto
	names       []string
	initializer int // how many there are of any name
	inputs      int
	imageSize   int
}

// readONNX takes the weights and the metadata of an ONNX file. Its graph is not
// run: the network is built anew from its architecture.
func readONNX(data []byte, lim Limits) (contents, error) {
	f := &onnxFile{metadata: make(map[string]string), tensors: make(map[string]*onnx.TensorProto)}
	if err := walk(data, f.modelField); err != nil {
		return contents{}, f.fault(data, err)
	}
	if f.graph == nil {
		return contents{}, f.fault(data, errTruncated)
	}
	if err := walk(f.graph, f.graphField); err != nil {
		return contents{}, f.fault(data, err)
	}
	if len(f.names) == 0 {
		return contents{}, fmt.Errorf("%w: an ONNX graph with none of %d initializers named as expected, encoder.0.weight, …, decoder.6.bias",
			ErrArchitecture, f.initializer)
	}
	a, weights, err := f.weights(lim)
	if err != nil {
		return contents{}, err
	}
	said, err := f.says()
	return contents{architecture: a, weights: weights, said: said}, err
}

// fault words what a walk ran into. Where not even a graph was found, the file
// is likely no ONNX at all.
func (f *onnxFile) fault(data []byte, err error) error {
	if !errors.Is(err, errTruncated) {
		return err
	}
	if f.graph == nil {
		return fmt.Errorf("%w: expected a PyTorch zip checkpoint, an ONNX file or the zip of a training, found %d bytes starting with % x",
			ErrFormat, len(data), data[:min(8, len(data))])
	}
	return fmt.Errorf("%w: the ONNX file is damaged: %w", ErrFormat, err)
}

func (f *onnxFile) modelField(num protowire.Number, typ protowire.Type, value []byte) error {
	switch {
	case typ != protowire.BytesType:
	case num == modelGraph:
		if f.graph != nil {
			return fmt.Errorf("%w: an ONNX file with two graphs, expected one", ErrFormat)
		}
		f.graph = value
	case num == modelMetadata:
		var p onnx.StringStringEntryProto
		if err := decode(value, &p); err != nil {
			return err
		}
		if _, ok := f.metadata[p.GetKey()]; ok || len(f.metadata) == maxMetadataProps {
			return fmt.Errorf("%w: the ONNX metadata has %.80q twice or more than %d keys", ErrFormat, p.GetKey(), maxMetadataProps)
		}
		f.metadata[p.GetKey()] = p.GetValue()
	}
	return nil
}

func (f *onnxFile) graphField(num protowire.Number, typ protowire.Type, value []byte) error {
	if typ != protowire.BytesType {
		return nil
	}
	switch num {
	case graphNode:
		return walk(value, func(num protowire.Number, typ protowire.Type, value []byte) error {
			if num == nodeOpType && foreignOps[string(value)] {
				return fmt.Errorf("%w: the ONNX graph has a %s, expected convolutions with ReLU and a Sigmoid at the end", ErrArchitecture, value)
			}
			return nil
		})
	case graphInitializer:
		return f.initializerField(value)
	case graphInput:
		return f.inputField(value)
	}
	return nil
}

// nameOf finds the name of an encoded message under a field number.
func nameOf(b []byte, field protowire.Number) (name string, err error) {
	err = walk(b, func(num protowire.Number, typ protowire.Type, value []byte) error {
		if num == field && typ == protowire.BytesType {
			name = string(value[:min(len(value), 256)])
		}
		return nil
	})
	return name, err
}

// initializerField decodes an initializer when it is named as a parameter.
func (f *onnxFile) initializerField(b []byte) error {
	f.initializer++
	name, err := nameOf(b, tensorName)
	if err != nil || !parameterName.MatchString(name) {
		return err
	}
	dims := 0
	err = walk(b, func(num protowire.Number, typ protowire.Type, value []byte) error {
		switch num {
		case tensorExternal:
			return fmt.Errorf("%w: %s lies in another file, expected an ONNX file with its weights inside (external_data=False)", ErrFormat, name)
		case tensorInt32Data, tensorInt64Data:
			return fmt.Errorf("%w: %s holds whole numbers, expected float32", ErrArchitecture, name)
		case tensorDims:
			if typ != protowire.BytesType {
				value = value[:1] // one number that is not packed
			}
			if dims += len(value); dims > 10*maxDims {
				return fmt.Errorf("%w: %s has too many dimensions, expected at most 4", ErrArchitecture, name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if f.tensors[name] != nil {
		return fmt.Errorf("%w: the ONNX graph has %s twice", ErrFormat, name)
	}
	t := new(onnx.TensorProto)
	if err := decode(b, t); err != nil {
		return err
	}
	f.tensors[name] = t
	f.names = append(f.names, name)
	return nil
}

// inputField takes the side of the image from an input of 3 channels and a
// fixed, square size.
func (f *onnxFile) inputField(b []byte) error {
	if f.inputs++; f.inputs > maxInputs || len(b) > maxValueInfo || f.imageSize != 0 {
		return nil
	}
	name, err := nameOf(b, valueInfoName)
	if err != nil || parameterName.MatchString(name) {
		return err // older files list their initializers as inputs too
	}
	var v onnx.ValueInfoProto
	if err := decode(b, &v); err != nil {
		return err
	}
	d := v.GetType().GetTensorType().GetShape().GetDim()
	if len(d) == 4 && d[1].GetDimValue() == InputChannels && d[2].GetDimValue() == d[3].GetDimValue() {
		if side := d[2].GetDimValue(); side > 0 && side <= MaxImageSize {
			f.imageSize = int(side)
		}
	}
	return nil
}

// weights checks the names and shapes of the tensors, then reads them.
func (f *onnxFile) weights(lim Limits) (Architecture, StateDict, error) {
	shapes := make(StateDict, len(f.names))
	for i, name := range f.names {
		shapes[i].Name = name
		for _, d := range f.tensors[name].GetDims() {
			if d < 0 || d > math.MaxInt32 {
				return Architecture{}, nil, fmt.Errorf("%w: %s has a dimension of %d", ErrArchitecture, name, d)
			}
			shapes[i].Shape = append(shapes[i].Shape, int(d))
		}
	}
	a, err := lim.architectureOf(shapes)
	if err != nil {
		return Architecture{}, nil, err
	}
	// From here on every product of dimensions is that of a known parameter.
	weights := shapes.Ordered(a.Parameters())
	for i, p := range a.Parameters() {
		if weights[i].Data, err = tensorFloats(f.tensors[p.Name], p); err != nil {
			return Architecture{}, nil, err
		}
	}
	return a, weights, nil
}

func tensorFloats(t *onnx.TensorProto, p Parameter) ([]float32, error) {
	if t.GetDataType() != int32(onnx.TensorProto_FLOAT) || t.GetDataLocation() != onnx.TensorProto_DEFAULT {
		return nil, fmt.Errorf("%w: %s is of type %d, expected %d (float32) within the file", ErrFormat, p.Name, t.GetDataType(), onnx.TensorProto_FLOAT)
	}
	raw, floats := t.GetRawData(), t.GetFloatData()
	switch {
	case len(raw) == 4*p.Size() && len(floats) == 0:
		floats = make([]float32, p.Size())
		for i := range floats {
			floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	case len(raw) != 0 || len(floats) != p.Size():
		return nil, fmt.Errorf("%w: %s has %d raw bytes and %d numbers, expected %d numbers either way", ErrFormat, p.Name, len(raw), len(floats), p.Size())
	}
	return floats, nil
}

// says reads what the metadata of the ONNX file says beside the weights.
func (f *onnxFile) says() (statement, error) {
	s := statement{imageSize: f.imageSize}
	wrong := func(key string, err error) error {
		return fmt.Errorf("%w: %s in the ONNX metadata: %w", ErrMetadata, key, err)
	}
	if v, ok := f.metadata["metadata_json"]; ok {
		s.whole = &v
	}
	if v, ok := f.metadata["image_size"]; ok {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return s, wrong("image_size", err)
		}
		s.imageSize = int(n)
	}
	for _, key := range []string{"threshold", "mean_error", "std_error"} {
		if v, ok := f.metadata[key]; ok {
			n, err := strconv.ParseFloat(v, 64)
			if err != nil {
				return s, wrong(key, err)
			}
			s.set(key, n)
		}
	}
	if v, ok := f.metadata["class_names"]; ok {
		if err := json.Unmarshal([]byte(v), &s.metadata.ClassNames); err != nil {
			return s, wrong("class_names", err)
		}
	}
	return s, nil
}
