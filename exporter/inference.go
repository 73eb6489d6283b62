package exporter

import (
	"encoding/json"
	"fmt"
	"strconv"

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
	l := newLowering("autoencoder", false)
	l.batch = "N"
	l.input(l.source(f.Image, network.ImageName),
		fmt.Sprintf("RGB images of %d×%d pixels, resized as Pillow's bilinear does, divided by 255", m.ImageSize, m.ImageSize))
	for i, t := range m.Weights {
		l.parameter(t.Name, t.Shape, t.Data)
		l.source(f.Parameters[i], t.Name)
	}
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

// metadataProps are the entries of the file's metadata_props: the whole
// metadata.json, and by themselves what a program needs for a verdict.
func metadataProps(m *models.Model) ([][2]string, error) {
	whole, err := json.Marshal(m.Metadata)
	if err != nil {
		return nil, fmt.Errorf("exporter: metadata: %w", err)
	}
	names, err := json.Marshal(m.Metadata.Classes())
	if err != nil {
		return nil, fmt.Errorf("exporter: class names: %w", err)
	}
	return [][2]string{
		{"model_type", models.ModelType},
		{"image_size", strconv.Itoa(m.ImageSize)},
		{"threshold", strconv.FormatFloat(m.Metadata.Threshold, 'g', -1, 64)},
		{"class_names", string(names)},
		{"metadata_json", string(whole)},
	}, nil
}
