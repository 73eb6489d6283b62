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
	// ErrFormat is returned, wrapped, for data that is not an ONNX file or is damaged, and
	// for an inconsistent graph: a value that is undefined, defined twice or unused, or
	// shapes that do not fit.
	ErrFormat = errors.New("not a complete ONNX file")
	// ErrUnsupported is returned, wrapped with its name, for an operator, an attribute, a
	// type or a shape that the exporter does not write.
	ErrUnsupported = errors.New("not written by the exporter")
)

// Read parses a file of exporter.InferenceModel. It returns the autoencoder for a fixed
// batch size, with images of batch×3×H×W, and the weights in the order of its parameters.
// Error is the mean squared error, even if the file has another anomaly score, and Map is
// nil; Forward.Judge adds the other score.
//
// Read returns ErrFormat, ErrUnsupported or, if the weights are not an autoencoder's,
// models.ErrArchitecture, all wrapped.
func Read(data []byte, batch int) (f *network.Forward, weights models.StateDict, err error) {
	if batch < 1 {
		return nil, nil, fmt.Errorf("importer: the batch size is %d, expected at least 1", batch)
	}
	data = pruneToAutoencoder(data)
	if err := checkEnvelope(data); err != nil {
		return nil, nil, fmt.Errorf("importer: %w", err)
	}
	// onnx-go panics for some files, Gorgonia for some shapes.
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

// forward returns the network and its weights from the decoded values.
func (b *backend) forward() (*network.Forward, models.StateDict, error) {
	arch, err := models.ArchitectureOf(b.weights)
	if err != nil {
		return nil, nil, err
	}
	f := &network.Forward{Graph: b.graph, Masked: b.masked}
	results := map[string]*value{}
	for it := b.Nodes(); it.Next(); {
		v := it.Node().(*value)
		if isDeclared(v.name) {
			results[v.name] = v
		} else if b.To(v.id).Len() == 0 {
			return nil, nil, fmt.Errorf("%w: %s is never used", ErrFormat, v.name)
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
		return nil, nil, fmt.Errorf("%w: the reconstruction has the shape %v, the images %v", ErrFormat, s, f.Image.Shape())
	}
	if s := f.Error.Shape(); !slices.Equal(s, []int{b.batch}) {
		return nil, nil, fmt.Errorf("%w: the errors have the shape %v for %d images", ErrFormat, s, b.batch)
	}
	ps := arch.Parameters()
	for _, p := range ps {
		f.Parameters = append(f.Parameters, b.parameters[p.Name])
	}
	return f, b.weights.Ordered(ps), nil
}
