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

// detectOptions are the flags of detect.
type detectOptions struct {
	engine          engineFlags
	client          serviceClient
	model, metadata string
	threshold       float64
	moved           bool // threshold is set
	asJSON, asCSV   bool
	folders         drawingFolders
}

func detectCommand() *cobra.Command {
	var o detectOptions
	c := &cobra.Command{
		Use:   "detect --model MODEL IMAGE|FOLDER|-...",
		Short: "Judge images: exit 0 if all are normal, 1 if some are anomalous, 2 on an error",
		Long: "Prints a verdict for each image, as a table, as JSON or as CSV. An image that cannot be read, for instance because its\n" +
			"format is not (HEIC), has an entry with the reason, and the exit status is 2. Each frame of a DICOM file is an\n" +
			"image, with its number after the name: scan.dcm#7.\n" +
			"The image named - is read from standard input. Of 20 images or more, reports when their scores differ from those\n" +
			"of the model's calibration. An interrupt (Ctrl-C) prints the verdicts so far and exits with 2; a second ends at once.\n" +
			"With --server, a service judges the images of one folder as a job, by its model of the name MODEL, and the output is\n" +
			"the same. The job is removed afterwards, and cancelled by an interrupt.",
		SuggestFor: []string{"predict", "infer", "judge", "score"},
		Args:       cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.moved = c.Flags().Changed("threshold")
			if o.client.server != "" {
				return o.judgeThere(c, args)
			}
			return o.judgeHere(c, args)
		},
	}
	f := c.Flags()
	o.engine.add(c)
	f.StringVar(&o.model, "model", "", "model: a zip of a training, a .pt or an .onnx; with --server the name of one")
	f.StringVar(&o.metadata, "metadata", "", "metadata.json to judge by instead of the model's own: measure, threshold and class names")
	f.Float64Var(&o.threshold, "threshold", 0, "threshold of the model's own measure to judge by, 0 or more; excludes --metadata (default: the model's)")
	addJSON(c, &o.asJSON)
	f.BoolVar(&o.asCSV, "csv", false, "print CSV")
	f.StringVar(&o.folders.heatmaps, "heatmap", "", "folder for a PNG per image: the image under its anomaly map, in colours that have the same meaning for all images of a model")
	f.StringVar(&o.folders.pictures, "pictures", "", "folder for a PNG per image: the network's input, the autoencoder's reconstruction, and ten times their difference")
	f.StringVar(&o.client.server, "server", "", "`URL` of a service that judges the images of one folder (default: they are judged here)")
	f.StringVar(&o.client.tokenFile, "token-file", "", "file with the service's token (default: no token)")
	_ = c.MarkFlagRequired("model") // fails only for an unknown flag
	c.MarkFlagsMutuallyExclusive("metadata", "threshold")
	c.MarkFlagsMutuallyExclusive("json", "csv")
	for _, flag := range []string{"metadata", "heatmap", "pictures"} {
		c.MarkFlagsMutuallyExclusive("server", flag)
	}
	return c
}

// judgeFrames returns the results of a file: one, or one for each frame of a DICOM file of
// several. It calls judge with the number of each image, from 0, and its name.
func judgeFrames(d *inference.Detector, data []byte, path string, judge func(f *imagefile.Frames, i int, name string) (*inference.Verdict, error)) []result {
	f, err := d.Open(data, imagefile.DefaultLimits())
	if err != nil {
		return []result{{File: path, Error: printable(err)}}
	}
	results := make([]result, f.Len())
	for i := range results {
		name := bulk.FrameName(path, i, f.Len())
		v, err := judge(f, i, name)
		if results[i] = (result{File: name, Verdict: v}); err != nil {
			results[i] = result{File: name, Error: printable(err)}
		}
	}
	return results
}

// judgeHere judges images in this process.
func (o *detectOptions) judgeHere(c *cobra.Command, args []string) error {
	m, meta, err := readModel(o.model, o.metadata)
	if err != nil {
		return err
	}
	for _, s := range models.OverrideWarnings(m, meta) {
		printRemarks(c.ErrOrStderr(), nil, []string{s + ", or use --threshold"})
	}
	if o.moved {
		if meta, err = o.moveThreshold(m.Metadata); err != nil {
			return err
		}
	}
	inputs, remarks, err := imageFiles(args)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(inputs, input.isStdin); i >= 0 && slices.ContainsFunc(inputs[i+1:], input.isStdin) {
		return errors.New("- is named twice; standard input holds one image")
	}
	e, err := o.engine.open()
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
	results, judged := judgeFiles(c.Context(), inputs, e.Threads(), interruptGrace, func(ctx context.Context, i int) []result {
		defer step()
		data, err := readImage(inputs[i], c.InOrStdin())
		if err != nil {
			return []result{{File: inputs[i].path, Error: printable(err)}}
		}
		return judgeFrames(d, data, inputs[i].path, func(f *imagefile.Frames, k int, name string) (*inference.Verdict, error) {
			v, err := d.DetectFrame(ctx, f, k, meta)
			if err != nil {
				return nil, err
			}
			return &v, o.folders.draw(ctx, d, meta, f, k, drawingName(i, name))
		})
	})
	end()
	if meta == nil {
		meta = &m.Metadata
	}
	return o.report(c, results, judged, len(inputs), remarks, &m.Metadata, meta)
}

