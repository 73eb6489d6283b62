package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"text/tabwriter"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/importer"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

// Of images up to agreementSide×agreementSide pixels the two engines' errors may
// be agreement apart, as a share of the larger, of larger ones more.
const (
	agreement     = 1e-5
	agreementSide = 256
)

// allowed is how far the errors of images of that side may be apart, relatively.
// ONNX Runtime adds up all of an image's squares in one float32, whose rounding
// grows with their number: on noise by 7e-7 at 256 pixels, 1e-5 at 512, 8e-5 at
// 1024, of the sum in float64. Gorgonia adds up axis by axis and stays below 3e-7.
func allowed(side int) float64 {
	return agreement * max(1, float64(side*side)/(agreementSide*agreementSide))
}

// patternName stands for a file's name where none is named.
const patternName = "(pattern)"

// verification is what `verify --json` prints.
type verification struct {
	ModelSHA256 string `json:"model_sha256"`
	// SameGraph says whether the export that was read back is exported to the
	// same bytes.
	SameGraph bool         `json:"same_graph"`
	Images    []comparison `json:"images"`
	Largest   float64      `json:"largest_relative_difference"`
	// Tolerance is what Largest may be.
	Tolerance float64 `json:"tolerance"`
	// Agrees says whether the graph is the same, every image was compared, and
	// no difference is beyond Tolerance.
	Agrees bool `json:"agrees"`
}

// comparison is what both engines say of an image, or why they say nothing.
type comparison struct {
	File string `json:"file"`
	*measured
	Error string `json:"error,omitempty"`
}

type measured struct {
	// ONNXRuntime is what it gives for the export, Gorgonia its machine for the graph,
	// and Served what detect says, by the operators that it has for this machine.
	ONNXRuntime float64 `json:"reconstruction_error"`
	Gorgonia    float64 `json:"gorgonia_error"`
	Served      float64 `json:"served_error"`
}

// difference is that of the errors that are furthest apart, as a share of the largest.
func (m measured) difference() float64 {
	low, high := min(m.ONNXRuntime, m.Gorgonia, m.Served), max(m.ONNXRuntime, m.Gorgonia, m.Served)
	if low == high {
		return 0
	}
	return (high - low) / max(math.Abs(low), math.Abs(high))
}

func verifyCommand() *cobra.Command {
	var (
		engine engineFlags
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "verify MODEL [IMAGE|FOLDER...]",
		Short: "Check that an exported model says what the network says: exit 0 when it does, 1 when not, 2 on an error",
		Long: "Exports the model to ONNX, reads the export back with an independent decoder into the graph that the\n" +
			"trainer builds, and exports that again: the bytes must be the same. Then ONNX Runtime computes the errors\n" +
			"of the images from the export, Gorgonia's machine from the graph, and detect as it always does:\n" +
			fmt.Sprintf("they may be %g apart, relatively,\n", agreement) +
			fmt.Sprintf("and above %d×%d pixels more, as rounding grows. Without images a fixed pattern is taken.\n\n", agreementSide, agreementSide) +
			"Gorgonia's machine is plain Go and slow: an image of 256×256 pixels takes it seconds, and four times as\n" +
			"long for twice the side. A few images are enough.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, _, err := readModel(args[0], "")
			if err != nil {
				return err
			}
			var files []string
			if len(args) > 1 {
				if files, err = imageFiles(args[1:]); err != nil {
					return err
				}
			}
			e, err := engine.open()
			if err != nil {
				return err
			}
			v, err := uninterrupted(c.Context(), func() (verification, error) {
				return verify(c.Context(), e, m, files, steps(c.ErrOrStderr(), len(files)))
			})
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(v)
			} else {
				err = v.print(c.OutOrStdout())
			}
			if err != nil {
				return err
			}
			return v.status()
		},
	}
	engine.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// uninterrupted gives what f does, or an error as soon as the context ends:
// Gorgonia's machine cannot be stopped, and the program is about to exit.
func uninterrupted[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		v, err := f()
		done <- outcome{v, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, errors.New("interrupted; nothing was verified")
	}
}

