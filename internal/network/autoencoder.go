package network

import (
	"fmt"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Names of the graphs' inputs and outputs that are not parameters. Exported ONNX
// files have the same names.
const (
	ImageName          = "image"
	ReconstructionName = "reconstruction"
	ErrorName          = "reconstruction_error"
	MapName            = "anomaly_map"
)

// Forward is the graph of an autoencoder: its input, parameters and results.
type Forward struct {
	Graph *gorgonia.ExprGraph
	// Image is N×3×H×W, in 0…1.
	Image *gorgonia.Node
	// Parameters are in the order of Architecture.Parameters, with the same
	// names.
	Parameters gorgonia.Nodes
	// Reconstruction has the image's shape, in 0…1.
	Reconstruction *gorgonia.Node
	// Error is the mean squared error of each image, N elements.
	Error *gorgonia.Node
	// Map is the squared error of each pixel, averaged over its channels,
	// N×H×W. Error is its mean.
	Map *gorgonia.Node
	// Masked reports whether pixels below 0 are outside: the network takes them for
	// black, and Error is the mean over the other pixels. Map is 0 there.
	Masked bool
}

// Autoencoder builds the convolutional autoencoder of an architecture for
// batches of n images of h×w pixels, both multiples of the architecture's
// stride. Every layer is followed by a ReLU, the last one by a sigmoid.
func Autoencoder(arch models.Architecture, n, h, w int) (*Forward, error) {
	return autoencoder(arch, n, h, w, false)
}

// MaskedAutoencoder is like Autoencoder, with pixels below 0 outside; see Forward.Masked.
func MaskedAutoencoder(arch models.Architecture, n, h, w int) (*Forward, error) {
	return autoencoder(arch, n, h, w, true)
}

// AutoencoderOf builds the network of a model for batches of n images.
func AutoencoderOf(m *models.Model, n int) (*Forward, error) {
	size := m.Input()
	return autoencoder(m.Architecture, n, size.H, size.W, m.Masked())
}

func autoencoder(arch models.Architecture, n, h, w int, masked bool) (*Forward, error) {
	if err := arch.Validate(); err != nil {
		return nil, err
	}
	if s := arch.Stride(); n < 1 || h < s || w < s || h%s != 0 || w%s != 0 {
		return nil, fmt.Errorf("network: %d images of %d×%d pixels: sides must be multiples of %d", n, h, w, s)
	}
	b := newBuilder()
	f := &Forward{
		Graph: b.graph,
		Image: b.input(ImageName, n, models.InputChannels, h, w), Masked: masked,
	}
	for _, p := range arch.Parameters() {
		f.Parameters = append(f.Parameters, b.input(p.Name, p.Shape...))
	}
	image := f.Image
	if masked {
		image = b.node(Rectify(f.Image))
	}
	x := image
	layers := len(f.Parameters) / 2
	for i := range layers {
		weight, bias := f.Parameters[2*i], f.Parameters[2*i+1]
		apply := Convolve
		if i >= arch.Layers() {
			apply = ConvolveTransposed
		}
		x = b.node(apply(x, weight, bias, Half()))
		if i < layers-1 {
			x = b.node(Rectify(b.checked(x)))
		}
	}
	f.Reconstruction = b.node(gorgonia.Sigmoid(b.checked(x)))
	difference := b.node(gorgonia.Sub(f.Reconstruction, image))
	var inside *gorgonia.Node
	if masked {
		inside = b.apply(Inside, models.InputChannels, f.Image)
		difference = b.node(gorgonia.HadamardProd(difference, inside))
	}
	square := b.node(gorgonia.Square(difference))
	// By rows first: a single float32 sum over a large image loses precision.
	rows := b.node(gorgonia.Mean(square, 3))
	f.Error = b.node(gorgonia.Mean(b.checked(rows), 1, 2))
	if masked {
		share := b.node(gorgonia.Mean(b.node(gorgonia.Mean(b.checked(inside), 3)), 1, 2))
		f.Error = b.node(gorgonia.HadamardDiv(f.Error, share))
	}
	f.Map = b.node(gorgonia.Mean(square, 1))
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	return f, nil
}

// builder adds nodes to a graph and keeps the first error, so that code reads
// like a formula.
type builder struct {
	graph *gorgonia.ExprGraph
	err   error
}

func newBuilder() *builder { return &builder{graph: gorgonia.NewGraph()} }

// input adds a named float32 input; without a shape it is a scalar.
func (b *builder) input(name string, shape ...int) *gorgonia.Node {
	if len(shape) == 0 {
		return gorgonia.NewScalar(b.graph, tensor.Float32, gorgonia.WithName(name))
	}
	return gorgonia.NewTensor(b.graph, tensor.Float32, len(shape), gorgonia.WithShape(shape...), gorgonia.WithName(name))
}

// node returns n, and keeps err if it is the first error. After an error it
// returns a placeholder, so that subsequent calls do not fail; their results are
// discarded.
func (b *builder) node(n *gorgonia.Node, err error) *gorgonia.Node {
	if b.err == nil && err != nil {
		b.err = err
	}
	return b.checked(n)
}

func (b *builder) checked(n *gorgonia.Node) *gorgonia.Node {
	if b.err != nil {
		return gorgonia.NewConstant(float32(0))
	}
	return n
}
