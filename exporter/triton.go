package exporter

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
	"google.golang.org/protobuf/proto"
)

// ErrTritonName is returned, wrapped, for an invalid name of a model in a Triton model
// repository. The name is a folder's name and part of a URL.
var ErrTritonName = errors.New("not a name for a model")

// tritonBatch is the maximum batch size in config.pbtxt.
const tritonBatch = 64

// tritonImageSuffix is the suffix of the name of the model that takes decoded images.
const tritonImageSuffix = "_image"

var (
	//go:embed files/config.pbtxt.tmpl
	tritonText string

	tritonTemplate = template.Must(template.New("config.pbtxt").Funcs(template.FuncMap{
		"text": textFormatString, "join": joinDims,
	}).Parse(tritonText))

	tritonName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)
)

// tritonTypes maps ONNX's element types to Triton's names in a model configuration. Without
// the prefix TYPE_ they are the datatypes of the Open Inference Protocol.
var tritonTypes = map[onnx.TensorProto_DataType]string{
	onnx.TensorProto_FLOAT: "TYPE_FP32",
	onnx.TensorProto_UINT8: "TYPE_UINT8",
	onnx.TensorProto_BOOL:  "TYPE_BOOL",
}

// TritonEntry is one model of a Triton model repository: the folder Name with
// Config as config.pbtxt and Model as 1/model.onnx.
type TritonEntry struct {
	Name          string
	Config, Model []byte
}

// TritonEntries returns the two entries of a trained model in a Triton model repository:
// name, which takes prepared images in batches, and name_image, which takes one decoded
// image and decides. Equal models result in equal bytes.
//
// ErrTritonName is returned, wrapped, unless name has 1 to 100 ASCII letters, digits, `_`,
// `-` and `.`, and begins with a letter or a digit.
func TritonEntries(m *models.Model, name string) ([]TritonEntry, error) {
	if !tritonName.MatchString(name) {
		return nil, fmt.Errorf("%w: %.120q; use at most 100 letters, digits, _, - and ., beginning with a letter or a digit", ErrTritonName, name)
	}
	var entries []TritonEntry
	for _, e := range []struct {
		name     string
		lower    func(*models.Model) ([]byte, error)
		maxBatch int
	}{
		{name, InferenceModel, tritonBatch},
		{name + tritonImageSuffix, ImageModel, 0},
	} {
		file, err := e.lower(m)
		if err != nil {
			return nil, err
		}
		config, err := tritonConfig(m, e.name, file, e.maxBatch)
		if err != nil {
			return nil, fmt.Errorf("exporter: config.pbtxt of %s: %w", e.name, err)
		}
		entries = append(entries, TritonEntry{e.name, config, file})
	}
	return entries, nil
}

// tritonTensor is an input or an output in the model configuration.
type tritonTensor struct {
	Name, DataType string
	// Dims are the dimensions without the batch. -1 means any size.
	Dims []int64
	// Scalar reports whether the tensor has no dimension except the batch. Triton requires
	// one in the configuration; `reshape` removes it when Triton runs the model.
	Scalar bool
}

type tritonParameter struct{ Key, Value string }

// tritonConfig returns Triton's ModelConfig for an ONNX file, in protobuf's text format. The
// inputs and outputs are read from the file. maxBatch is 0 for a model without batches.
func tritonConfig(m *models.Model, name string, file []byte, maxBatch int) ([]byte, error) {
	var p onnx.ModelProto
	if err := proto.Unmarshal(file, &p); err != nil {
		return nil, err
	}
	view := struct {
		Name            string
		MaxBatchSize    int
		Inputs, Outputs []tritonTensor
		Parameters      []tritonParameter
	}{Name: name, MaxBatchSize: maxBatch}
	var err error
	if view.Inputs, err = tritonTensors(p.GetGraph().GetInput(), maxBatch > 0); err != nil {
		return nil, err
	}
	if view.Outputs, err = tritonTensors(p.GetGraph().GetOutput(), maxBatch > 0); err != nil {
		return nil, err
	}
	measure, threshold := m.Metadata.Measure()
	for _, v := range []struct {
		key   string
		value any
	}{
		{"model_type", models.ModelType},
		{"measure", measure},
		{"threshold", threshold},
		{"class_names", m.Metadata.Classes()},
		{"image_size", m.ImageSize},
		{"preprocessing", m.Metadata.InputPreprocessing()},
		{"preprocessing_inside", maxBatch == 0},
	} {
		text, ok := v.value.(string)
		if !ok { // JSON, as in the ONNX file's own metadata
			b, err := json.Marshal(v.value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", v.key, err)
			}
			text = string(b)
		}
		view.Parameters = append(view.Parameters, tritonParameter{v.key, text})
	}
	var b bytes.Buffer
	if err := tritonTemplate.Execute(&b, view); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// tritonTensors returns the inputs or outputs of a file. If batched, each must have a batch of
// any size as its first dimension.
func tritonTensors(infos []*onnx.ValueInfoProto, batched bool) ([]tritonTensor, error) {
	var out []tritonTensor
	for _, info := range infos {
		tensor := info.GetType().GetTensorType()
		kind, ok := tritonTypes[onnx.TensorProto_DataType(tensor.GetElemType())]
		if !ok {
			return nil, fmt.Errorf("%s has the unsupported element type %d", info.GetName(), tensor.GetElemType())
		}
		t := tritonTensor{Name: info.GetName(), DataType: kind}
		for _, d := range tensor.GetShape().GetDim() {
			if d.GetDimParam() != "" {
				t.Dims = append(t.Dims, -1)
			} else {
				t.Dims = append(t.Dims, d.GetDimValue())
			}
		}
		if batched {
			if len(t.Dims) == 0 || t.Dims[0] != -1 {
				return nil, fmt.Errorf("%s of shape %v has no batch as its first dimension", t.Name, t.Dims)
			}
			t.Dims = t.Dims[1:]
		}
		if len(t.Dims) == 0 {
			t.Dims, t.Scalar = []int64{1}, true
		}
		out = append(out, t)
	}
	return out, nil
}

func joinDims(dims []int64) string {
	s := make([]string, len(dims))
	for i, d := range dims {
		s[i] = strconv.FormatInt(d, 10)
	}
	return strings.Join(s, ", ")
}

// textFormatString quotes text for protobuf's text format: quotes, backslashes and control
// characters are escaped, other characters are UTF-8. Package prototext is not used because
// it needs Triton's schema, and its white space may differ between builds.
func textFormatString(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(text, "\uFFFD") {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\%03o`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
