package models

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/deepmed/anomaly/internal/onnx"
)

// Field numbers of internal/onnx/onnx.proto that are parsed without the protobuf
// library. A message of two bytes decodes to hundreds of bytes in memory, so only
// selected small messages are decoded, never the whole file.
const (
	modelGraph     = 7
	modelOpset     = 8
	modelMetadata  = 14
	modelTraining  = 20
	modelFunctions = 25

	entryKey   = 1
	entryValue = 2

	opsetDomain  = 1
	opsetVersion = 2

	graphNode        = 1
	graphInitializer = 5
	graphInput       = 11

	nodeOpType = 4

	tensorDims       = 1
	tensorInt32Data  = 5
	tensorInt64Data  = 7
	tensorName       = 8
	tensorExternal   = 13
	tensorLocation   = 14
	valueInfoName    = 1
	maxMetadataProps = 256
	maxNumeral       = 64 // bytes of a number in the metadata
	maxValueInfo     = 4096
)

// maxMessageDepth bounds the nesting of a decoded message. The deepest one, the
// shape of an input, has four levels.
const maxMessageDepth = 8

// parameterName matches the names of the autoencoder's parameters.
var parameterName = regexp.MustCompile(`^(encoder|decoder)\.\d{1,3}\.(weight|bias)$`)

var errTruncated = errors.New("a field is damaged or cut short")

// walk calls visit with each field of an encoded message. value is the content of a
// length-delimited field and the encoding of any other.
func walk(b []byte, visit func(num protowire.Number, typ protowire.Type, value []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		// ONNX has no groups. Without them nothing nests at this level.
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

// decode decodes one small message. It returns ErrFormat, wrapped.
func decode(b []byte, m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: maxMessageDepth}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: the ONNX file is damaged: %w", ErrFormat, err)
	}
	return nil
}

// oldestOpset is the first opset version in which elementwise operators broadcast
// as they do today.
const oldestOpset = 7

// onnxFile collects the relevant parts of an ONNX file.
type onnxFile struct {
	graph          []byte
	opset          int64 // 0: not specified
	values         onnxGraph
	metadata       map[string][]byte
	tensors        map[string]*onnx.TensorProto
	weightNames    []string
	referenceNames []string
	initializers   int // number of initializers with any name
	imageSize      int
}

// readONNX reads the weights and metadata of an ONNX file. The file's graph is not
// run; the network is rebuilt from the architecture. Therefore the graph must
// compute exactly that network.
func readONNX(data []byte, lim Limits) (contents, error) {
	f := &onnxFile{metadata: make(map[string][]byte), tensors: make(map[string]*onnx.TensorProto),
		values: onnxGraph{values: make(map[string]graphValue), limit: lim.MaxNodes}}
	if err := walk(data, f.modelField); err != nil {
		return contents{}, f.describe(data, err)
	}
	if f.graph == nil {
		return contents{}, f.describe(data, errTruncated)
	}
	if f.opset == 0 {
		return contents{}, fmt.Errorf("%w: the ONNX file does not specify a version of ONNX's operators", ErrFormat)
	}
	if f.opset < oldestOpset {
		return contents{}, fmt.Errorf("%w: an ONNX file for version %d of ONNX's operators, expected %d or later", ErrFormat, f.opset, oldestOpset)
	}
	if err := walk(f.graph, f.graphField); err != nil {
		return contents{}, f.describe(data, err)
	}
	if len(f.weightNames) == 0 {
		return contents{}, fmt.Errorf("%w: an ONNX graph of %d initializers, none with an expected name: encoder.0.weight, …, decoder.6.bias",
			ErrArchitecture, f.initializers)
	}
	a, weights, err := f.weights(lim)
	if err != nil {
		return contents{}, err
	}
	reference, err := f.reference(lim)
	if err != nil {
		return contents{}, err
	}
	f.values.layers = a.Layers()
	if err := f.values.check(f.graph); err != nil {
		return contents{}, f.describe(data, err)
	}
	md, err := f.parseMetadata()
	return contents{architecture: a, weights: weights, reference: reference, metadata: md}, err
}

// describe wraps errTruncated in ErrFormat and returns any other error unchanged.
// When no graph was found, the file is probably not ONNX at all.
func (f *onnxFile) describe(data []byte, err error) error {
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
	case num == modelOpset:
		return f.opsetField(value)
	case num == modelTraining:
		return fmt.Errorf("%w: an ONNX file with a training step, expected the network only", ErrArchitecture)
	case num == modelFunctions:
		return fmt.Errorf("%w: an ONNX file with functions, expected a graph of plain operators", ErrArchitecture)
	case num == modelMetadata:
		return f.metadataField(value)
	}
	return nil
}