// verify compares the model's export with the graph that it is read back to, by
// its bytes and by what both say of the images. It calls step after each image.
func verify(ctx context.Context, e *ort.Engine, m *models.Model, files []string, step func()) (verification, error) {
	v := verification{ModelSHA256: m.SHA256, Tolerance: allowed(m.ImageSize)}
	export, err := exporter.InferenceModel(m)
	if err != nil {
		return v, err
	}
	graph, weights, err := importer.Read(export, 1)
	if err != nil {
		return v, fmt.Errorf("the export cannot be read back: %w", err)
	}
	reread := *m
	reread.Weights = weights
	again, err := exporter.Lower(graph, &reread)
	if err != nil {
		return v, fmt.Errorf("what was read back cannot be exported: %w", err)
	}
	v.SameGraph = bytes.Equal(again, export)

	machine, err := gorgonias(export, m)
	if err != nil {
		return v, err
	}
	defer machine.Close()
	d, err := inference.NewExportDetector(e, m, 0)
	if err != nil {
		return v, err
	}
	defer d.Close()
	serving, err := inference.NewDetector(e, m, 0)
	if err != nil {
		return v, err
	}
	defer serving.Close()
	planes := make([]float32, models.InputChannels*d.Side()*d.Side())
	compare := func(pixels []byte) (*measured, error) {
		figure, err := d.Score(ctx, pixels)
		if err != nil {
			return nil, err
		}
		served, err := serving.Score(ctx, pixels)
		if err != nil {
			return nil, err
		}
		imagefile.Normalize(planes, pixels)
		if _, _, err := machine.Run(planes); err != nil {
			return nil, err
		}
		figures, err := machine.Scores()
		if err != nil {
			return nil, err
		}
		r := &measured{ONNXRuntime: figure, Gorgonia: float64(figures[0]), Served: served}
		if sum := r.ONNXRuntime + r.Gorgonia + r.Served; math.IsNaN(sum) || math.IsInf(sum, 0) {
			return nil, fmt.Errorf("the errors %v of ONNX Runtime and %v of Gorgonia are no numbers to compare", r.ONNXRuntime, r.Gorgonia)
		}
		return r, nil
	}
	add := func(file string, pixels []byte, err error) {
		c := comparison{File: file}
		if err == nil {
			c.measured, err = compare(pixels)
		}
		if err != nil {
			c.Error = err.Error()
		}
		v.Images = append(v.Images, c)
	}
	if len(files) == 0 {
		add(patternName, pattern(d.Side()), nil)
	}
	for _, file := range files {
		if err := context.Cause(ctx); err != nil {
			return v, err
		}
		data, err := os.ReadFile(file)
		var pixels []byte
		if err == nil {
			pixels, err = imagefile.Prepare(data, d.Side(), imagefile.DefaultLimits())
		}
		add(file, pixels, err)
		step()
	}
	v.conclude()
	return v, nil
}

// gorgonias is Gorgonia's machine for the network that the export is read back to,
// and for what judges images beside it, which is built again.
func gorgonias(export []byte, m *models.Model) (*network.Machine, error) {
	graph, weights, err := importer.Read(export, 1)
	if err != nil {
		return nil, err
	}
	if m.Reference == nil {
		return graph.Machine(weights)
	}
	return graph.JudgingMachine(weights, m.Reference)
}

// conclude fills in what follows from the graph and the images.
func (v *verification) conclude() {
	v.Agrees = v.SameGraph
	for _, c := range v.Images {
		if c.measured != nil {
			v.Largest = max(v.Largest, c.difference())
		}
		v.Agrees = v.Agrees && c.measured != nil && c.difference() <= v.Tolerance
	}
}

// pattern is an image, the same in every run, that keeps every pixel of a
// network busy.
func pattern(side int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	pixels := make([]byte, models.InputChannels*side*side)
	for i := range pixels {
		pixels[i] = byte(r.UintN(256))
	}
	return pixels
}

func (v verification) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tONNX RUNTIME\tGORGONIA\tDETECT\tDIFFERENCE")
	for _, c := range v.Images {
		if c.measured == nil {
			fmt.Fprintf(t, "%s\t\t\t\tcannot be compared: %s\n", c.File, c.Error)
		} else {
			fmt.Fprintf(t, "%s\t%.9f\t%.9f\t%.9f\t%.1e\n", c.File, c.ONNXRuntime, c.Gorgonia, c.Served, c.difference())
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	graph := map[bool]string{true: "read back and exported again, the bytes are the same", false: "READ BACK AND EXPORTED AGAIN, THE BYTES DIFFER"}[v.SameGraph]
	word := map[bool]string{true: "agrees", false: "DOES NOT AGREE"}[v.Agrees]
	_, err := fmt.Fprintf(w, "%s; largest relative difference %.1e, at most %.1e is allowed: %s\n", graph, v.Largest, v.Tolerance, word)
	return err
}

func (v verification) status() error {
	for _, c := range v.Images {
		if c.measured == nil {
			return exitStatus(exitError)
		}
	}
	if !v.Agrees {
		return exitStatus(exitAnomaly)
	}
	return nil
}

// steps shows a bar on a terminal, and nothing elsewhere.
func steps(w io.Writer, n int) func() {
	if n < 2 || !isTerminal(w) {
		return func() {}
	}
	bar := progressbar.NewOptions(n, progressbar.OptionSetWriter(w), progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(true), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())
	_ = bar.RenderBlank() // before the first image, which takes a while
	return func() { _ = bar.Add(1) }
}
