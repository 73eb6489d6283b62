package network

import (
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// BackbonePrefix begins the name of each of a backbone's parameters.
const BackbonePrefix = "backbone."

// BackboneStride is what the sides of a backbone's images are multiples of: then
// every convolution of stride 2 has even sides, and its zeros are where
// TensorFlow's SAME puts them.
const BackboneStride = 32

// Features builds a backbone alone, for n images of that side, a multiple of
// BackboneStride: the image (N×3×S×S in 0…1), what comes out of each of the
// blocks that taps names, in that order, and the parameters, in the order of
// Spec.Parameters up to the last of these blocks.
func Features(n, side int, spec backbone.Spec, taps []int) (image *gorgonia.Node, features, parameters gorgonia.Nodes, err error) {
	b := newBuilder()
	image = b.input(ImageName, n, models.InputChannels, side, side)
	features, parameters = b.backbone(image, spec, taps)
	if b.err != nil {
		return nil, nil, nil, fmt.Errorf("network: %s: %w", spec.Name, b.err)
	}
	return image, features, parameters, nil
}

// backbone adds a backbone behind images (N×3×H×W in 0…1), with sides that are
// multiples of BackboneStride: what comes out of each of the blocks that taps
// names (N×C×h×w by Spec.Tap), and the parameters up to the last of them, whose
// names are those of Spec.Parameters behind BackbonePrefix.
func (b *builder) backbone(image *gorgonia.Node, spec backbone.Spec, taps []int) (features, parameters gorgonia.Nodes) {
	s := image.Shape()
	if b.err == nil && (len(s) != 4 || s[2] < 1 || s[3] < 1 || s[2]%BackboneStride != 0 || s[3]%BackboneStride != 0) {
		b.err = fmt.Errorf("images of shape %v: sides must be multiples of %d", s, BackboneStride)
	}
	if b.err == nil && (len(taps) == 0 || slices.Min(taps) < 0 || slices.Max(taps) >= len(spec.Blocks)) {
		b.err = fmt.Errorf("blocks %v of %d", taps, len(spec.Blocks))
	}
	if b.err != nil {
		return nil, nil
	}
	last := slices.Max(taps)
	for _, p := range spec.Parameters(last) {
		parameters = append(parameters, b.input(BackbonePrefix+p.Name, p.Shape...))
	}
	next := 0 // of the parameters
	layer := func(apply func(x, weight, bias *gorgonia.Node, w Window) (*gorgonia.Node, error), x *gorgonia.Node, w Window) *gorgonia.Node {
		next += 2
		return b.node(apply(b.checked(x), parameters[next-2], parameters[next-1], w))
	}
	x := b.node(gorgonia.Sub(image, gorgonia.NewConstant(float32(backbone.Mean))))
	x = b.node(gorgonia.Div(x, gorgonia.NewConstant(float32(backbone.Deviation))))
	x = b.node(RectifySix(layer(Convolve, x, Same(3, 2))))
	results := make(gorgonia.Nodes, last+1)
	for i, block := range spec.Blocks[:last+1] {
		y := x
		if block.Expand != 1 {
			y = b.node(RectifySix(layer(Convolve, y, Same(1, 1))))
		}
		y = b.node(RectifySix(layer(ConvolveDepthwise, y, Same(block.Kernel, block.Stride))))
		y = layer(Convolve, y, Same(1, 1))
		if block.Residual {
			y = b.node(gorgonia.Add(b.checked(y), b.checked(x)))
		}
		x, results[i] = y, y
	}
	for _, i := range taps {
		features = append(features, results[i])
	}
	return features, parameters
}
