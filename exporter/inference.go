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
// `reconstruction` (N×3×S×S) and `reconstruction_error` (N, the mean squared
// error of each image), and the decision in the file's metadata. Same model,
// same bytes.
func InferenceModel(m *models.Model) ([]byte, error) {
	f, err := network.Autoencoder(m.Architecture, 1, m.ImageSize, m.ImageSize)
	if err != nil {
		return nil, err
	}
	return Lower(f, m)
}

// Lower is InferenceModel for a network that is built already, for images of
// any number: the graph is f's, weights and metadata are m's. It is an error
// when they do not belong together.
func Lower(f *network.Forward, m *models.Model) ([]byte, error) {
	if err := belong(f, m); err != nil {
		return nil, err
	}
	l := newLowering("autoencoder", false)
	l.batch = "N"
	l.input(l.source(f.Image, network.ImageName),
		fmt.Sprintf("RGB images of %d×%d pixels, resized as Pillow's bilinear does, divided by 255", m.ImageSize, m.ImageSize))
	l.weights(f, m.Weights)
	if err := l.result(f.Reconstruction, network.ReconstructionName, "what the autoencoder makes of the images, in 0…1"); err != nil {
		return nil, err
	}
	if err := l.result(f.Error, network.ErrorName, "mean squared error of each image; above the threshold it is an anomaly"); err != nil {
		return nil, err
	}
	props, err := metadataProps(m)
	if err != nil {
		return nil, err
	}
	return l.model("Convolutional autoencoder that was trained on normal images only.", props)
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
	props := [][2]string{{"model_type", models.ModelType}}
	for _, p := range []struct {
		key   string
		value any
	}{
		{"format_version", models.FormatVersion},
		{"image_size", m.ImageSize},
		{"threshold", m.Metadata.Threshold},
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
