package exporter

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
)

// InferenceModel lowers a model to the ONNX file that users download, which this program can
// also read. Input: `image` (N×3×H×W, RGB in 0…1, any N). Outputs: `reconstruction`
// (N×3×H×W) and `reconstruction_error` (N, the anomaly score); if the model has reference
// statistics, also `anomaly_map` (N×H×W) and `mse` (N). The file's metadata has the
// threshold; see metadataProps. Equal models result in equal bytes.
func InferenceModel(m *models.Model) ([]byte, error) {
	f, err := network.AutoencoderOf(m, 1)
	if err != nil {
		return nil, err
	}
	return Lower(f, m)
}

// Results selects the outputs of a served model beside its anomaly scores.
type Results struct {
	// Images selects the reconstruction and the anomaly map.
	Images bool
	// Members selects the member scores that models.MeasurePatchMahalanobis combines,
	// N×M×1×1. Models with another measure have none.
	Members bool
}

// ServedModel lowers a model for detectors: without metadata, and with the selected outputs
// only. ONNX Runtime computes every declared output, requested or not; the map takes 4 % of
// a run. With Processor the model needs package kernels, so only this program can run it.
func ServedModel(m *models.Model, also Results, with Operators) (*SessionModel, error) {
	f, err := network.AutoencoderOf(m, 1)
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
	s := &SessionModel{ONNX: b, Inputs: []string{network.ImageName}, Outputs: []string{network.ErrorName}, Kernels: l.kernels}
	if models.PlaceCount(m.Reference) > 0 {
		s.Inputs = append(s.Inputs, network.PlaceName)
	}
	if m.Reference != nil {
		s.Outputs = append(s.Outputs, network.MSEName)
	}
	return s, nil
}

// Lower is InferenceModel for a network that was built already, with any batch size. The
// graph is f's, weights and metadata are m's. Lower returns an error if they do not fit
// together.
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

