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
// decision. Input: one decoded image `image` (uint8, height×width×3, RGB, any size).
// Outputs: `reconstruction_error` (1 element, the anomaly score), `is_anomaly` (bool, 1
// element), `anomaly_map` (S×S, the score of each pixel), and `mse` (1 element) if the model
// has reference statistics. Equal models result in equal bytes.
func ImageModel(m *models.Model) ([]byte, error) {
	if m.Tiles() != nil {
		return tiledImageModel(m)
	}
	side := m.ImageSize
	f, err := network.Autoencoder(m.Architecture, 1, side, side)
	if err != nil {
		return nil, err
	}
	l := newLowering("autoencoder_image", false)
	l.opset = imageOpset
	l.weights(f, m.Weights)
	l.done[f.Image] = l.prepare(side)

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
	l.rename(above.name, verdictName)
	l.proto.Output = append(l.proto.Output, describe(verdictName, onnx.TensorProto_BOOL, []dim{{size: 1}},
		"whether the error is above the model's threshold"))

	perPixel, err := l.full(pixels)
	if err != nil {
		return nil, err
	}
	plane := l.op("Squeeze", []int{side, side}, []value{perPixel, l.ints(0)})
	l.rename(plane.name, network.MapName)
	plane.name = network.MapName
	l.output(plane, doc)

	props, err := metadataProps(m)
	if err != nil {
		return nil, err
	}
	return l.model("Convolutional autoencoder that was trained on normal images only, with its preprocessing and its decision.", props)
}

// prepare lowers imagefile.Prepare and imagefile.Normalize, whose resize is Pillow 13's.
// Most pixels have the same bits as Pillow's: ONNX Runtime's Resize of bytes also has
// coefficients of 22 fractional bits, rounds to bytes between its two passes, and excludes
// pixels beyond the border. The image has channels last until it is resized, which is the
// fastest layout for the CPU provider.
func (l *lowering) prepare(side int) value {
	const channels = models.InputChannels
	l.proto.Input = append(l.proto.Input, describe(network.ImageName, onnx.TensorProto_UINT8,
		[]dim{{name: "height"}, {name: "width"}, {size: channels}},
		"a decoded image of any size: rows of pixels of red, green and blue, 0 to 255"))
	batch := l.op("Unsqueeze", nil, []value{{name: network.ImageName}, l.ints(0)})
	square := l.ints(1, side, side, channels)
	once := l.resize(batch, l.firstPass(batch, square, side), nil)
	resized := l.resize(once, square, []int{1, side, side, channels})
	planes := l.op("Transpose", []int{1, channels, side, side}, []value{resized}, intsAttr("perm", 0, 3, 1, 2))
	numbers := l.op("Cast", planes.shape, []value{planes}, intAttr("to", floatType))
	return l.op("Div", planes.shape, []value{numbers, l.floats(nil, math.MaxUint8)})
}

// resize emits one pass of the resize.
func (l *lowering) resize(x, size value, shape []int) value {
	none := value{} // an omitted optional input
	return l.op("Resize", shape, []value{x, none, none, size},
		textAttr("mode", "linear"), textAttr("coordinate_transformation_mode", "half_pixel"),
		intAttr("antialias", 1), intAttr("exclude_outside", 1))
}

// firstPass emits the size after the first of the two passes, which resizes either the
// height or the width. The order changes pixels by up to 1; it is Pillow 13's, see
// verticalFirst in package imagefile.
func (l *lowering) firstPass(batch, square value, side int) value {
	bools := func(vs ...byte) value { return l.constant(onnx.TensorProto_BOOL, []int{len(vs)}, vs) }
	shape := l.op("Shape", []int{4}, []value{batch})
	height := l.op("Gather", []int{1}, []value{shape, l.ints(1)})
	width := l.op("Gather", []int{1}, []value{shape, l.ints(2)})
	lost := l.op("Sub", []int{1}, []value{height, l.ints(side)})
	lostWidth := l.op("Sub", []int{1}, []value{width, l.ints(side)})
	more := l.op("Greater", []int{1}, []value{lost, l.op("Mul", []int{1}, []value{lostWidth, l.ints(2)})})
	shrinks := l.op("Greater", []int{1}, []value{lost, l.ints(0)})
	verticalFirst := l.op("And", []int{1}, []value{more, shrinks})
	keepWidth := l.op("Where", []int{4}, []value{bools(0, 0, 1, 0), shape, square})
	keepHeight := l.op("Where", []int{4}, []value{bools(0, 1, 0, 0), shape, square})
	return l.op("Where", []int{4}, []value{verticalFirst, keepWidth, keepHeight})
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
