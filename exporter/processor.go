package exporter

import (
	"fmt"
	"reflect"

	"github.com/deepmed/anomaly/internal/kernels"
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Operators selects the operators of a graph that this program runs itself.
type Operators int

const (
	// Portable graphs run on any execution provider of ONNX Runtime. They have ONNX's
	// operators, and in training steps also ONNX Runtime's FusedMatMul.
	Portable Operators = iota
	// Processor graphs run on the CPU. Package kernels, which the session must
	// register, computes convolutions, their gradients and some fused operators.
	Processor
)

// processorRules are the rules for operators that package kernels has, by type.
var processorRules map[reflect.Type]rule

func init() { // an initializer would be an initialization cycle: the rules use the table
	processorRules = map[reflect.Type]rule{
		reflect.TypeFor[network.Conv2D]():                 lowerLayer,
		reflect.TypeFor[network.ConvTranspose2D]():        lowerLayer,
		reflect.TypeFor[network.ConvInputGrad]():          lowerLayer,
		reflect.TypeFor[network.ConvTransposeInputGrad](): lowerLayer,
		reflect.TypeFor[network.ConvWeightGrad](): func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
			window, err := kernelWindowAttrs(n.Op())
			if err != nil {
				return value{}, err
			}
			return l.kernel(kernels.ConvWeightGrad, n.Shape(), []value{l.toNHWC(in[0]), l.toNHWC(in[1])}, window...), nil
		},
		reflect.TypeFor[network.ChannelSum](): func(l *lowering, n *gorgonia.Node, in []value) (value, error) {
			return l.kernel(kernels.ChannelSum, n.Shape(), []value{l.toNHWC(l.expand(in[0], operandShape(n, 0)))}), nil
		},
	}
}

// kernel adds a node of an operator of package kernels.
func (l *lowering) kernel(op string, shape []int, in []value, attrs ...attribute) value {
	l.kernels = true
	return l.domainOp(kernels.Domain, op, shape, in, attrs...)
}

// adam lowers the update of each parameter to one operator, which reads and writes each
// tensor once. Lowered to twelve ONNX operators it took 4 ms for the default network, a
// sixth of a training step on eight images of 128×128 pixels.
func (l *lowering) adam(u *network.Update) {
	for i, p := range u.Parameters {
		in := []value{l.done[u.StepSize], l.done[u.Correction], l.done[p], l.done[u.First[i]], l.done[u.Second[i]]}
		for _, gradients := range u.Gradients {
			in = append(in, l.done[gradients[i]])
		}
		out := l.ops(kernels.Domain, kernels.Adam, [][]int{p.Shape(), p.Shape(), p.Shape()}, in,
			floatAttr("beta1", network.Beta1), floatAttr("rest1", 1-network.Beta1),
			floatAttr("beta2", network.Beta2), floatAttr("rest2", 1-network.Beta2), floatAttr("epsilon", network.Epsilon))
		l.done[u.NewParameters[i]], l.done[u.NewFirst[i]], l.done[u.NewSecond[i]] = out[0], out[1], out[2]
	}
	l.kernels = true
}

// reconstructionError lowers the mean squared error of each image to one operator, which
// includes the reconstruction's sigmoid. Lowered to seven ONNX operators it took 2.5 % of a
// detection.
func (l *lowering) reconstructionError(f *network.Forward) error {
	before, err := l.lower(operandOf(f.Reconstruction, 0))
	if err != nil {
		return err
	}
	image, err := l.lower(f.Image)
	if err != nil {
		return err
	}
	l.done[f.Error] = l.kernel(kernels.SigmoidMSE, f.Error.Shape(), []value{l.toNHWC(before), l.toNHWC(image)})
	return nil
}

// kernelWindowAttrs returns the window of a convolution as attributes of package kernels. It
// returns ErrNoLowering unless the convolution keeps, halves or doubles an image's sides.
func kernelWindowAttrs(op gorgonia.Op) ([]attribute, error) {
	w, err := windowOf(op)
	if err != nil {
		return nil, err
	}
	same := network.Same(w.Kernel, w.Stride)
	same.OutputPadding = w.OutputPadding
	if w.Kernel > kernels.MaxKernel || w.Stride > 2 || w.Kernel%2 == 0 || w != same && (w.Padding != w.Kernel/2 || w.Surplus != 0) {
		return nil, fmt.Errorf("%w: %v", ErrNoLowering, op)
	}
	return []attribute{intAttr("kernel", w.Kernel), intAttr("stride", w.Stride), intAttr("padding", w.Padding)}, nil
}

// lowerLayer lowers a convolution or a transposed convolution to package kernels.
func lowerLayer(l *lowering, n *gorgonia.Node, in []value) (value, error) {
	return l.layer(n, in, kernels.RectifyNone, value{})
}

// layer lowers a convolution or a transposed convolution (image, kernel, and an optional
// bias), fused with a following ReLU or ReLU6, or with the gradient of a ReLU: results where
// mask, the ReLU's output, is not above 0 become 0.
func (l *lowering) layer(n *gorgonia.Node, in []value, rectify int, mask value) (value, error) {
	attrs, err := kernelWindowAttrs(n.Op())
	if err != nil {
		return value{}, err
	}
	op := kernels.Conv
	switch n.Op().(type) {
	case network.ConvTranspose2D, network.ConvInputGrad:
		op = kernels.ConvTranspose
	}
	in[0] = l.toNHWC(l.expand(in[0], operandShape(n, 0)))
	for len(in) < 3 {
		in = append(in, value{})
	}
	if mask.name != "" {
		mask = l.toNHWC(mask)
	}
	in = append(in, mask, l.version)
	for in[len(in)-1].name == "" {
		in = in[:len(in)-1]
	}
	attrs = append(attrs, intAttr("rectify", rectify), flagAttr("fixed", l.fixed))
	out := l.kernel(op, n.Shape(), in, attrs...)
	if out.shape[1] == 1 {
		s := out.shape
		return l.op("Reshape", s, []value{out, l.ints(0, s[1], s[2], s[3])}), nil
	}
	out.nhwc = true
	return out, nil
}

// minProducts is the number of products per pixel from which a convolution of package
// kernels saves more time than the change of layout takes. The largest convolution of the
// Gabor filter bank has 784, on one channel, and is as fast in ONNX Runtime; the smallest of
// the autoencoder has 864.
const minProducts = 800

// useKernel reports whether a node that package kernels has an operator for is lowered to
// it. In a training step all are, because no other operators are between them.
func (l *lowering) useKernel(n *gorgonia.Node, in []value) bool {
	if !l.processor || !l.fixed {
		return l.processor
	}
	switch n.Op().(type) {
	case network.Conv2D, network.ConvTranspose2D, network.ConvInputGrad, network.ConvTransposeInputGrad:
		if _, err := kernelWindowAttrs(n.Op()); err != nil {
			return false
		}
		return in[0].nhwc || tensor.Shape(operandShape(n, 1)).TotalSize() >= minProducts
	}
	return true
}
