package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"text/tabwriter"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// result is one entry of `detect --json`: a verdict, or the reason why there is
// none.
type result struct {
	File string `json:"file"`
	*inference.Verdict
	Error string `json:"error,omitempty"`
}

func detectCommand() *cobra.Command {
	var (
		engine   engineFlags
		model    string
		metadata string
		asJSON   bool
		folders  drawingFolders
	)
	c := &cobra.Command{
		Use:   "detect --model MODEL IMAGE|FOLDER...",
		Short: "Judge images: exit 0 if all are normal, 1 if some are anomalous, 2 on an error",
		Long: "Prints a verdict for each image, as a table or as JSON. An image that cannot be read, for instance because its\n" +
			"format is not (HEIC), has an entry with the reason, and the exit status is 2.\n" +
			"Of 20 images or more, reports when their scores differ from those of the model's calibration.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, meta, err := readModel(model, metadata)
			if err != nil {
				return err
			}
			files, passedOver, err := imageFiles(args)
			if err != nil {
				return err
			}
			e, err := engine.open()
			if err != nil {
				return err
			}
			threads := 0 // all threads for a single image, one thread for each of several
			if len(files) > 1 {
				threads = 1
			}
			d, err := inference.NewDetector(e, m, threads)
			if err != nil {
				return err
			}
			defer d.Close()
			results, err := judgeFiles(c.Context(), d, meta, files, e.Threads(), folders)
			if err != nil {
				return err
			}
			warnings := c.OutOrStdout()
			if asJSON {
				warnings = c.ErrOrStderr()
				err = printJSON(c.OutOrStdout(), results)
			} else {
				err = printVerdicts(c.OutOrStdout(), results)
			}
			if err != nil {
				return err
			}
			for _, s := range passedOver {
				fmt.Fprintln(warnings, s)
			}
			if s := verdictShiftWarning(d, meta, results); s != "" {
				fmt.Fprintln(warnings, s)
			}
			return verdictStatus(results)
		},
	}
	f := c.Flags()
	engine.add(c)
	f.StringVar(&model, "model", "", "model: a zip of a training, a .pt or an .onnx")
	f.StringVar(&metadata, "metadata", "", "metadata.json to judge by instead of the model's own: measure, threshold and class names")
	addJSON(c, &asJSON)
	f.StringVar(&folders.heatmaps, "heatmap", "", "folder for a PNG per image: the image under its anomaly map, in colours that have the same meaning for all images of a model")
	f.StringVar(&folders.pictures, "pictures", "", "folder for a PNG per image: the network's input, the autoencoder's reconstruction, and ten times their difference")
	_ = c.MarkFlagRequired("model") // fails only for an unknown flag
	return c
}

// judgeFiles judges that number of files at a time.
func judgeFiles(ctx context.Context, d *inference.Detector, meta *models.Metadata, files []input, parallel int, folders drawingFolders) ([]result, error) {
	results := make([]result, len(files))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, file := range files {
		group.Go(func() error {
			results[i].File = file.path
			data, err := file.read()
			if err == nil {
				var v inference.Verdict
				if v, err = d.Detect(ctx, data, meta, imagefile.DefaultLimits()); err == nil {
					results[i].Verdict = &v
				}
			}
			if err == nil {
				err = folders.draw(ctx, d, meta, data, fmt.Sprintf("%04d-%s.png", i+1, filepath.Base(file.path)))
			}
			if err != nil {
				results[i].Verdict, results[i].Error = nil, printable(err)
			}
			return context.Cause(ctx)
		})
	}
	return results, group.Wait()
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

func printVerdicts(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tERROR\tTHRESHOLD\tVERDICT")
	anomalous, failed := 0, 0
	for _, r := range results {
		name := dataset.Printable(r.File)
		switch {
		case r.Verdict == nil:
			failed++
			fmt.Fprintf(t, "%s\t\t\tcannot be judged: %s\n", name, r.Error)
		case r.IsAnomaly:
			anomalous++
			fmt.Fprintf(t, "%s\t%.6f\t%.6f\tANOMALY\n", name, r.ReconstructionError, r.Threshold)
		default:
			fmt.Fprintf(t, "%s\t%.6f\t%.6f\tnormal\n", name, r.ReconstructionError, r.Threshold)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d images: %d normal, %d anomalous, %d not judged\n",
		len(results), len(results)-anomalous-failed, anomalous, failed)
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
