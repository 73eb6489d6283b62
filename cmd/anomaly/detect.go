package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/bulk"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// result is one entry of `detect --json`.
type result = bulk.Line

// stdinName is the name of an image that is read from standard input.
const stdinName = "-"

func detectCommand() *cobra.Command {
	var (
		engine    engineFlags
		model     string
		metadata  string
		threshold float64
		asJSON    bool
		folders   drawingFolders
	)
	c := &cobra.Command{
		Use:   "detect --model MODEL IMAGE|FOLDER|-...",
		Short: "Judge images: exit 0 if all are normal, 1 if some are anomalous, 2 on an error",
		Long: "Prints a verdict for each image, as a table or as JSON. An image that cannot be read, for instance because its\n" +
			"format is not (HEIC), has an entry with the reason, and the exit status is 2.\n" +
			"The image named - is read from standard input. Of 20 images or more, reports when their scores differ from those\n" +
			"of the model's calibration. An interrupt (Ctrl-C) prints the verdicts so far and exits with 2; a second ends at once.",
		SuggestFor: []string{"predict", "infer", "judge", "score"},
		Args:       cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, meta, err := readModel(model, metadata)
			if err != nil {
				return err
			}
			for _, s := range models.OverrideWarnings(m, meta) {
				printRemarks(c.ErrOrStderr(), nil, []string{s + ", or use --threshold"})
			}
			if c.Flags().Changed("threshold") {
				var ok bool
				if meta, ok = m.Metadata.WithThreshold(threshold); !ok {
					return fmt.Errorf("--threshold is %v, expected a finite number of 0 or more", threshold)
				}
			}
			inputs, passedOver, err := imageFiles(args)
			if err != nil {
				return err
			}
			if i := slices.IndexFunc(inputs, input.isStdin); i >= 0 && slices.ContainsFunc(inputs[i+1:], input.isStdin) {
				return errors.New("- is named twice; standard input holds one image")
			}
			e, err := engine.open()
			if err != nil {
				return err
			}
			threads := 0 // all threads for a single image, one thread for each of several
			if len(inputs) > 1 {
				threads = 1
			}
			d, err := inference.NewDetector(e, m, threads)
			if err != nil {
				return err
			}
			defer d.Close()
			step, end := fileProgress(c.ErrOrStderr(), len(inputs))
			results := judgeFiles(c.Context(), inputs, e.Threads(), interruptGrace, func(ctx context.Context, i int) (*inference.Verdict, error) {
				defer step()
				data, err := readImage(inputs[i], c.InOrStdin())
				if err != nil {
					return nil, err
				}
				v, err := d.Detect(ctx, data, meta, imagefile.DefaultLimits())
				if err != nil {
					return nil, err
				}
				return &v, folders.draw(ctx, d, meta, data, drawingName(i, inputs[i].path))
			})
			end()
			warnings := c.OutOrStdout()
			if asJSON {
				warnings = c.ErrOrStderr()
				err = printJSON(c.OutOrStdout(), results)
			} else {
				err = printVerdicts(c.OutOrStdout(), results, len(inputs))
			}
			if err != nil {
				return err
			}
			for _, s := range passedOver {
				fmt.Fprintln(warnings, s)
			}
			if s := framesWarning(results); s != "" {
				fmt.Fprintln(warnings, s)
			}
			if s := verdictShiftWarning(d, meta, results); s != "" {
				fmt.Fprintln(warnings, s)
			}
			if c.Flags().Changed("threshold") {
				measure, own := m.Metadata.Measure()
				fmt.Fprintf(warnings, "judged by --threshold %g (%s); the model's own threshold is %g\n", threshold, measure, own)
			}
			if len(results) < len(inputs) {
				if asJSON {
					fmt.Fprintln(warnings, interruption(len(results), len(inputs)))
				}
				return exitStatus(exitError)
			}
			return verdictStatus(results)
		},
	}
	f := c.Flags()
	engine.add(c)
	f.StringVar(&model, "model", "", "model: a zip of a training, a .pt or an .onnx")
	f.StringVar(&metadata, "metadata", "", "metadata.json to judge by instead of the model's own: measure, threshold and class names")
	f.Float64Var(&threshold, "threshold", 0, "threshold of the model's own measure to judge by, 0 or more; excludes --metadata (default: the model's)")
	addJSON(c, &asJSON)
	f.StringVar(&folders.heatmaps, "heatmap", "", "folder for a PNG per image: the image under its anomaly map, in colours that have the same meaning for all images of a model")
	f.StringVar(&folders.pictures, "pictures", "", "folder for a PNG per image: the network's input, the autoencoder's reconstruction, and ten times their difference")
	_ = c.MarkFlagRequired("model") // fails only for an unknown flag
	c.MarkFlagsMutuallyExclusive("metadata", "threshold")
	return c
}

