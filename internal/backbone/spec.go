package backbone

import (
	"errors"
	"fmt"
	"math"
)

// ErrUnknown is returned, wrapped with the name, for an unknown network.
var ErrUnknown = errors.New("backbone: unknown network")

// StemChannels is the number of channels of the stem, a 3×3 convolution of
// stride 2. The Lite variants do not scale it with the width.
const StemChannels = 32

// Mean and Deviation normalize an image in 0…1 for the network:
// (x − Mean) / Deviation, for all colours. They are 127/255 and 128/255, rounded to
// three digits like in efficientnet_lite_pytorch.
const (
	Mean      = 0.498
	Deviation = 0.502
)

// Spec is the architecture of an EfficientNet-Lite without its head: a stem
// followed by blocks.
type Spec struct {
	// Name is the name of the network, such as "efficientnet-lite0".
	Name string
	// Blocks are in order. They are numbered individually from 0; Tan and Le
	// number groups of them from 1.
	Blocks []Block
}

// Block is an inverted residual block: a 1×1 convolution to In·Expand channels,
// omitted if Expand is 1, a depthwise convolution, both followed by a ReLU6, and a
// 1×1 convolution to Out channels.
type Block struct {
	// Kernel and Stride are those of the depthwise convolution.
	Kernel, Stride int
	// Expand is the ratio of the depthwise convolution's channels to In.
	Expand  int
	In, Out int
	// Residual reports whether the block's input is added to its result.
	Residual bool
}

// Hidden returns the number of channels of the depthwise convolution.
func (b Block) Hidden() int { return b.In * b.Expand }

// Parameter is the name and the shape of a tensor of weights.
type Parameter struct {
	Name  string
	Shape []int
}

// Tap describes the result of a block.
type Tap struct {
	Channels int
	// Stride is the ratio of the image's side to the result's side.
	Stride int
}

// stages is EfficientNet-B0's groups of blocks (Tan and Le, "EfficientNet:
// Rethinking Model Scaling for Convolutional Neural Networks", 2019, table 1). The
// stride is that of the first block; the others have a stride of 1.
var stages = []struct{ blocks, kernel, stride, expand, channels int }{
	{1, 3, 1, 1, 16},
	{2, 3, 2, 6, 24},
	{2, 5, 2, 6, 40},
	{3, 3, 2, 6, 80},
	{3, 5, 1, 6, 112},
	{4, 5, 2, 6, 192},
	{1, 3, 1, 6, 320},
}

// coefficients is the scaling of width and depth, from Google's
// efficientnet_lite_builder.py.
var coefficients = map[string]struct{ width, depth float64 }{
	"efficientnet-lite0": {1.0, 1.0},
	"efficientnet-lite2": {1.1, 1.2},
}

// Named returns the network with a name, "efficientnet-lite0" or
// "efficientnet-lite2". It returns ErrUnknown for any other name.
func Named(name string) (Spec, error) {
	c, ok := coefficients[name]
	if !ok {
		return Spec{}, fmt.Errorf("%w: %.40q", ErrUnknown, name)
	}
	return scaled(name, c.width, c.depth), nil
}

// Lite0 returns EfficientNet-Lite0, which has 16 blocks.
func Lite0() Spec { return scaled("efficientnet-lite0", 1.0, 1.0) }

// Lite2 returns EfficientNet-Lite2, which has 21 blocks.
func Lite2() Spec { return scaled("efficientnet-lite2", 1.1, 1.2) }

// scaled returns a network scaled by the rules of the Lite variants: no
// squeeze-and-excitation, and the stem and the depth of the first and the last group
// are not scaled.
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

// roundChannels rounds to a multiple of 8, but not down by more than 10 %, like
// Google's builder.
func roundChannels(c float64) int {
	n := max(8, int(c+4)/8*8)
	if float64(n) < 0.9*c {
		n += 8
	}
	return n
}

// Tap returns the shape of the result of block i.
func (s Spec) Tap(i int) Tap {
	stride := 2 // the stem's
	for _, b := range s.Blocks[:i+1] {
		stride *= b.Stride
	}
	return Tap{Channels: s.Blocks[i].Out, Stride: stride}
}

// Parameters returns the names and shapes of the weights up to and including
// block last, in order. Each convolution has a weight and a bias with its BatchNorm
// folded in. Weights are O×I×K×K, or C×1×K×K for a depthwise convolution.
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