// metadataField adds an entry of the metadata. The value is not copied.
func (f *onnxFile) metadataField(b []byte) error {
	key, err := nameOf(b, entryKey)
	if err != nil {
		return err
	}
	if _, ok := f.metadata[string(key)]; ok || len(f.metadata) == maxMetadataProps || len(key) > maxValueName {
		return fmt.Errorf("%w: the ONNX metadata has %.80q twice, more than %d keys or one of more than %d bytes",
			ErrFormat, key, maxMetadataProps, maxValueName)
	}
	value, err := nameOf(b, entryValue)
	if value == nil {
		value = []byte{} // present and empty
	}
	f.metadata[string(key)] = value
	return err
}

// opsetField reads the version of ONNX's own operators. It ignores other domains,
// because a node of another domain is an error.
func (f *onnxFile) opsetField(b []byte) error {
	var domain []byte
	version := int64(0)
	err := walk(b, func(num protowire.Number, typ protowire.Type, value []byte) error {
		switch {
		case num == opsetDomain && typ == protowire.BytesType:
			domain = value
		case num == opsetVersion && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			version = int64(v)
		}
		return nil
	})
	if err != nil || !standardDomain(domain) {
		return err
	}
	if f.opset != 0 && f.opset != version {
		return fmt.Errorf("%w: an ONNX file for version %d and version %d of ONNX's operators, expected one", ErrFormat, f.opset, version)
	}
	f.opset = version
	return nil
}

// standardDomain reports whether an operator domain is ONNX's own.
func standardDomain(domain []byte) bool { return len(domain) == 0 || string(domain) == "ai.onnx" }

func (f *onnxFile) graphField(num protowire.Number, typ protowire.Type, value []byte) error {
	if typ != protowire.BytesType {
		return nil
	}
	switch num {
	case graphInitializer:
		return f.initializerField(value)
	case graphInput:
		return f.inputField(value)
	case graphSparseInitializer:
		return fmt.Errorf("%w: the ONNX graph has a sparse initializer, expected dense ones", ErrArchitecture)
	}
	return nil
}

// nameOf returns the content of a length-delimited field of an encoded message, nil
// when it is missing.
func nameOf(b []byte, field protowire.Number) (name []byte, err error) {
	err = walk(b, func(num protowire.Number, typ protowire.Type, value []byte) error {
		if num == field && typ == protowire.BytesType {
			name = value
		}
		return nil
	})
	return name, err
}

// rejectExternalData returns ErrFormat, wrapped, for an encoded tensor whose
// elements are in another file.
func rejectExternalData(tensor, name []byte) error {
	return walk(tensor, func(num protowire.Number, typ protowire.Type, value []byte) error {
		external := num == tensorExternal && typ == protowire.BytesType
		if num == tensorLocation && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(value)
			external = onnx.TensorProto_DataLocation(v) != onnx.TensorProto_DEFAULT
		}
		if external {
			return fmt.Errorf("%w: %.80q is in another file, expected an ONNX file with embedded weights (external_data=False)", ErrFormat, name)
		}
		return nil
	})
}

