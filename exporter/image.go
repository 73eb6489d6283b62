package exporter

import (
	"math"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
)

// imageOpset is the first ONNX operator set version whose Resize has antialiasing.
const imageOpset = 18

// verdictName is the output that reports whether the image is an anomaly.
const verdictName = "is_anomaly"

// ImageModel lowers a model to an ONNX file that includes the preprocessing and the
// decision. Input: one decoded image `image` (uint8, height×width×3, RGB, any size; of a model
// with a window float32, the samples' values). Outputs: `reconstruction_error` (1 element, the
// anomaly score), `is_anomaly` (bool, 1 element), `anomaly_map` (H×W, the score of each pixel
// of the network's input), and `mse` (1 element) if the model has reference statistics. Equal
// models result in equal bytes.
func ImageModel(m *models.Model) ([]byte, error) {
	if m.Tiles() != nil {
		return tiledImageModel(m)
	}
	size := m.Input()
	f, err := network.AutoencoderOf(m, 1)
	if err != nil {
		return nil, err
	}
	l := newLowering("autoencoder_image", false)
	l.opset = imageOpset
	l.weights(f, m.Weights)
	if l.done[f.Image], err = l.prepare(m); err != nil {
		return nil, err
	}

	j, err := l.scoreOutputs(f, m)
	if err != nil {
		return nil, err
	}
	score, pixels, doc := f.Error, f.Map, "squared error of each pixel at the network's size, the mean over its channels"
	if j != nil {
		score, pixels, doc = j.Score, j.Map, "how unusual each pixel's surroundings are, at the network's size"
	}
	_, threshold := m.Metadata.Measure()
	above := l.op("Greater", []int{1}, []value{l.done[score], l.floats(nil, roundDown(threshold))})
	if p := m.Metadata.Preprocessing; p != nil && p.Region != nil {
		// An image without a pixel in the region, as after a crop, is never normal. Its score
		// means nothing, and may be NaN.
		highest := l.op("ReduceMax", []int{1}, []value{l.done[f.Image], l.ints(1, 2, 3)}, intAttr("keepdims", 0))
		none := l.op("Less", []int{1}, []value{highest, l.floats(nil, 0)})
		above = l.op("Or", []int{1}, []value{above, none})
	}
	l.rename(above.name, verdictName)
	l.proto.Output = append(l.proto.Output, describe(verdictName, onnx.TensorProto_BOOL, []dim{{size: 1}},
		"whether the error is above the model's threshold"))

	perPixel, err := l.full(pixels)
	if err != nil {
		return nil, err
	}
	plane := l.op("Squeeze", []int{size.H, size.W}, []value{perPixel, l.ints(0)})
	l.rename(plane.name, network.MapName)
	plane.name = network.MapName
	l.output(plane, doc)

	props, err := metadataProps(m)
	if err != nil {
		return nil, err
	}
	return l.model("Convolutional autoencoder that was trained on normal images only, with its preprocessing and its decision.", props)
}

// roundDown returns the largest float32 that is not above the threshold. A float32 score is
// above that number exactly if it is above the threshold.
func roundDown(threshold float64) float32 {
	t := float32(threshold)
	if float64(t) > threshold {
		t = math.Nextafter32(t, float32(math.Inf(-1)))
	}
	return t
}
