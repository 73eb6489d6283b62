package backbone

import (
	"errors"
	"fmt"
	"math"
)

// ErrUnknown is returned, wrapped with the name, for a network that is not
// described here.
var ErrUnknown = errors.New("backbone: unknown network")

// StemChannels is how many channels the stem gives: a 3×3 convolution of
// stride 2. In the Lite variants it is not scaled with the width.
const StemChannels = 32

// Mean and Deviation normalize an image in 0…1 for the network:
// (x − Mean) / Deviation, for each colour alike. They are (127/255, 128/255),
// rounded to three digits as efficientnet_lite_pytorch has them.
const (
	Mean      = 0.498
	Deviation = 0.502
)

// Spec says what an EfficientNet-Lite consists of, up to its head: a stem, and
// blocks behind it.
type Spec struct {
	// Name is the network's, such as "efficientnet-lite0".
	Name string
	// Blocks are in the order of computing. Tan and Le number them from 1 by
	// groups; here they are numbered from 0 one by one.
	Blocks []Block
}

// Block is an inverted residual block: a 1×1 convolution to In·Expand channels,
// which is left out where Expand is 1, a depthwise convolution, both with ReLU6
// behind them, and a 1×1 convolution to Out channels.
type Block struct {
	// Kernel and Stride are the depthwise convolution's.
	Kernel, Stride int
	// Expand is how many times In the depthwise convolution's channels are.
	Expand  int
	In, Out int
	// Residual says that the block's input is added to its result.
	Residual bool
}

// Hidden is how many channels the depthwise convolution has.
func (b Block) Hidden() int { return b.In * b.Expand }

// Parameter is the name and the shape of a tensor of weights.
type Parameter struct {
	Name  string
	Shape []int
}

// Tap describes what comes out of a block.
type Tap struct {
	Channels int
	// Stride is how many pixels of the image, along an axis, are one of the
	// result.
	Stride int
}

// stages are EfficientNet-B0's groups of blocks (Tan and Le, "EfficientNet:
// Rethinking Model Scaling for Convolutional Neural Networks", 2019, table 1):
// how many blocks, and of the first of them kernel, stride, expansion and
// channels. The blocks behind the first have a stride of 1.
var stages = []struct{ blocks, kernel, stride, expand, channels int }{
	{1, 3, 1, 1, 16},
	{2, 3, 2, 6, 24},
	{2, 5, 2, 6, 40},
	{3, 3, 2, 6, 80},
	{3, 5, 1, 6, 112},
	{4, 5, 2, 6, 192},
	{1, 3, 1, 6, 320},
}

// coefficients scale the width and the depth, as in Google's
// efficientnet_lite_builder.py.
var coefficients = map[string]struct{ width, depth float64 }{
	"efficientnet-lite0": {1.0, 1.0},
	"efficientnet-lite2": {1.1, 1.2},
}

// Named returns the network of that name, "efficientnet-lite0" or
// "efficientnet-lite2". It returns ErrUnknown for any other.
func Named(name string) (Spec, error) {
	c, ok := coefficients[name]
	if !ok {
		return Spec{}, fmt.Errorf("%w: %.40q", ErrUnknown, name)
	}
	return scaled(name, c.width, c.depth), nil
}

// Lite0 is EfficientNet-Lite0: 16 blocks.
func Lite0() Spec { return scaled("efficientnet-lite0", 1.0, 1.0) }

// Lite2 is EfficientNet-Lite2: 21 blocks.
func Lite2() Spec { return scaled("efficientnet-lite2", 1.1, 1.2) }

// scaled makes a network from the coefficients by the rules of the Lite
// variants: no squeeze-and-excitation, and the depth of the first and the last
// group, like the stem, is not scaled.
func scaled(name string, width, depth float64) Spec {
	s := Spec{Name: name}
	in := StemChannels
	for i, stage := range stages {
		blocks := stage.blocks
		if i > 0 && i < len(stages)-1 {
			blocks = int(math.Ceil(depth * float64(blocks)))
		}
		out := roundChannels(width * float64(stage.channels))
		for k := range blocks {
			b := Block{Kernel: stage.kernel, Stride: 1, Expand: stage.expand, In: in, Out: out}
			if k == 0 {
				b.Stride = stage.stride
			}
			b.Residual = b.Stride == 1 && in == out
			s.Blocks = append(s.Blocks, b)
			in = out
		}
	}
	return s
}

// roundChannels rounds to a multiple of 8, and not down by more than a tenth,
// as Google's builder does.
func roundChannels(c float64) int {
	n := max(8, int(c+4)/8*8)
	if float64(n) < 0.9*c {
		n += 8
	}
	return n
}

// Tap describes the result of block i.
func (s Spec) Tap(i int) Tap {
	stride := 2 // the stem's
	for _, b := range s.Blocks[:i+1] {
		stride *= b.Stride
	}
	return Tap{Channels: s.Blocks[i].Out, Stride: stride}
}

// Parameters returns names and shapes of the weights up to and including block
// last, in the order of computing. Each convolution has a weight and a bias, in
// which its BatchNorm is folded: O×I×K×K, C×1×K×K of a depthwise convolution.
func (s Spec) Parameters(last int) []Parameter {
	var ps []Parameter
	add := func(name string, shape ...int) {
		ps = append(ps, Parameter{name + ".weight", shape}, Parameter{name + ".bias", shape[:1:1]})
	}
	add("stem", StemChannels, 3, 3, 3)
	for i, b := range s.Blocks[:last+1] {
		name := fmt.Sprintf("blocks.%d.", i)
		if b.Expand != 1 {
			add(name+"expand", b.Hidden(), b.In, 1, 1)
		}
		add(name+"depthwise", b.Hidden(), 1, b.Kernel, b.Kernel)
		add(name+"project", b.Out, b.Hidden(), 1, 1)
	}
	return ps
}