// moveThreshold returns the metadata with the threshold of --threshold.
func (o *detectOptions) moveThreshold(own models.Metadata) (*models.Metadata, error) {
	meta, ok := own.WithThreshold(o.threshold)
	if !ok {
		return nil, fmt.Errorf("--threshold is %v, expected a finite number of 0 or more", o.threshold)
	}
	return meta, nil
}

// report prints the results and remarks about them, and returns the exit status. own is the
// model's metadata, and meta those that the results were judged by. The results are of judged
// files, fewer than files if the command was interrupted.
func (o *detectOptions) report(c *cobra.Command, results []result, judged, files int, remarks []string, own, meta *models.Metadata) error {
	to, err := c.ErrOrStderr(), error(nil)
	switch {
	case o.asJSON:
		err = printJSON(c.OutOrStdout(), results)
	case o.asCSV:
		err = printCSV(c.OutOrStdout(), results)
	default:
		to, err = c.OutOrStdout(), printVerdicts(c.OutOrStdout(), results, judged, files)
	}
	if err != nil {
		return err
	}
	if s := verdictShiftWarning(meta, results); s != "" {
		remarks = append(remarks, s)
	}
	for _, s := range remarks {
		fmt.Fprintln(to, s)
	}
	if o.moved {
		measure, threshold := own.Measure()
		fmt.Fprintf(to, "judged by --threshold %g (%s); the model's own threshold is %g\n", o.threshold, measure, threshold)
	}
	if judged < files {
		if o.asJSON || o.asCSV {
			fmt.Fprintln(to, interruption(judged, files))
		}
		return exitStatus(exitError)
	}
	return verdictStatus(results)
}

func printCSV(w io.Writer, results []result) error {
	csv := bulk.NewCSVWriter(w)
	for _, r := range results {
		if err := csv.Write(r); err != nil {
			return err
		}
	}
	return csv.Flush()
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

// judgeFiles calls judge for the index of each file, parallel calls at a time. It returns
// the results in the order of the files, and the number of files that they are of. When ctx
// ends, it returns the results so far after grace at most: a read may hang.
func judgeFiles(ctx context.Context, inputs []input, parallel int, grace time.Duration, judge func(ctx context.Context, i int) []result) (results []result, files int) {
	var mu sync.Mutex
	judged := make([][]result, len(inputs))
	var group errgroup.Group
	group.SetLimit(parallel)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range inputs {
			group.Go(func() error {
				if ctx.Err() != nil {
					return nil
				}
				of := judge(ctx, i)
				failed := slices.ContainsFunc(of, func(r result) bool { return r.Error != "" })
				mu.Lock()
				defer mu.Unlock()
				if !failed || ctx.Err() == nil { // else it was interrupted
					judged[i] = of
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
	results = []result{} // in JSON, nil is null
	for _, of := range judged {
		if results = append(results, of...); of != nil {
			files++
		}
	}
	return results, files
}

// drawingFolders are the folders for drawings of images. An empty one disables its
// kind of drawing.
type drawingFolders struct{ pictures, heatmaps string }

// draw writes the drawings of image i of a file under a name. meta is the metadata of the
// verdict, because the colours of a heatmap depend on its threshold.
func (f drawingFolders) draw(ctx context.Context, d *inference.Detector, meta *models.Metadata, images *imagefile.Frames, i int, name string) error {
	if f.pictures != "" {
		png, err := d.Picture(ctx, images, i)
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
	x, err := d.ExplainFrame(ctx, images, i, meta)
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

// printVerdicts prints the results, which are of the number judged of the files. It is lower
// if the command was interrupted.
func printVerdicts(w io.Writer, results []result, judged, files int) error {
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
	counted := fmt.Sprintf("%d images", len(results))
	if len(results) == 1 {
		counted = "1 image"
	}
	if judged < files {
		counted = interruption(judged, files)
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