// framesWarning returns a sentence about DICOM files with several frames, or "".
func framesWarning(results []result) string {
	n := 0
	for _, r := range results {
		if r.Verdict != nil && r.Verdict.Frames > 1 {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("only the first frame is judged of each DICOM file with several (%d of the files)", n)
}

// isStdin reports whether the command line names standard input.
func (i input) isStdin() bool { return i.named && i.path == stdinName }

// readImage returns the content of an image file, or of stdin if the input is that. It
// returns one byte more than the limit of an image at most.
func readImage(i input, stdin io.Reader) ([]byte, error) {
	if i.isStdin() {
		return io.ReadAll(io.LimitReader(stdin, imagefile.DefaultLimits().MaxBytes+1))
	}
	return i.read()
}

// judgeFiles calls judge for the index of each file, parallel calls at a time, and
// returns the results in the order of the files. When ctx ends, it returns the results so
// far after grace at most: a read may hang.
func judgeFiles(ctx context.Context, inputs []input, parallel int, grace time.Duration, judge func(ctx context.Context, i int) (*inference.Verdict, error)) []result {
	var mu sync.Mutex
	judged := make([]*result, len(inputs))
	var group errgroup.Group
	group.SetLimit(parallel)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i, in := range inputs {
			group.Go(func() error {
				if ctx.Err() != nil {
					return nil
				}
				v, err := judge(ctx, i)
				r := &result{File: in.path, Verdict: v}
				if err != nil {
					r = &result{File: in.path, Error: printable(err)}
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil || ctx.Err() == nil { // else it was interrupted
					judged[i] = r
				}
				return nil
			})
		}
		_ = group.Wait() // the functions return nil
	}()
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(grace):
		}
	}
	mu.Lock()
	defer mu.Unlock()
	results := []result{} // in JSON, nil is null
	for _, r := range judged {
		if r != nil {
			results = append(results, *r)
		}
	}
	return results
}

// drawingFolders are the folders for drawings of images. An empty one disables its
// kind of drawing.
type drawingFolders struct{ pictures, heatmaps string }

// draw writes the drawings of an image under a name. meta is the metadata of the
// verdict, because the colours of a heatmap depend on its threshold.
func (f drawingFolders) draw(ctx context.Context, d *inference.Detector, meta *models.Metadata, image []byte, name string) error {
	if f.pictures != "" {
		png, err := d.Picture(ctx, image, imagefile.DefaultLimits())
		if err == nil {
			err = writeFile(filepath.Join(f.pictures, name), png)
		}
		if err != nil {
			return err
		}
	}
	if f.heatmaps == "" {
		return nil
	}
	x, err := d.Explain(ctx, image, meta, imagefile.DefaultLimits())
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(f.heatmaps, name), x.Heatmap)
}

// drawingName returns the name of the drawing of file i.
func drawingName(i int, file string) string {
	if file == stdinName {
		file = "stdin"
	}
	return fmt.Sprintf("%04d-%s.png", i+1, filepath.Base(file))
}

// interruption returns the sentence for an interrupt after the number of files judged.
func interruption(judged, files int) string {
	return fmt.Sprintf("interrupted after %d of %d images", judged, files)
}

// printVerdicts prints the results. There are fewer results than files if the command was
// interrupted.
func printVerdicts(w io.Writer, results []result, files int) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tERROR\tTHRESHOLD\tVERDICT")
	anomalous, failed := 0, 0
	for _, r := range results {
		switch {
		case r.Verdict == nil:
			failed++
			fmt.Fprintf(t, "%s\t\t\tcannot be judged: %s\n", quoted(r.File), escaped(r.Error))
		case r.IsAnomaly:
			anomalous++
			fmt.Fprintf(t, "%s\t%.6f\t%.6f\tANOMALY\n", quoted(r.File), r.ReconstructionError, r.Threshold)
		default:
			fmt.Fprintf(t, "%s\t%.6f\t%.6f\tnormal\n", quoted(r.File), r.ReconstructionError, r.Threshold)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	counted := fmt.Sprintf("%d images", files)
	if files == 1 {
		counted = "1 image"
	}
	if len(results) < files {
		counted = interruption(len(results), files)
	}
	_, err := fmt.Fprintf(w, "%s: %d normal, %d anomalous, %d not judged\n",
		counted, len(results)-anomalous-failed, anomalous, failed)
	return err
}

func verdictStatus(results []result) error {
	status := exitNormal
	for _, r := range results {
		switch {
		case r.Verdict == nil:
			return exitStatus(exitError)
		case r.IsAnomaly:
			status = exitAnomaly
		}
	}
	if status == exitNormal {
		return nil
	}
	return exitStatus(status)
}
