// Package verification checks that the ONNX export of a model computes what the
// network computes that was trained. It compares the export with the graph that
// internal/importer reads back from it: byte for byte, and by the anomaly scores
// that ONNX Runtime and Gorgonia's machine compute from the two.
//
// Flags, printing and exit statuses must not live here; they belong to cmd/anomaly.
// Neither must anything that a training or a verdict needs: only cmd/anomaly may
// import this package.
package verification

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/importer"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

const (
	// BaseTolerance is the largest relative difference between the scores of an
	// image of at most BaseSide×BaseSide pixels. Tolerance returns that of others.
	BaseTolerance = 1e-5
	// BaseSide is in pixels.
	BaseSide = 256
)

// PatternName is the File of the test pattern, which Verify compares when it is
// called without files.
const PatternName = "(pattern)"

// Tolerance returns the largest relative difference allowed between the scores of
// an image of that size.
//
// ONNX Runtime adds the squared errors of all pixels in one float32, so its
// rounding error grows with their number. Measured on noise, relative to the sum in
// float64: 7e-7 at 256 pixels, 1e-5 at 512, 8e-5 at 1024. Gorgonia adds axis by
// axis and stays below 3e-7.
func Tolerance(size models.Size) float64 {
	return BaseTolerance * max(1, float64(size.Area())/(BaseSide*BaseSide))
}

// Result is the outcome of Verify. Its JSON is printed by `anomaly verify --json`.
type Result struct {
	ModelSHA256 string `json:"model_sha256"`
	// SameGraph reports whether the export, read back and exported again, has the
	// same bytes.
	SameGraph bool    `json:"same_graph"`
	Images    []Image `json:"images"`
	// Compared is the number of Images with scores.
	Compared int `json:"compared"`
	// Largest is the largest relative difference of all images.
	Largest float64 `json:"largest_relative_difference"`
	// Tolerance is the upper bound of Largest in a model that agrees.
	Tolerance float64 `json:"tolerance"`
	// Agrees reports whether SameGraph is true, every image was compared, and
	// Largest is at most Tolerance. It is false if nothing was compared.
	Agrees bool `json:"agrees"`
}

// Image is the comparison of one image. Scores is nil when the image could not be
// compared; Error then holds the reason.
type Image struct {
	File string `json:"file"`
	*Scores
	Error string `json:"error,omitempty"`
}

// Scores are the anomaly scores of one image.
type Scores struct {
	// ONNXRuntime is the score of the exported file in ONNX Runtime.
	ONNXRuntime float64 `json:"reconstruction_error"`
	// Gorgonia is the score of the graph on Gorgonia's machine.
	Gorgonia float64 `json:"gorgonia_error"`
	// Served is the score that inference returns, which may use the operators of
	// internal/kernels.
	Served float64 `json:"served_error"`
}

// Difference returns the difference between the smallest and the largest score,
// relative to the larger absolute value of the two.
func (s Scores) Difference() float64 {
	low, high := min(s.ONNXRuntime, s.Gorgonia, s.Served), max(s.ONNXRuntime, s.Gorgonia, s.Served)
	if low == high {
		return 0
	}
	return (high - low) / max(math.Abs(low), math.Abs(high))
}

// Verify exports a model, reads the export back and compares the two, by their
// bytes and by the scores of the images in the files. Without files it compares the
// scores of a fixed test pattern. It calls step after each file.
//
// An image that cannot be read or compared is reported in its entry of the result.
// Verify returns an error when the model cannot be exported, read back or run, and
// when ctx ends. The context does not stop Gorgonia's machine, which takes seconds
// for an image of 256×256 pixels.
func Verify(ctx context.Context, e *ort.Engine, m *models.Model, paths []string, step func()) (*Result, error) {
	export, err := exporter.InferenceModel(m)
	if err != nil {
		return nil, err
	}
	r := &Result{ModelSHA256: m.SHA256, Tolerance: Tolerance(m.Input())}
	if r.SameGraph, err = sameGraph(export, m); err != nil {
		return nil, err
	}
	c, err := newComparer(e, m, export)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if len(paths) == 0 {
		scores, err := c.compare(ctx, pattern(c.exported.Layout()))
		r.add(PatternName, scores, err)
	}
	for _, file := range paths {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		scores, err := c.compareFile(ctx, file)
		r.add(file, scores, err)
		step()
	}
	r.conclude()
	return r, nil
}

