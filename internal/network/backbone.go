package network

import (
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// backbonePrefix is the prefix of the names of a backbone's parameters.
const backbonePrefix = "backbone."

// BackboneStride is the number that the sides of a backbone's images must be
// multiples of. Then every convolution of stride 2 has even sides, and its padding
// is that of TensorFlow's SAME.
const BackboneStride = 32

// Features builds the graph of a backbone for n images of the given side, a
// multiple of BackboneStride. It returns the image (N×3×S×S in 0…1), the results
// of the blocks in taps, and the parameters, in the order of Spec.Parameters up
// to the last of these blocks.
func Features(n, side int, spec backbone.Spec, taps []int) (image *gorgonia.Node, features, parameters gorgonia.Nodes, err error) {
	b := newBuilder()
	image = b.input(ImageName, n, models.InputChannels, side, side)
	features, parameters = b.backbone(image, spec, taps)
	if b.err != nil {
		return nil, nil, nil, fmt.Errorf("network: %s: %w", spec.Name, b.err)
	}
	return image, features, parameters, nil
}

// backbone adds a backbone to the graph, for images (N×3×H×W in 0…1) with sides
// that are multiples of BackboneStride. It returns the results of the blocks in
// taps (N×C×h×w, see Spec.Tap), and the parameters up to the last of them, named
// like Spec.Parameters with backbonePrefix.
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
		parameters = append(parameters, b.input(backbonePrefix+p.Name, p.Shape...))
	}
	next := 0 // parameter
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
