package exporter

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
)

// InferenceModel lowers a model to the ONNX file that users take away and that
// runs here too: input `image` (N×3×S×S, RGB in 0…1, any N), outputs
// `reconstruction` (N×3×S×S) and `reconstruction_error` (N, the figure that the
// model decides by), and the decision in the file's metadata. A model with
// tensors of normality also gives `mse` (N) and `anomaly_map` (N×S×S). Same
// model, same bytes.
func InferenceModel(m *models.Model) ([]byte, error) {
	f, err := network.Autoencoder(m.Architecture, 1, m.ImageSize, m.ImageSize)
	if err != nil {
		return nil, err
	}
	return Lower(f, m)
}

// Results says what a served model gives beside its figures.
type Results struct {
	// Images are the reconstruction and the map.
	Images bool
	// Members are the figures that models.MeasurePatchMahalanobis joins, N×M×1×1; a
	// model that decides by another measure gives none.
	Members bool
}

// ServedModel is InferenceModel as a detector runs it: without metadata, and with
// those results only that are asked for. ONNX Runtime computes what a graph declares,
// asked for or not: the map takes 4 % of a run. Lowered for the processor it takes
// package kernels' operators, and runs here alone.
func ServedModel(m *models.Model, also Results, with Operators) (*StepModel, error) {
	f, err := network.Autoencoder(m.Architecture, 1, m.ImageSize, m.ImageSize)
	if err != nil {
		return nil, err
	}
	l, err := lower(f, m, also, with)
	if err != nil {
		return nil, err
	}
	b, err := l.model("", nil)
	if err != nil {
		return nil, err
	}
	s := &StepModel{ONNX: b, Inputs: []string{network.ImageName}, Outputs: []string{network.ErrorName}, Kernels: l.kernels}
	if m.Reference != nil {
		s.Outputs = append(s.Outputs, network.MSEName)
	}
	return s, nil
}

// Lower is InferenceModel for a network that is built already, for images of
// any number: the graph is f's, weights and metadata are m's. It is an error
// when they do not belong together.
func Lower(f *network.Forward, m *models.Model) ([]byte, error) {
	l, err := lower(f, m, Results{Images: true}, Portable)
	if err != nil {
		return nil, err
	}
	props, err := metadataProps(m)
	if err != nil {
		return nil, err
	}
	return l.model("Convolutional autoencoder that was trained on normal images only.", props)
}