// sameGraph reports whether an export that is read back and exported again has the
// same bytes.
func sameGraph(export []byte, m *models.Model) (bool, error) {
	graph, weights, err := importer.Read(export, 1)
	if err != nil {
		return false, fmt.Errorf("the export cannot be read back: %w", err)
	}
	reread := *m
	reread.Weights = weights
	again, err := exporter.Lower(graph, &reread)
	if err != nil {
		return false, fmt.Errorf("the graph read back cannot be exported: %w", err)
	}
	return bytes.Equal(again, export), nil
}

// add adds the entry of a file: its scores, or the reason why there are none.
func (r *Result) add(file string, s *Scores, err error) {
	i := Image{File: file, Scores: s}
	if err != nil {
		i = Image{File: file, Error: err.Error()}
	}
	r.Images = append(r.Images, i)
}

// conclude sets Compared, Largest and Agrees.
func (r *Result) conclude() {
	for _, i := range r.Images {
		if i.Scores != nil {
			r.Compared++
			r.Largest = max(r.Largest, i.Difference())
		}
	}
	r.Agrees = r.SameGraph && r.Compared > 0 && r.Compared == len(r.Images) && r.Largest <= r.Tolerance
}

// comparer computes the three scores of an image.
type comparer struct {
	exported, served *inference.Detector
	machine          *network.Machine
	planes           []float32 // 3×S×S, the input of machine
}

func newComparer(e *ort.Engine, m *models.Model, export []byte) (c *comparer, err error) {
	c = &comparer{}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.machine, err = newMachine(export, m); err != nil {
		return nil, err
	}
	if c.exported, err = inference.NewExportDetector(e, m, 0); err != nil {
		return nil, err
	}
	if c.served, err = inference.NewDetector(e, m, 0); err != nil {
		return nil, err
	}
	c.planes = make([]float32, models.InputChannels*c.exported.Size().Area())
	return c, nil
}

// newMachine returns Gorgonia's machine for the network read back from the export.
// The part of the graph that judges by the backbone's features is built anew,
// because importer does not read it.
func newMachine(export []byte, m *models.Model) (*network.Machine, error) {
	graph, weights, err := importer.Read(export, 1)
	if err != nil {
		return nil, err
	}
	if m.Reference == nil {
		return graph.Machine(weights)
	}
	return graph.JudgingMachine(weights, m.Reference)
}

func (c *comparer) close() {
	if c.served != nil {
		c.served.Close()
	}
	if c.exported != nil {
		c.exported.Close()
	}
	if c.machine != nil {
		c.machine.Close()
	}
}

func (c *comparer) compareFile(ctx context.Context, file string) (*Scores, error) {
	data, err := files.ReadAtMost(file, imagefile.DefaultLimits().MaxBytes)
	if err != nil {
		return nil, err
	}
	// The first tile of an image that is cut into tiles.
	pixels, _, err := c.exported.PrepareInput(data, imagefile.DefaultLimits(), false)
	if err != nil {
		return nil, err
	}
	return c.compare(ctx, pixels)
}

// compare takes a prepared image.
func (c *comparer) compare(ctx context.Context, pixels []byte) (*Scores, error) {
	var s Scores
	var err error
	if s.ONNXRuntime, err = c.exported.Score(ctx, pixels); err != nil {
		return nil, err
	}
	if s.Served, err = c.served.Score(ctx, pixels); err != nil {
		return nil, err
	}
	imagefile.Normalize(c.planes, pixels)
	if _, _, err := c.machine.Run(c.planes); err != nil {
		return nil, err
	}
	scores, err := c.machine.Scores()
	if err != nil {
		return nil, err
	}
	s.Gorgonia = float64(scores[0])
	if sum := s.ONNXRuntime + s.Gorgonia + s.Served; math.IsNaN(sum) || math.IsInf(sum, 0) {
		return nil, fmt.Errorf("the scores cannot be compared: %v in ONNX Runtime, %v in Gorgonia, %v in detect", s.ONNXRuntime, s.Gorgonia, s.Served)
	}
	return &s, nil
}

// pattern returns the test pattern, prepared: noise from a fixed seed. If the layout has a
// mask, the pixels of the upper left quarter are not judged.
func pattern(l imagefile.Layout) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	pixels := make([]byte, models.InputChannels*l.Area())
	for i := range pixels {
		pixels[i] = byte(r.UintN(256))
	}
	if !l.Deep && !l.Masked {
		return pixels
	}
	out := make([]byte, l.Bytes())
	mask := l.Mask(out)
	for i := range mask {
		if i%l.W >= l.W/2 || i/l.W >= l.H/2 {
			mask[i] = 1
		}
	}
	l.Paint(out, slices.Clone(out), make([]byte, len(pixels)), pixels)
	return out
}