// lower lowers a network with the weights and reference statistics of m. It declares the
// anomaly scores and the selected results as outputs.
func lower(f *network.Forward, m *models.Model, also Results, with Operators) (*lowering, error) {
	if err := checkFits(f, m); err != nil {
		return nil, err
	}
	l := newLowering("autoencoder", false)
	l.batch = "N"
	l.processor, l.fixed = with == Processor, true
	l.input(l.source(f.Image, network.ImageName),
		inputDoc(m))
	l.weights(f, m.Weights)
	if also.Images {
		if err := l.result(f.Reconstruction, network.ReconstructionName, "what the autoencoder makes of the images, in 0…1"); err != nil {
			return nil, err
		}
	}
	if l.processor && !f.Masked {
		if err := l.reconstructionError(f); err != nil {
			return nil, err
		}
	}
	j, err := l.scoreOutputs(f, m)
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

// inputDoc describes the input of a model's network.
func inputDoc(m *models.Model) string {
	p := m.Metadata.Preprocessing
	if p == nil || p.FormatVersion() == models.FormatVersion {
		return fmt.Sprintf("RGB images of %v pixels, resized as Pillow's bilinear does, divided by 255", m.Input())
	}
	text := fmt.Sprintf("RGB images of %v pixels, ", m.Input())
	switch p.Fit {
	case models.FitPad:
		text += "whole, with a border where their aspect ratio differs, "
	case models.FitCrop:
		text += "cropped in the middle to their aspect ratio, "
	}
	text += "resized as Pillow's bilinear does, "
	if w := p.Window; w != nil {
		text += fmt.Sprintf("with the sample values %g to %g as 0 to 1", w[0], w[1])
	} else {
		text += "divided by 255"
	}
	if p.Masked() {
		text += "; -1 in every pixel that is not judged"
	}
	return text
}

// checkFits returns an error unless the weights of m fit network f.
func checkFits(f *network.Forward, m *models.Model) error {
	if s, size := f.Image.Shape(), m.Input(); len(s) != 4 || s[2] != size.H || s[3] != size.W || f.Masked != m.Masked() {
		return fmt.Errorf("exporter: the network takes images of shape %v, the model images of %v pixels", s, size)
	}
	if len(f.Parameters) != len(m.Weights) {
		return fmt.Errorf("exporter: the network has %d parameters, the model %d", len(f.Parameters), len(m.Weights))
	}
	for i, t := range m.Weights {
		if p := f.Parameters[i]; p.Name() != t.Name || !slices.Equal(p.Shape(), t.Shape) {
			return fmt.Errorf("exporter: the network has %s of shape %v, the model %s of shape %v", p.Name(), p.Shape(), t.Name, t.Shape)
		}
	}
	return nil
}

// scoreOutputs declares the anomaly score as the output `reconstruction_error`. For a model
// with reference statistics the score is its measure, and the mean squared error is the
// output `mse`. For any other model the score is the mean squared error, and the returned
// judgement is nil.
func (l *lowering) scoreOutputs(f *network.Forward, m *models.Model) (*network.Judgement, error) {
	const mse = "mean squared error between each image and its reconstruction"
	if m.Reference == nil {
		return nil, l.result(f.Error, network.ErrorName, mse+"; above the threshold it is an anomaly")
	}
	j, err := f.Judge(m.Reference)
	if err != nil {
		return nil, err
	}
	if j.Place != nil {
		l.input(l.source(j.Place, network.PlaceName), "the index of each tile in its image, row by row, from 0")
	}
	if err := l.referenceStatistics(j, m.Reference); err != nil {
		return nil, err
	}
	measure, _ := m.Metadata.Measure()
	if err := l.result(j.Score, network.ErrorName, "how far each image is from normal ones ("+measure+"); above the threshold it is an anomaly"); err != nil {
		return nil, err
	}
	return j, l.result(f.Error, network.MSEName, mse)
}

// fixedTensors declares tensors that are not learned as initializers.
func (l *lowering) fixedTensors(fixed []network.Fixed) {
	for _, f := range fixed {
		l.parameter(f.Node.Name(), f.Node.Shape(), f.Data)
		l.source(f.Node, f.Node.Name())
	}
}

// referenceStatistics declares the fixed filters of j and its parameters as initializers.
func (l *lowering) referenceStatistics(j *network.Judgement, learned models.StateDict) error {
	if len(learned) != len(j.Parameters) {
		return fmt.Errorf("exporter: %d tensors of reference statistics, expected %d", len(learned), len(j.Parameters))
	}
	l.fixedTensors(j.Filters)
	for i, t := range learned {
		if p := j.Parameters[i]; p.Name() != t.Name || !slices.Equal(p.Shape(), t.Shape) {
			return fmt.Errorf("exporter: the graph has %s of shape %v, the model %s of shape %v", p.Name(), p.Shape(), t.Name, t.Shape)
		}
		l.parameter(t.Name, t.Shape, t.Data)
		l.source(j.Parameters[i], t.Name)
	}
	return nil
}

// weights declares a network's parameters as initializers.
func (l *lowering) weights(f *network.Forward, learned models.StateDict) {
	for i, t := range learned {
		l.parameter(t.Name, t.Shape, t.Data)
		l.source(f.Parameters[i], t.Name)
	}
}

// metadataProps returns the entries of the file's metadata_props: all of metadata.json
// under "metadata_json", and under keys of their own the values that a program needs to
// decide or a model viewer shows. Values that are not text are JSON.
func metadataProps(m *models.Model) ([][2]string, error) {
	measure, threshold := m.Metadata.Measure()
	props := [][2]string{{"model_type", models.ModelType}, {"measure", measure}}
	for _, p := range []struct {
		key   string
		value any
	}{
		{"format_version", m.Metadata.Preprocessing.FormatVersion()},
		{"image_size", m.ImageSize},
		{"threshold", threshold},
		{"class_names", m.Metadata.Classes()},
		{"preprocessing", m.Metadata.InputPreprocessing()},
		{"training", m.Metadata.Training},
		{"metadata_json", m.Metadata},
	} {
		if p.value == (*models.TrainingSummary)(nil) {
			continue // an imported model without a training summary
		}
		text, err := json.Marshal(p.value)
		if err != nil {
			return nil, fmt.Errorf("exporter: %s: %w", p.key, err)
		}
		props = append(props, [2]string{p.key, string(text)})
	}
	return props, nil
}