// initializerField defines an initializer, and decodes it when its name is that of a
// parameter or of reference statistics.
func (f *onnxFile) initializerField(b []byte) error {
	f.initializers++
	encoded, err := nameOf(b, tensorName)
	if err == nil {
		err = f.values.define(encoded, graphValue{initializer: true})
	}
	if err == nil {
		err = rejectExternalData(b, encoded)
	}
	reference := referenceName.Match(encoded)
	if err != nil || !reference && !parameterName.Match(encoded) {
		return err
	}
	name := string(encoded)
	dims := 0
	err = walk(b, func(num protowire.Number, typ protowire.Type, value []byte) error {
		switch num {
		case tensorInt32Data, tensorInt64Data:
			return fmt.Errorf("%w: %s holds whole numbers, expected float32", ErrArchitecture, name)
		case tensorDims:
			if typ != protowire.BytesType {
				value = value[:1] // a single number in unpacked encoding
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
	t := new(onnx.TensorProto)
	if err := decode(b, t); err != nil {
		return err
	}
	f.tensors[name] = t
	if reference {
		f.referenceNames = append(f.referenceNames, name)
	} else {
		f.weightNames = append(f.weightNames, name)
	}
	return nil
}

// inputField defines an input. It takes the image size from the first input with
// three channels and a fixed, square size.
func (f *onnxFile) inputField(b []byte) error {
	name, err := nameOf(b, valueInfoName)
	if err == nil {
		err = f.values.define(name, graphValue{input: true})
	}
	// Older files list initializers among the inputs too.
	if err != nil || len(b) > maxValueInfo || f.imageSize != 0 || parameterName.Match(name) {
		return err
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

// shapes returns the named tensors without data.
func (f *onnxFile) shapes(names []string) (StateDict, error) {
	shapes := make(StateDict, len(names))
	for i, name := range names {
		shapes[i].Name = name
		for _, d := range f.tensors[name].GetDims() {
			if d < 0 || d > math.MaxInt32 {
				return nil, fmt.Errorf("%w: %s has a dimension of %d", ErrArchitecture, name, d)
			}
			shapes[i].Shape = append(shapes[i].Shape, int(d))
		}
	}
	return shapes, nil
}

// reference reads the tensors of the reference statistics. Their number and shapes
// depend on the image size and are checked later.
func (f *onnxFile) reference(lim Limits) (StateDict, error) {
	shapes, err := f.shapes(f.referenceNames)
	if err == nil {
		err = lim.checkReference(shapes)
	}
	if err != nil {
		return nil, err
	}
	for i, t := range shapes {
		if shapes[i].Data, err = tensorFloats(f.tensors[t.Name], Parameter{t.Name, t.Shape}); err != nil {
			return nil, err
		}
	}
	return shapes, nil
}

// weights checks the names and shapes of the tensors, then reads them.
func (f *onnxFile) weights(lim Limits) (Architecture, StateDict, error) {
	shapes, err := f.shapes(f.weightNames)
	if err != nil {
		return Architecture{}, nil, err
	}
	a, err := lim.architectureOf(shapes)
	if err != nil {
		return Architecture{}, nil, err
	}
	// All shapes now match known parameters, so their sizes cannot overflow.
	weights := shapes.Ordered(a.Parameters())
	for i, p := range a.Parameters() {
		if weights[i].Data, err = tensorFloats(f.tensors[p.Name], p); err != nil {
			return Architecture{}, nil, err
		}
	}
	return a, weights, nil
}

// tensorFloats returns the elements of a float32 tensor, which ONNX stores either as
// raw bytes or as numbers.
func tensorFloats(t *onnx.TensorProto, p Parameter) ([]float32, error) {
	if t.GetDataType() != int32(onnx.TensorProto_FLOAT) {
		return nil, fmt.Errorf("%w: %s is of type %d, expected %d (float32)", ErrFormat, p.Name, t.GetDataType(), onnx.TensorProto_FLOAT)
	}
	raw, floats := t.GetRawData(), t.GetFloatData()
	switch {
	case len(raw) == 4*p.Size() && len(floats) == 0:
		floats = make([]float32, p.Size())
		for i := range floats {
			floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	case len(raw) != 0 || len(floats) != p.Size():
		return nil, fmt.Errorf("%w: %s has %d raw bytes and %d numbers, expected %d numbers in one of the two forms", ErrFormat, p.Name, len(raw), len(floats), p.Size())
	}
	return floats, nil
}

// parseMetadata reads the metadata properties of the ONNX file.
func (f *onnxFile) parseMetadata() (fileMetadata, error) {
	s := fileMetadata{imageSize: f.imageSize}
	wrong := func(key string, err error) error {
		return fmt.Errorf("%w: %s in the ONNX metadata: %w", ErrMetadata, key, err)
	}
	if v, ok := f.metadata["metadata_json"]; ok {
		s.json = v
	}
	if v, ok := f.metadata["image_size"]; ok {
		n, err := strconv.ParseInt(string(v[:min(len(v), maxNumeral)]), 10, 32)
		if err != nil || len(v) > maxNumeral {
			return s, wrong("image_size", fmt.Errorf("%.*q is not a whole number", maxNumeral, v))
		}
		s.imageSize = int(n)
	}
	for _, key := range []string{"threshold", "mean_error", "std_error"} {
		if v, ok := f.metadata[key]; ok {
			n, err := strconv.ParseFloat(string(v[:min(len(v), maxNumeral)]), 64)
			if err != nil || len(v) > maxNumeral {
				return s, wrong(key, fmt.Errorf("%.*q is not a number", maxNumeral, v))
			}
			s.set(key, n)
		}
	}
	if v, ok := f.metadata["class_names"]; ok {
		if err := parseJSON(v, &s.metadata.ClassNames); err != nil {
			return s, wrong("class_names", err)
		}
	}
	return s, nil
}