// lower declares as outputs, beside the figures, what is asked for.
func lower(f *network.Forward, m *models.Model, also Results, with Operators) (*lowering, error) {
	if err := belong(f, m); err != nil {
		return nil, err
	}
	l := newLowering("autoencoder", false)
	l.batch = "N"
	l.processor, l.fixed = with == Processor, true
	l.input(l.source(f.Image, network.ImageName),
		fmt.Sprintf("RGB images of %d×%d pixels, resized as Pillow's bilinear does, divided by 255", m.ImageSize, m.ImageSize))
	l.weights(f, m.Weights)
	if also.Images {
		if err := l.result(f.Reconstruction, network.ReconstructionName, "what the autoencoder makes of the images, in 0…1"); err != nil {
			return nil, err
		}
	}
	if l.processor {
		if err := l.reconstructionError(f); err != nil {
			return nil, err
		}
	}
	j, err := l.judged(f, m)
	if err != nil {
		return nil, err
	}
	if j != nil && also.Images {
		if err := l.result(j.Map, network.MapName, "how unusual each pixel's surroundings are"); err != nil {
			return nil, err
		}
	}
	if j != nil && j.Members != nil && also.Members {
		if err := l.result(j.Members, network.MembersName, ""); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// belong says what of a model does not fit the network it is to be written with.
func belong(f *network.Forward, m *models.Model) error {
	if s := f.Image.Shape(); len(s) != 4 || s[2] != m.ImageSize || s[3] != m.ImageSize {
		return fmt.Errorf("exporter: a network for images of shape %v and a model for %d×%d pixels", s, m.ImageSize, m.ImageSize)
	}
	if len(f.Parameters) != len(m.Weights) {
		return fmt.Errorf("exporter: a network of %d parameters and a model of %d", len(f.Parameters), len(m.Weights))
	}
	for i, t := range m.Weights {
		if p := f.Parameters[i]; p.Name() != t.Name || !slices.Equal(p.Shape(), t.Shape) {
			return fmt.Errorf("exporter: the network's %s of shape %v and the model's %s of shape %v", p.Name(), p.Shape(), t.Name, t.Shape)
		}
	}
	return nil
}

// judged emits the figure that the model decides by, as reconstruction_error: of
// a model with tensors of normality the measure of that name, with the plain mean
// squared error beside it, else that error alone. The judgement is nil then.
func (l *lowering) judged(f *network.Forward, m *models.Model) (*network.Judgement, error) {
	const mse = "mean squared error between each image and its reconstruction"
	if m.Reference == nil {
		return nil, l.result(f.Error, network.ErrorName, mse+"; above the threshold it is an anomaly")
	}
	j, err := f.Judge(m.Reference)
	if err != nil {
		return nil, err
	}
	if err := l.normality(j, m.Reference); err != nil {
		return nil, err
	}
	measure, _ := m.Metadata.Measure()
	if err := l.result(j.Score, network.ErrorName, "how far each image is from normal ones ("+measure+"); above the threshold it is an anomaly"); err != nil {
		return nil, err
	}
	return j, l.result(f.Error, network.MSEName, mse)
}

// fixedTensors declares tensors of a graph that nothing is learnt of.
func (l *lowering) fixedTensors(fixed []network.Fixed) {
	for _, f := range fixed {
		l.parameter(f.Node.Name(), f.Node.Shape(), f.Data)
		l.source(f.Node, f.Node.Name())
	}
}

// normality declares a judgement's filters, and its parameters with what was
// learnt.
func (l *lowering) normality(j *network.Judgement, learnt models.StateDict) error {
	if len(learnt) != len(j.Parameters) {
		return fmt.Errorf("exporter: %d tensors of normality, expected %d", len(learnt), len(j.Parameters))
	}
	l.fixedTensors(j.Filters)
	for i, t := range learnt {
		if p := j.Parameters[i]; p.Name() != t.Name || !slices.Equal(p.Shape(), t.Shape) {
			return fmt.Errorf("exporter: the graph's %s of shape %v and the model's %s of shape %v", p.Name(), p.Shape(), t.Name, t.Shape)
		}
		l.parameter(t.Name, t.Shape, t.Data)
		l.source(j.Parameters[i], t.Name)
	}
	return nil
}

// weights declares a network's parameters with what was learnt.
func (l *lowering) weights(f *network.Forward, learnt models.StateDict) {
	for i, t := range learnt {
		l.parameter(t.Name, t.Shape, t.Data)
		l.source(f.Parameters[i], t.Name)
	}
}

// metadataProps are the entries of the file's metadata_props: the whole
// metadata.json, and by themselves what a program needs for a verdict or a
// person wants to see in a viewer. What is not text is JSON.
func metadataProps(m *models.Model) ([][2]string, error) {
	measure, threshold := m.Metadata.Measure()
	props := [][2]string{{"model_type", models.ModelType}, {"measure", measure}}
	for _, p := range []struct {
		key   string
		value any
	}{
		{"format_version", models.FormatVersion},
		{"image_size", m.ImageSize},
		{"threshold", threshold},
		{"class_names", m.Metadata.Classes()},
		{"preprocessing", models.StandardPreprocessing()},
		{"training", m.Metadata.Training},
		{"metadata_json", m.Metadata},
	} {
		if p.value == (*models.TrainingSummary)(nil) {
			continue // of a model that came without
		}
		text, err := json.Marshal(p.value)
		if err != nil {
			return nil, fmt.Errorf("exporter: %s: %w", p.key, err)
		}
		props = append(props, [2]string{p.key, string(text)})
	}
	return props, nil
}
