package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// windowOf returns the window of a convolution operator of package network.
func windowOf(op gorgonia.Op) (network.Window, error) {
	switch op := op.(type) {
	case network.Conv2D:
		return op.Window, nil
	case network.ConvTranspose2D:
		return op.Window, nil
	case network.ConvInputGrad:
		return op.Window, nil
	case network.ConvTransposeInputGrad:
		return op.Window, nil
	case network.ConvWeightGrad:
		return op.Window, nil
	case network.DepthwiseConv2D:
		return op.Window, nil
	}
	return network.Window{}, fmt.Errorf("%w: %v has no window", ErrNoLowering, op)
}

// windowAttrs returns a window as attributes of ONNX's Conv and ConvTranspose.
func windowAttrs(w network.Window) []attribute {
	return []attribute{
		intsAttr("kernel_shape", w.Kernel, w.Kernel),
		intsAttr("strides", w.Stride, w.Stride),
		intsAttr("pads", w.Padding, w.Padding, w.Padding+w.Surplus, w.Padding+w.Surplus),
	}
}

// lowerConv lowers Conv2D (x, weight, bias) and ConvTransposeInputGrad (gradient, weight),
// which are both convolutions. Weights have PyTorch's layout, which is also ONNX's.
func lowerConv(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	in[0] = l.expand(in[0], operandShape(n, 0))
	return l.op("Conv", n.Shape(), in, windowAttrs(w)...), nil
}

// lowerDepthwise lowers a depthwise convolution (x, weight, bias): one group per channel.
func lowerDepthwise(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	in[0] = l.expand(in[0], operandShape(n, 0))
	attrs := append(windowAttrs(w), intAttr("group", n.Shape()[1]))
	return l.op("Conv", n.Shape(), in, attrs...), nil
}

// lowerConvInputGrad lowers the gradient of a convolution's input (gradient, weight).
func lowerConvInputGrad(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	if w.Stride == 1 && w.Kernel == 2*w.Padding+1 {
		return lowerUnitStrideInputGrad(l, n, in, w)
	}
	return lowerConvTranspose(l, n, in)
}

// lowerConvTranspose lowers ConvTranspose2D (x, weight, bias) and ConvInputGrad (gradient,
// weight), which are both transposed convolutions.
func lowerConvTranspose(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	w, err := windowOf(n.Op())
	if err != nil {
		return value{}, err
	}
	in[0] = l.expand(in[0], operandShape(n, 0))
	attrs := append(windowAttrs(w), intsAttr("output_padding", w.OutputPadding, w.OutputPadding))
	return l.op("ConvTranspose", n.Shape(), in, attrs...), nil
}
