package importer

import (
	"fmt"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protopath"
	"google.golang.org/protobuf/reflect/protorange"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxDepth is the maximum nesting of protobuf messages. The fields of package onnx nest at
// most six levels deep.
const maxDepth = 8

// checkEnvelope checks what onnx-go does not pass to the backend: operator sets, the domains
// of operators, which axis of an input has no size, and values that are declared only. It
// also rejects files for which onnx-go would allocate unlimited memory or stack before it
// calls the backend: tensors whose shape does not match their data, and deeply nested
// messages. onnx-go then decodes the unchanged bytes.
func checkEnvelope(data []byte) error {
	var m onnx.ModelProto
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(data, &m); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := checkKnownFields(&m); err != nil {
		return err
	}
	g := m.GetGraph()
	if len(g.GetNode()) == 0 {
		return fmt.Errorf("%w: the graph is missing or empty", ErrFormat)
	}
	if sets := m.GetOpsetImport(); len(sets) != 1 || sets[0].GetDomain() != "" || sets[0].GetVersion() != exporter.Opset {
		return fmt.Errorf("%w: operator sets %v, expected only ONNX's, version %d", ErrUnsupported, sets, exporter.Opset)
	}
	for _, n := range g.GetNode() {
		if err := checkNode(n); err != nil {
			return err
		}
	}
	for _, t := range g.GetInitializer() {
		if err := checkInitializer(t); err != nil {
			return err
		}
	}
	return checkDeclared(g)
}

// checkKnownFields rejects fields that package onnx does not define. The exporter does not
// write them, and some are recursive.
func checkKnownFields(m *onnx.ModelProto) error {
	return protorange.Range(m.ProtoReflect(), func(p protopath.Values) error {
		at := p.Index(-1)
		if v, ok := at.Value.Interface().(protoreflect.Message); ok && len(v.GetUnknown()) > 0 {
			return fmt.Errorf("%w: unknown fields at %v", ErrUnsupported, p.Path)
		}
		return nil
	})
}

// checkNode rejects domains and types of attributes that the exporter does not write.
func checkNode(n *onnx.NodeProto) error {
	if n.GetDomain() != "" {
		return fmt.Errorf("%w: the operator %s of the domain %s", ErrUnsupported, n.GetOpType(), n.GetDomain())
	}
	for _, a := range n.GetAttribute() {
		t := a.GetType()
		if n.GetOpType() == "HardSigmoid" && t == onnx.AttributeProto_FLOAT {
			continue
		}
		if t != onnx.AttributeProto_INT && t != onnx.AttributeProto_INTS {
			return fmt.Errorf("%w: the attribute %s of %s has the type %v", ErrUnsupported, a.GetName(), n.GetOpType(), t)
		}
	}
	return nil
}

// checkInitializer checks the type of a tensor, and that its shape matches its data.
func checkInitializer(t *onnx.TensorProto) error {
	size := map[onnx.TensorProto_DataType]int64{onnx.TensorProto_FLOAT: 4, onnx.TensorProto_INT64: 8}[onnx.TensorProto_DataType(t.GetDataType())]
	if size == 0 || len(t.GetFloatData())+len(t.GetInt32Data())+len(t.GetInt64Data())+len(t.GetExternalData()) > 0 ||
		t.GetDataLocation() != onnx.TensorProto_DEFAULT {
		return fmt.Errorf("%w: %s has the type %d, expected raw float32 or int64 data in the file", ErrUnsupported, t.GetName(), t.GetDataType())
	}
	bytes := int64(len(t.GetRawData()))
	for _, d := range t.GetDims() {
		if d < 1 || d > bytes/size { // so that the product cannot overflow
			return fmt.Errorf("%w: %s has shape %v and %d bytes", ErrFormat, t.GetName(), t.GetDims(), bytes)
		}
		size *= d
	}
	if size != bytes {
		return fmt.Errorf("%w: %s has shape %v and %d bytes", ErrFormat, t.GetName(), t.GetDims(), bytes)
	}
	return nil
}

// checkDeclared returns an error unless a file has the inputs and outputs of
// exporter.InferenceModel, for any number of images.
func checkDeclared(g *onnx.GraphProto) error {
	if len(g.GetInput()) != 1 || len(g.GetOutput()) != 2 || len(g.GetValueInfo()) != 0 {
		return fmt.Errorf("%w: %d inputs, %d outputs and %d described values, expected 1, 2 and 0",
			ErrUnsupported, len(g.GetInput()), len(g.GetOutput()), len(g.GetValueInfo()))
	}
	image := g.GetInput()[0].GetType().GetTensorType().GetShape().GetDim()
	h, w := int64(0), int64(0)
	if len(image) == 4 {
		h, w = image[2].GetDimValue(), image[3].GetDimValue()
	}
	if min(h, w) < 1 || max(h, w) > models.MaxImageSize {
		return fmt.Errorf("%w: the image has the shape %v, expected sides of 1 to %d", ErrUnsupported, image, models.MaxImageSize)
	}
	pixels := []int64{models.InputChannels, h, w}
	for _, d := range []struct {
		value *onnx.ValueInfoProto
		name  string
		sizes []int64
	}{
		{g.GetInput()[0], network.ImageName, pixels},
		{g.GetOutput()[0], network.ReconstructionName, pixels},
		{g.GetOutput()[1], network.ErrorName, nil},
	} {
		t := d.value.GetType().GetTensorType()
		dims := t.GetShape().GetDim()
		fits := d.value.GetName() == d.name && t.GetElemType() == int32(onnx.TensorProto_FLOAT) &&
			len(dims) == 1+len(d.sizes) && dims[0].GetDimParam() != ""
		for i := 0; fits && i < len(d.sizes); i++ {
			fits = dims[1+i].GetDimValue() == d.sizes[i]
		}
		if !fits {
			return fmt.Errorf("%w: %s has the type %d and the shape %v, expected %s of float32 with a batch of any size by %v",
				ErrUnsupported, d.value.GetName(), t.GetElemType(), dims, d.name, d.sizes)
		}
	}
	return nil
}
