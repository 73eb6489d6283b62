package exporter

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"

	"github.com/deepmed/anomaly/models"
)

// ErrUnwritable is returned, wrapped, for a model that models.Read would not read back:
// its weights do not fit its architecture, a number is not finite, or its metadata is not
// valid.
var ErrUnwritable = errors.New("the model cannot be written")

// WriteCheckpoint writes a model as a PyTorch zip checkpoint, in the format of torch.save:
// torch.load(f, weights_only=True) returns {"model_state_dict": OrderedDict, "config":
// dict}, and "normality_state_dict" for a model with reference statistics. The config
// holds plain data: the most used metadata under keys of their own, and all metadata as
// JSON under "metadata_json", which is what models.Read uses. Floats in the config are
// text, which Python's float() accepts; see pickler.
//
// Equal models result in equal bytes. WriteCheckpoint returns ErrUnwritable, wrapped, and
// writes nothing if models.Read would reject the result.
func WriteCheckpoint(w io.Writer, m *models.Model) error {
	md, err := checkpointMetadata(m)
	if err != nil {
		return err
	}
	weights := m.Weights.Ordered(m.Architecture.Parameters())
	data, err := checkpointPickle(m, md, weights)
	if err != nil {
		return err
	}
	z := newAlignedZip(w)
	z.add("data.pkl", data)
	z.add(".format_version", []byte("1"))
	z.add(".storage_alignment", []byte(strconv.Itoa(storageAlignment)))
	z.add("byteorder", []byte("little"))
	for i, t := range slices.Concat(weights, m.Reference) {
		b := make([]byte, 4*len(t.Data))
		for j, v := range t.Data {
			binary.LittleEndian.PutUint32(b[4*j:], math.Float32bits(v))
		}
		z.add("data/"+strconv.Itoa(i), b)
	}
	z.add("version", []byte("3\n"))
	z.add(".data/serialization_id", z.id())
	return z.close()
}

// checkpointMetadata checks a model and returns its metadata with the defaults of missing
// fields filled in.
func checkpointMetadata(m *models.Model) (models.Metadata, error) {
	unwritable := func(err error) error { return fmt.Errorf("%w: %w", ErrUnwritable, err) }
	a, err := models.ArchitectureOf(m.Weights)
	if err != nil {
		return models.Metadata{}, unwritable(err)
	}
	if !a.Equal(m.Architecture) {
		return models.Metadata{}, fmt.Errorf("%w: the weights fit a %s network, expected %s", ErrUnwritable, a, m.Architecture)
	}
	for _, p := range a.Parameters() {
		if t, _ := m.Weights.Get(p.Name); len(t.Data) != p.Size() {
			return models.Metadata{}, fmt.Errorf("%w: %s has %d elements, expected %d", ErrUnwritable, p.Name, len(t.Data), p.Size())
		}
	}
	if name, ok := m.Weights.Finite(); !ok {
		return models.Metadata{}, fmt.Errorf("%w: %s has elements that are not finite numbers", ErrUnwritable, name)
	}
	md := m.Metadata
	if md.ImageSize == 0 {
		md.ImageSize = m.ImageSize
	}
	if md.ImageSize != m.ImageSize || a.CheckInput(m.Input()) != nil {
		return models.Metadata{}, fmt.Errorf("%w: the image size is %d, and %d in the metadata, expected a multiple of %d up to %d",
			ErrUnwritable, m.ImageSize, md.ImageSize, a.Stride(), models.MaxImageSize)
	}
	if err := m.CheckReference(); err != nil {
		return models.Metadata{}, unwritable(err)
	}
	if md.Architecture != nil && !md.Architecture.Equal(a) {
		return models.Metadata{}, fmt.Errorf("%w: the metadata describes a %s network, the weights fit %s", ErrUnwritable, md.Architecture, a)
	}
	if md.ModelType == "" {
		md.ModelType = models.ModelType
	}
	if md.FormatVersion == 0 {
		md.FormatVersion = md.Preprocessing.FormatVersion()
	}
	if err := md.Validate(); err != nil {
		return models.Metadata{}, unwritable(err)
	}
	return md, nil
}

// checkpointPickle returns data.pkl, the pickled object that refers to the tensors by the
// names of their zip entries.
func checkpointPickle(m *models.Model, md models.Metadata, weights models.StateDict) ([]byte, error) {
	whole, err := json.Marshal(md)
	if err != nil {
		return nil, fmt.Errorf("%w: its metadata: %w", ErrUnwritable, err)
	}
	if len(whole) > models.MaxMetadataBytes {
		return nil, fmt.Errorf("%w: its metadata has %d bytes, the limit is %d", ErrUnwritable, len(whole), models.MaxMetadataBytes)
	}
	input := md.InputPreprocessing()
	preprocessing := [][2]any{
		{"color_mode", input.ColorMode}, {"resize", input.Resize}, {"scale", input.Scale}, {"layout", input.Layout},
	}
	if input.Orientation != "" {
		preprocessing = append(preprocessing, [2]any{"orientation", input.Orientation})
	}
	if input.MaxValue != 0 {
		preprocessing = append(preprocessing, [2]any{"max_value", input.MaxValue})
	}
	if input.FormatVersion() != models.FormatVersion {
		preprocessing = append(preprocessing, framedPreprocessing(input)...)
	}
	p := newPickler()
	p.op('}', '(')
	p.text("model_state_dict")
	p.global("collections", "OrderedDict")
	p.op(')', 'R', '(')
	for i, t := range weights {
		p.text(t.Name)
		p.tensor(strconv.Itoa(i), t.Shape)
	}
	p.op('u')
	if m.Reference != nil {
		p.text(models.ReferenceKey)
		p.global("collections", "OrderedDict")
		p.op(')', 'R', '(')
		for i, t := range m.Reference {
			p.text(t.Name)
			p.tensor(strconv.Itoa(len(weights)+i), t.Shape)
		}
		p.op('u')
	}
	p.text("config")
	p.op('}', '(')
	for _, e := range []struct {
		key   string
		value any
	}{
		{"image_size", m.ImageSize},
		{"input_channels", models.InputChannels},
		{"channels", m.Architecture.Channels},
		{"model_type", md.ModelType},
		{"preprocessing", preprocessing},
		{"threshold", md.Threshold},
		{"mean_error", md.MeanError},
		{"std_error", md.StdError},
		{"class_names", md.Classes()},
		{"format_version", md.FormatVersion},
		{"metadata_json", string(whole)},
	} {
		p.text(e.key)
		p.plain(e.value)
	}
	p.op('u', 'u', '.')
	return p.out.Bytes(), nil
}

// framedPreprocessing returns the entries that version 2 of the format adds.
func framedPreprocessing(p *models.Preprocessing) (entries [][2]any) {
	if p.Width != 0 {
		entries = append(entries, [2]any{"width", p.Width}, [2]any{"height", p.Height})
	}
	if p.Fit != "" {
		entries = append(entries, [2]any{"fit", string(p.Fit)})
	}
	if p.Window != nil {
		// As text, like all numbers that are not whole; see pickler.plain.
		entries = append(entries, [2]any{"window", [][2]any{{"low", p.Window[0]}, {"high", p.Window[1]}}})
	}
	if r := p.Region; r != nil {
		entries = append(entries, [2]any{"region", [][2]any{{"width", r.Width}, {"height", r.Height}, {"runs", r.Runs}}})
	}
	return entries
}
