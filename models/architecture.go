package models

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrArchitecture is returned when a state dict or an ONNX graph does not describe
// the convolutional autoencoder of this project: a parameter is missing, is
// unexpected or has a shape that does not fit its neighbours, or the graph
// computes something else from the parameters.
var ErrArchitecture = errors.New("not the expected autoencoder")

// ModelType is the value of "model_type" in every metadata.json.
const ModelType = "autoencoder"

// InputChannels is the number of channels of every image: RGB.
const InputChannels = 3

// kernelSize is the side of every convolution kernel, in pixels.
const kernelSize = 3

// maxLayers and maxWidth bound the network that a state dict can describe. Eight
// layers reduce an image side by a factor of 256; 2048 channels are eight times
// the widest layer of the default network.
const (
	maxLayers = 8
	maxWidth  = 2048
)

// Parameter is the name of a learnable tensor and its shape in PyTorch's order:
// out×in×3×3 for a convolution, in×out×3×3 for a transposed convolution, and the
// number of output channels for a bias.
type Parameter struct {
	Name  string
	Shape []int
}

// Size returns the number of elements.
func (p Parameter) Size() int {
	n := 1
	for _, d := range p.Shape {
		n *= d
	}
	return n
}

// Architecture describes a symmetric convolutional autoencoder. Each pair of
// neighbours in Channels is a stride-2 convolution in the encoder and a stride-2
// transposed convolution in the decoder.
type Architecture struct {
	// Channels are the widths from the image to the bottleneck. The first is
	// InputChannels.
	Channels []int `json:"channels"`
}

// DefaultArchitecture returns the network of the Python service:
// 3-32-64-128-256 and back.
func DefaultArchitecture() Architecture {
	return Architecture{Channels: []int{InputChannels, 32, 64, 128, 256}}
}

// Layers returns the number of convolutions in the encoder, which is also the
// number of transposed convolutions in the decoder.
func (a Architecture) Layers() int { return len(a.Channels) - 1 }

// Stride returns 2 to the power of Layers: 16 for the default network. An image
// side must be a multiple of it.
func (a Architecture) Stride() int { return 1 << a.Layers() }

// CheckInput returns ErrMetadata, wrapped, unless the sides of the input are multiples of
// the stride and at most MaxImageSize.
func (a Architecture) CheckInput(s Size) error {
	stride := a.Stride()
	for _, side := range []int{s.W, s.H} {
		if side < stride || side > MaxImageSize || side%stride != 0 {
			return fmt.Errorf("%w: image_size is %d, expected a multiple of %d from %d to %d for a %s network",
				ErrMetadata, side, stride, stride, MaxImageSize, a)
		}
	}
	return nil
}

// Equal reports whether both describe the same network.
func (a Architecture) Equal(b Architecture) bool { return slices.Equal(a.Channels, b.Channels) }

// String returns the widths in the form "3-32-64-128-256".
func (a Architecture) String() string {
	s := make([]string, len(a.Channels))
	for i, c := range a.Channels {
		s[i] = fmt.Sprint(c)
	}
	return strings.Join(s, "-")
}

// Validate returns ErrArchitecture, wrapped, when the number of layers or a width
// is out of range.
func (a Architecture) Validate() error {
	if n := a.Layers(); n < 1 || n > maxLayers {
		return fmt.Errorf("%w: %d layers, expected 1 to %d", ErrArchitecture, n, maxLayers)
	}
	if a.Channels[0] != InputChannels {
		return fmt.Errorf("%w: %d input channels, expected %d", ErrArchitecture, a.Channels[0], InputChannels)
	}
	for _, c := range a.Channels {
		if c < 1 || c > maxWidth {
			return fmt.Errorf("%w: a layer of %d channels, expected 1 to %d", ErrArchitecture, c, maxWidth)
		}
	}
	return nil
}

// Parameters returns the parameters in the order of PyTorch's state dict. The
// numbers in the names are indices into nn.Sequential, where an activation follows
// each layer: encoder.0, encoder.2, …, decoder.0, decoder.2, ….
func (a Architecture) Parameters() []Parameter {
	c, n := a.Channels, a.Layers()
	var ps []Parameter
	add := func(stage string, i, first, second, out int) {
		ps = append(ps,
			Parameter{fmt.Sprintf("%s.%d.weight", stage, 2*i), []int{first, second, kernelSize, kernelSize}},
			Parameter{fmt.Sprintf("%s.%d.bias", stage, 2*i), []int{out}})
	}
	for i := range n {
		add("encoder", i, c[i+1], c[i], c[i+1])
	}
	for i := range n {
		add("decoder", i, c[n-i], c[n-i-1], c[n-i-1])
	}
	return ps
}

// ArchitectureOf takes the widths from the shapes of the encoder's weights, then
// checks the name and shape of every parameter. It returns ErrArchitecture,
// wrapped, when the state dict belongs to another network.
func ArchitectureOf(sd StateDict) (Architecture, error) {
	a := Architecture{Channels: []int{InputChannels}}
	for i := 0; ; i++ {
		t, ok := sd.Get(fmt.Sprintf("encoder.%d.weight", 2*i))
		if !ok {
			break
		}
		if len(t.Shape) != 4 || a.Layers() >= maxLayers {
			return Architecture{}, fmt.Errorf("%w: %s has shape %v, expected out×in×3×3 in at most %d layers",
				ErrArchitecture, t.Name, t.Shape, maxLayers)
		}
		a.Channels = append(a.Channels, t.Shape[0])
	}
	if a.Layers() == 0 {
		return Architecture{}, fmt.Errorf("%w: expected encoder.0.weight, …, decoder.%d.bias as in a %s network, found %s",
			ErrArchitecture, 2*(DefaultArchitecture().Layers()-1), DefaultArchitecture(), sd.summary())
	}
	if err := a.Validate(); err != nil {
		return Architecture{}, err
	}
	want := a.Parameters()
	for _, p := range want {
		t, ok := sd.Get(p.Name)
		if !ok {
			return Architecture{}, fmt.Errorf("%w: %s is missing", ErrArchitecture, p.Name)
		}
		if !slices.Equal(t.Shape, p.Shape) {
			return Architecture{}, fmt.Errorf("%w: %s has shape %v, expected %v", ErrArchitecture, p.Name, t.Shape, p.Shape)
		}
	}
	if len(sd) != len(want) {
		return Architecture{}, fmt.Errorf("%w: %d parameters, expected %d", ErrArchitecture, len(sd), len(want))
	}
	return a, nil
}
