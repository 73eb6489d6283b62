package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// result is one entry of `detect --json`: a verdict, or why there is none.
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
		folders  drawings
	)
	c := &cobra.Command{
		Use:   "detect --model model.zip IMAGE|FOLDER...",
		Short: "Judge images: exit 0 when all are normal, 1 when some are anomalous, 2 on an error",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, meta, err := readModel(model, metadata)
			if err != nil {
				return err
			}
			files, err := imageFiles(args)
			if err != nil {
				return err
			}
			e, err := engine.open()
			if err != nil {
				return err
			}
			threads := 0 // one image is judged by all threads, many by one each
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
			remarks := c.OutOrStdout()
			if asJSON {
				remarks = c.ErrOrStderr()
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(results)
			} else {
				err = printTable(c.OutOrStdout(), results)
			}
			if err != nil {
				return err
			}
			if s := shiftedVerdicts(d, meta, results); s != "" {
				fmt.Fprintln(remarks, s)
			}
			return statusOf(results)
		},
	}
	f := c.Flags()
	engine.add(c)
	f.StringVar(&model, "model", "", "the model: a zip from train, a .pt or an .onnx")
	f.StringVar(&metadata, "metadata", "", "a metadata.json that replaces the model's own measure, threshold and class names")
	f.BoolVar(&asJSON, "json", false, "print one JSON array")
	f.StringVar(&folders.heatmaps, "heatmap", "", "folder for a PNG of each image under its anomaly map")
	f.StringVar(&folders.pictures, "pictures", "", "folder for a PNG of each image: as the network saw it, rebuilt, and their difference")
	_ = c.MarkFlagRequired("model") // fails only for a flag that is not there
	return c
}

// readModel reads a model file, and the metadata.json that replaces its own.
func readModel(path, metadata string) (*models.Model, *models.Metadata, error) {
	limits := models.DefaultLimits()
	data, err := files.ReadAtMost(path, limits.MaxBytes)
	if err != nil {
		return nil, nil, err
	}
	m, err := models.Read(data, limits)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if metadata == "" {
		return m, nil, nil
	}
	if data, err = files.ReadAtMost(metadata, models.MaxMetadataBytes); err != nil {
		return nil, nil, err
	}
	meta, err := models.ParseMetadata(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", metadata, err)
	}
	return m, &meta, nil
}

// imageFiles lists the files named and the images below the folders named.
func imageFiles(args []string) ([]string, error) {
	var files []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil || !info.IsDir() {
			files = append(files, arg) // one that is not there gets its own entry
			continue
		}
		err = filepath.WalkDir(arg, func(p string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && dataset.IsImage(p) {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no images in %v", args)
	}
	return files, nil
}

func judgeFiles(ctx context.Context, d *inference.Detector, meta *models.Metadata, files []string, threads int, folders drawings) ([]result, error) {
	results := make([]result, len(files))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(threads)
	for i, file := range files {
		group.Go(func() error {
			results[i].File = file
			data, err := os.ReadFile(file)
			if err == nil {
				var v inference.Verdict
				if v, err = d.Detect(ctx, data, meta, imagefile.DefaultLimits()); err == nil {
					results[i].Verdict = &v
				}
			}
			if err == nil {
				err = folders.draw(ctx, d, meta, data, fmt.Sprintf("%04d-%s.png", i+1, filepath.Base(file)))
			}
			if err != nil {
				results[i].Verdict, results[i].Error = nil, err.Error()
			}
			return context.Cause(ctx)
		})
	}
	return results, group.Wait()
}

// drawings are the folders that images are drawn into, each empty for not at all.
type drawings struct{ pictures, heatmaps string }

// draw writes what is asked for of an image, under that name. meta is what the
// verdict goes by, so that the colours do, too.
func (f drawings) draw(ctx context.Context, d *inference.Detector, meta *models.Metadata, image []byte, name string) error {
	if f.pictures != "" {
		png, err := d.Picture(ctx, image, imagefile.DefaultLimits())
		if err == nil {
			err = writePNG(filepath.Join(f.pictures, name), png)
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
	return writePNG(filepath.Join(f.heatmaps, name), x.Heatmap)
}

func writePNG(path string, png []byte) error {
	return files.WriteAtomic(path, func(w io.Writer) error {
		_, err := w.Write(png)
		return err
	})
}

func printTable(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tERROR\tTHRESHOLD\tVERDICT")
	anomalous, failed := 0, 0
	for _, r := range results {
		switch {
		case r.Verdict == nil:
			failed++
			fmt.Fprintf(t, "%s\t\t\tcannot be judged: %s\n", r.File, r.Error)
		case r.IsAnomaly:
			anomalous++
			fmt.Fprintf(t, "%s\t%.6f\t%.6f\tANOMALY\n", r.File, r.ReconstructionError, r.Threshold)
		default:
			fmt.Fprintf(t, "%s\t%.6f\t%.6f\tnormal\n", r.File, r.ReconstructionError, r.Threshold)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d images: %d normal, %d anomalous, %d not judged\n",
		len(results), len(results)-anomalous-failed, anomalous, failed)
	return err
}

func statusOf(results []result) error {
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
