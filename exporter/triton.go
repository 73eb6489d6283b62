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

// ErrTritonName is returned, wrapped, for a name that a model of a Triton model
// repository cannot have here: it is a folder's name and part of an address.
var ErrTritonName = errors.New("not a name for a model")

// tritonBatch is the most images that Triton may put into one run of the network.
const tritonBatch = 64

// tritonImageSuffix is what the name of the model that takes images ends in.
const tritonImageSuffix = "_image"

var (
	//go:embed files/config.pbtxt.tmpl
	tritonText string

	tritonTemplate = template.Must(template.New("config.pbtxt").Funcs(template.FuncMap{
		"text": textFormatString, "join": joinDims,
	}).Parse(tritonText))

	tritonName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)
)

// tritonTypes are the model configuration's names of ONNX's element types. Less
// the TYPE_, they are the Open Inference Protocol's datatypes.
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

// TritonEntries are the two models that a trained one becomes in a Triton model
// repository: the network, as name, which takes prepared images in batches, and
// name_image, which takes a decoded image and decides. Same model, same bytes.
// It returns ErrTritonName for a name of other characters than letters, digits,
// `_`, `-` and `.`, one that does not begin with a letter or a digit, or one of
// more than 100.
func TritonEntries(m *models.Model, name string) ([]TritonEntry, error) {
	if !tritonName.MatchString(name) {
		return nil, fmt.Errorf("%w: %.120q; choose letters, digits, _, - and ., beginning with a letter or a digit, at most 100", ErrTritonName, name)
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

// tritonTensor is an input or an output as the model configuration has it.
type tritonTensor struct {
	Name, DataType string
	// Dims are those of one image of a batch; -1 is any size.
	Dims []int64
	// Scalar says that the file has no dimension but the batch's. Triton wants
	// one, and leaves it out again where it runs the model.
	Scalar bool
}

type tritonParameter struct{ Key, Value string }

// tritonConfig describes an ONNX file, by its own inputs and outputs, as
// Triton's ModelConfig in protobuf's text format. A maxBatch of 0 stands for a
// model without batches.
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
		{"preprocessing", models.StandardPreprocessing()},
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

func tritonTensors(infos []*onnx.ValueInfoProto, batched bool) ([]tritonTensor, error) {
	var out []tritonTensor
	for _, info := range infos {
		tensor := info.GetType().GetTensorType()
		kind, ok := tritonTypes[onnx.TensorProto_DataType(tensor.GetElemType())]
		if !ok {
			return nil, fmt.Errorf("%s has the element type %d, which this version does not know", info.GetName(), tensor.GetElemType())
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
				return nil, fmt.Errorf("%s of shape %v has no batch in front", t.Name, t.Dims)
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

// textFormatString quotes text as protobuf's text format does: quotes,
// backslashes and control characters are escaped, and the rest is UTF-8.
// Protobuf's own writer for Go needs Triton's schema in this program, and is
// free to space its output differently in each build of it.
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
