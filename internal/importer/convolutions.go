package importer

import (
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/owulveryck/onnx-go"
	"gorgonia.org/gorgonia"
)

// convolver makes a convolution's node.
type convolver func(x, weight, bias *gorgonia.Node, w network.Window) (*gorgonia.Node, error)

// windowAttributes returns the attributes that the exporter writes for a window. The output
// padding of a plain convolution, which only its gradient needs, is not among them.
func windowAttributes(w network.Window, transposed bool) map[string]any {
	square := func(side, times int) []int64 { return slices.Repeat([]int64{int64(side)}, times) }
	want := map[string]any{
		"kernel_shape": square(w.Kernel, 2),
		"strides":      square(w.Stride, 2),
		"pads":         slices.Concat(square(w.Padding, 2), square(w.Padding+w.Surplus, 2)),
	}
	if transposed {
		want["output_padding"] = square(w.OutputPadding, 2)
	}
	return want
}

// plainWindows are the windows of convolutions of one group: the autoencoder's, and the
// first layer and the 1×1 convolutions of a backbone.
var plainWindows = []network.Window{network.Half(), network.Same(3, 2), network.Same(1, 1)}

// depthwiseWindows are the windows of a backbone's depthwise convolutions.
var depthwiseWindows = []network.Window{network.Same(3, 1), network.Same(3, 2), network.Same(5, 1), network.Same(5, 2)}

// plainConvolution reads a convolution of one group or a depthwise convolution.
func plainConvolution(v *value, op onnx.Operation) error {
	if group, ok := op.Attributes["group"]; ok {
		return depthwise(v, op, group)
	}
	w := plainWindows[0]
	for _, other := range plainWindows[1:] {
		if attributes(op, windowAttributes(other, false)) == nil {
			w = other
		}
	}
	return convolution(network.Convolve, false, w)(v, op)
}

// convolution returns a function that reads a convolution with that window.
func convolution(apply convolver, transposed bool, w network.Window) func(*value, onnx.Operation) error {
	want := windowAttributes(w, transposed)
	return func(v *value, op onnx.Operation) error {
		if err := attributes(op, want); err != nil {
			return err
		}
		return v.convolve(apply, w)
	}
}

// depthwise reads a depthwise convolution: one group per channel.
func depthwise(v *value, op onnx.Operation, group any) error {
	for _, w := range depthwiseWindows {
		want := windowAttributes(w, false)
		want["group"] = group
		if attributes(op, want) != nil {
			continue
		}
		if err := v.convolve(network.ConvolveDepthwise, w); err != nil {
			return err
		}
		if channels := v.node.Shape()[1]; group != int64(channels) {
			v.node = nil
			return fmt.Errorf("%w: group is %v, expected the number of channels, %d", ErrUnsupported, group, channels)
		}
		return nil
	}
	return fmt.Errorf("%w: a convolution with group %v and the attributes %v", ErrUnsupported, group, op.Attributes)
}

// convolve sets the value to the convolution of its operands: image, weight, bias.
func (v *value) convolve(apply convolver, w network.Window) error {
	return v.compute(3, func(in []*gorgonia.Node) (*gorgonia.Node, error) {
		weight, bias := in[1].Shape(), in[2].Shape()
		if weight.Dims() != 4 || weight[2] != w.Kernel || weight[3] != w.Kernel || bias.Dims() != 1 {
			return nil, fmt.Errorf("weight of shape %v and bias of shape %v, expected a kernel of %d×%d", weight, bias, w.Kernel, w.Kernel)
		}
		out, err := apply(in[0], in[1], in[2], w)
		if err == nil && bias[0] != out.Shape()[1] {
			return nil, fmt.Errorf("%d biases for %d channels", bias[0], out.Shape()[1])
		}
		return out, err
	})
}

// clip reads a ReLU6: Clip with the constant limits 0 and 6.
func clip(v *value, op onnx.Operation) error {
	if err := attributes(op, nil); err != nil {
		return err
	}
	if err := v.operandsDefined(); err != nil {
		return err
	}
	if len(v.operands) != 3 || !slices.Equal(v.operands[1].factors, []float32{0}) || !slices.Equal(v.operands[2].factors, []float32{network.Six}) {
		return fmt.Errorf("%w: expected a tensor and the limits 0 and %d", ErrUnsupported, network.Six)
	}
	x, err := v.operands[0].expression()
	if err != nil {
		return err
	}
	return v.set(network.RectifySix(x))
}

// subtraction reads the difference of two tensors, or the subtraction of backbone.Mean from
// an image.
func subtraction(v *value, op onnx.Operation) error {
	if v.byNumber(backbone.Mean) {
		if err := attributes(op, nil); err != nil {
			return err
		}
		return v.withNumber(backbone.Mean, gorgonia.Sub)
	}
	return elementwise(2, func(x []*gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.Sub(x[0], x[1]) })(v, op)
}

// byNumber reports whether the operands are a tensor and that constant.
func (v *value) byNumber(number float32) bool {
	return len(v.operands) == 2 && v.operands[0].node != nil && slices.Equal(v.operands[1].factors, []float32{number})
}

// withNumber sets the value to the result of apply for its first operand and a constant.
func (v *value) withNumber(number float32, apply func(a, b *gorgonia.Node) (*gorgonia.Node, error)) error {
	return v.set(apply(v.operands[0].node, gorgonia.NewConstant(number)))
}

// set sets the value to a node. It returns ErrFormat for an error of Gorgonia.
func (v *value) set(n *gorgonia.Node, err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	v.node = n
	return nil
}
