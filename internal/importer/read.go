package importer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"github.com/owulveryck/onnx-go"
)

var (
	// ErrFormat is returned when bytes are no ONNX file, are damaged, or hold a
	// graph that is not whole: a value is used that nothing gives, or given
	// twice, or given and never used.
	ErrFormat = errors.New("not a whole ONNX file")
	// ErrUnsupported is returned, naming it, when a file holds an operator, an
	// attribute, a type or a shape that the exporter does not write.
	ErrUnsupported = errors.New("not as the exporter writes it")
)

// Read reads the bytes that exporter.InferenceModel gave: the network for
// batches of so many images (image N×3×S×S), and its weights in the order of
// its parameters. Its Error is the plain one, which the file may call mse, and its
// Map is nil. What judges images beside the network is not read: Forward.Judge
// builds it again. Read returns ErrFormat, ErrUnsupported or, when the weights are
// not those of an autoencoder, models.ErrArchitecture, wrapped.
func Read(data []byte, batch int) (f *network.Forward, weights models.StateDict, err error) {
	if batch < 1 {
		return nil, nil, fmt.Errorf("importer: a batch of %d images, expected at least 1", batch)
	}
	data = networkOf(data)
	if err := checkEnvelope(data); err != nil {
		return nil, nil, fmt.Errorf("importer: %w", err)
	}
	// onnx-go panics on some files, and so does Gorgonia on some shapes.
	defer func() {
		if p := recover(); p != nil {
			f, weights, err = nil, nil, fmt.Errorf("importer: %w: %v", ErrFormat, p)
		}
	}()
	b := newBackend(batch)
	if err := onnx.NewModel(b).UnmarshalBinary(data); err != nil {
		if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) {
			err = fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return nil, nil, fmt.Errorf("importer: %w", err)
	}
	if f, weights, err = b.forward(); err != nil {
		return nil, nil, fmt.Errorf("importer: %w", err)
	}
	return f, weights, nil
}

// forward puts the network together from what the decoder filled in.
func (b *backend) forward() (*network.Forward, models.StateDict, error) {
	arch, err := models.ArchitectureOf(b.weights)
	if err != nil {
		return nil, nil, err
	}
	f := &network.Forward{Graph: b.graph}
	results := map[string]*value{}
	for it := b.Nodes(); it.Next(); {
		v := it.Node().(*value)
		if isDeclared(v.name) {
			results[v.name] = v
		} else if b.To(v.id).Len() == 0 {
			return nil, nil, fmt.Errorf("%w: %s is given and never used", ErrFormat, v.name)
		}
	}
	f.Image = results[network.ImageName].node
	if f.Reconstruction, err = results[network.ReconstructionName].expression(); err != nil {
		return nil, nil, err
	}
	if f.Error, err = results[network.ErrorName].expression(); err != nil {
		return nil, nil, err
	}
	if s := f.Reconstruction.Shape(); !s.Eq(f.Image.Shape()) {
		return nil, nil, fmt.Errorf("%w: a reconstruction of shape %v of images of shape %v", ErrFormat, s, f.Image.Shape())
	}
	if s := f.Error.Shape(); !slices.Equal(s, []int{b.batch}) {
		return nil, nil, fmt.Errorf("%w: errors of shape %v for %d images", ErrFormat, s, b.batch)
	}
	ps := arch.Parameters()
	for _, p := range ps {
		f.Parameters = append(f.Parameters, b.parameters[p.Name])
	}
	return f, b.weights.Ordered(ps), nil
}
