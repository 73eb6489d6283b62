package models

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrArchitecture is returned when a state dict, or the graph of an ONNX file, is
// not that of the convolutional autoencoder this project builds: a parameter is
// missing, is surplus or has a shape that does not fit its neighbours, or the
// graph computes something else from the parameters.
var ErrArchitecture = errors.New("not the expected autoencoder")

// ModelType is the value of "model_type" in every metadata.json.
const ModelType = "autoencoder"

// InputChannels is the number of channels of every image: RGB.
const InputChannels = 3

// KernelSize is the side of every convolution kernel, in pixels.
const KernelSize = 3

// maxLayers and maxWidth bound what a state dict may ask us to build: depth 8
// halves an image 256 times, and 2048 channels is eight times the widest layer
// of the default network.
const (
	maxLayers = 8
	maxWidth  = 2048
)

// Parameter names one learnable tensor of a network and its shape as PyTorch
// has it: out×in×3×3 for a convolution, in×out×3×3 for a transposed one, and
// the number of output channels for a bias.
type Parameter struct {
	Name  string
	Shape []int
}

// Size is the number of elements of the parameter.
func (p Parameter) Size() int {
	n := 1
	for _, d := range p.Shape {
		n *= d
	}
	return n
}

// Architecture describes the symmetric convolutional autoencoder: every step
// along Channels is a stride-2 convolution in the encoder, and is walked back
// by a stride-2 transposed convolution in the decoder.
type Architecture struct {
	// Channels are the widths from the image to the bottleneck. The first is
	// InputChannels.
	Channels []int `json:"channels"`
}

// DefaultArchitecture is the network of the Python service:
// 3-32-64-128-256 and back.
func DefaultArchitecture() Architecture {
	return Architecture{Channels: []int{InputChannels, 32, 64, 128, 256}}
}

// Layers is the number of convolutions in the encoder, and of transposed ones
// in the decoder.
func (a Architecture) Layers() int { return len(a.Channels) - 1 }

// Stride is what an image side must be a multiple of: two to the number of
// layers, 16 for the default network.
func (a Architecture) Stride() int { return 1 << a.Layers() }

// Equal reports whether both describe the same network.
func (a Architecture) Equal(b Architecture) bool { return slices.Equal(a.Channels, b.Channels) }

// String gives the widths as "3-32-64-128-256".
func (a Architecture) String() string {
	s := make([]string, len(a.Channels))
	for i, c := range a.Channels {
		s[i] = fmt.Sprint(c)
	}
	return strings.Join(s, "-")
}

// Validate returns ErrArchitecture, wrapped, when the widths cannot be built.
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

// Parameters lists the parameters in the order of PyTorch's state dict. The
// names count nn.Sequential's entries, in which an activation follows each
// layer: encoder.0, encoder.2, …, decoder.0, decoder.2, ….
func (a Architecture) Parameters() []Parameter {
	c, n := a.Channels, a.Layers()
	var ps []Parameter
	add := func(stage string, i, first, second, out int) {
		ps = append(ps,
			Parameter{fmt.Sprintf("%s.%d.weight", stage, 2*i), []int{first, second, KernelSize, KernelSize}},
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

// ArchitectureOf reads the widths off the encoder's weights and then holds
// every parameter against them. It returns ErrArchitecture, wrapped with what
// was expected and what was found, when the state dict is another network's.
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
