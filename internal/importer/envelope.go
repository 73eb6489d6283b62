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

// maxDepth bounds how deep messages nest: an attribute of a node has four
// levels, and what our schema knows has no more than six.
const maxDepth = 8

// checkEnvelope refuses what the backend could not see, because onnx-go reads
// it and does not hand it on: operator sets, the domain of an operator, which
// axis of an input has no size, that a value was only declared. And it refuses
// what would make onnx-go take memory or stack without end before any code of
// ours is asked: sizes that no data stands behind, and messages that nest. The
// bytes themselves reach onnx-go unchanged.
func checkEnvelope(data []byte) error {
	var m onnx.ModelProto
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(data, &m); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := onlyKnownFields(&m); err != nil {
		return err
	}
	g := m.GetGraph()
	if len(g.GetNode()) == 0 {
		return fmt.Errorf("%w: it has no graph", ErrFormat)
	}
	if sets := m.GetOpsetImport(); len(sets) != 1 || sets[0].GetDomain() != "" || sets[0].GetVersion() != exporter.Opset {
		return fmt.Errorf("%w: operator sets %v, expected version %d of ONNX's own alone", ErrUnsupported, sets, exporter.Opset)
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

// onlyKnownFields refuses fields that our schema leaves out: the exporter
// writes none of them, and some nest within themselves.
func onlyKnownFields(m *onnx.ModelProto) error {
	return protorange.Range(m.ProtoReflect(), func(p protopath.Values) error {
		at := p.Index(-1)
		if v, ok := at.Value.Interface().(protoreflect.Message); ok && len(v.GetUnknown()) > 0 {
			return fmt.Errorf("%w: fields at %v", ErrUnsupported, p.Path)
		}
		return nil
	})
}

func checkNode(n *onnx.NodeProto) error {
	if n.GetDomain() != "" {
		return fmt.Errorf("%w: the operator %s of %s", ErrUnsupported, n.GetOpType(), n.GetDomain())
	}
	for _, a := range n.GetAttribute() {
		if t := a.GetType(); t != onnx.AttributeProto_INT && t != onnx.AttributeProto_INTS {
			return fmt.Errorf("%w: the attribute %s of %s, which is of type %v", ErrUnsupported, a.GetName(), n.GetOpType(), t)
		}
	}
	return nil
}

// checkInitializer holds the size that a tensor says against its data.
func checkInitializer(t *onnx.TensorProto) error {
	size := map[onnx.TensorProto_DataType]int64{onnx.TensorProto_FLOAT: 4, onnx.TensorProto_INT64: 8}[onnx.TensorProto_DataType(t.GetDataType())]
	if size == 0 || len(t.GetFloatData())+len(t.GetInt32Data())+len(t.GetInt64Data())+len(t.GetExternalData()) > 0 ||
		t.GetDataLocation() != onnx.TensorProto_DEFAULT {
		return fmt.Errorf("%w: %s is of type %d, expected raw float32 or int64 within the file", ErrUnsupported, t.GetName(), t.GetDataType())
	}
	bytes := int64(len(t.GetRawData()))
	for _, d := range t.GetDims() {
		if d < 1 || d > bytes/size { // so the product stays small
			return fmt.Errorf("%w: %s has shape %v and %d bytes", ErrFormat, t.GetName(), t.GetDims(), bytes)
		}
		size *= d
	}
	if size != bytes {
		return fmt.Errorf("%w: %s has shape %v and %d bytes", ErrFormat, t.GetName(), t.GetDims(), bytes)
	}
	return nil
}

// checkDeclared expects the inputs and outputs of an inference model, for any
// number of square images.
func checkDeclared(g *onnx.GraphProto) error {
	if len(g.GetInput()) != 1 || len(g.GetOutput()) != 2 || len(g.GetValueInfo()) != 0 {
		return fmt.Errorf("%w: %d inputs, %d outputs and %d values described, expected 1, 2 and 0",
			ErrUnsupported, len(g.GetInput()), len(g.GetOutput()), len(g.GetValueInfo()))
	}
	image := g.GetInput()[0].GetType().GetTensorType().GetShape().GetDim()
	side := int64(0)
	if len(image) == 4 {
		side = image[2].GetDimValue()
	}
	if side < 1 || side > models.MaxImageSize {
		return fmt.Errorf("%w: an image of shape %v, expected sides of 1 to %d", ErrUnsupported, image, models.MaxImageSize)
	}
	pixels := []int64{models.InputChannels, side, side}
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
			return fmt.Errorf("%w: %s of type %d and shape %v, expected %s of float32 and any number by %v",
				ErrUnsupported, d.value.GetName(), t.GetElemType(), dims, d.name, d.sizes)
		}
	}
	return nil
}
