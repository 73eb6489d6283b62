package evaluation

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"golang.org/x/sync/errgroup"
)

// The folders of a data set in the layout of MVTec AD.
const (
	// TrainFolder has the normal images for training.
	TrainFolder = "train/good"
	testFolder  = "test"
	goodFolder  = "good"
)

// ErrDataset is returned when a folder is not a data set for evaluation.
var ErrDataset = errors.New("not a data set to evaluate on: expected test/good and test/<defect>")

// Set is the list of a data set's test images: normal images, and each kind of defect.
type Set struct {
	Good    []string
	Defects []Defect
}

// Defect is a kind of defect and its images.
type Defect struct {
	Name  string
	Files []string
	// Masks are the ground-truth masks of Files; nil when there are none.
	Masks []string
}

// Masked reports whether any kind of defect has masks.
func (s *Set) Masked() bool {
	return slices.ContainsFunc(s.Defects, func(d Defect) bool { return d.Masks != nil })
}

// Open lists the test images of a data set and the masks in its folder ground_truth. It
// returns ErrDataset, wrapped, when there are no normal images or no defects, and
// ErrMask, wrapped, when only some images of a defect have a mask.
func Open(folder string) (*Set, error) {
	entries, err := os.ReadDir(filepath.Join(folder, testFolder))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDataset, err)
	}
	s := &Set{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		files, err := images(filepath.Join(folder, testFolder, e.Name()))
		if err != nil {
			return nil, err
		}
		switch {
		case len(files) == 0:
		case e.Name() == goodFolder:
			s.Good = files
		default:
			masks, err := masks(folder, e.Name(), files)
			if err != nil {
				return nil, err
			}
			s.Defects = append(s.Defects, Defect{e.Name(), files, masks})
		}
	}
	if len(s.Good) == 0 || len(s.Defects) == 0 {
		return nil, fmt.Errorf("%w: %s has %d normal images and %d kinds of defects", ErrDataset, folder, len(s.Good), len(s.Defects))
	}
	return s, nil
}

// images returns the image files in a folder and its subfolders.
func images(folder string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && dataset.IsImage(p) {
			files = append(files, p)
		}
		return err
	})
	return files, err
}

// Judged is an image with its anomaly score and verdict.
type Judged struct {
	File      string  `json:"file"`
	Score     float64 `json:"reconstruction_error"`
	IsAnomaly bool    `json:"is_anomaly"`
}

// Score scores files, at most threads of them concurrently. An unreadable image is an
// error, since metrics without it would be misleading.
func Score(ctx context.Context, d *inference.Detector, files []string, threads int) ([]Judged, error) {
	out := make([]Judged, len(files))
	return out, eachFile(ctx, files, threads, func(ctx context.Context, i int, data []byte) error {
		v, err := d.Detect(ctx, data, nil, imagefile.DefaultLimits())
		if err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
		out[i] = Judged{files[i], v.ReconstructionError, v.IsAnomaly}
		return nil
	})
}

// readImage returns the content of an image file. Of one that is too large it returns
// only one byte more than the decoder accepts.
func readImage(file string) ([]byte, error) {
	return files.ReadAtMost(file, imagefile.DefaultLimits().MaxBytes)
}

// eachFile calls f with the content of each file, at most threads times concurrently.
// It returns the first error.
func eachFile(ctx context.Context, files []string, threads int, f func(ctx context.Context, i int, data []byte) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(threads)
	for i, file := range files {
		group.Go(func() error {
			data, err := readImage(file)
			if err != nil {
				return err
			}
			return f(ctx, i, data)
		})
	}
	return group.Wait()
}

// Evaluate scores a data set with a model and computes the metrics. It returns ErrMask,
// wrapped, when a mask is unusable.
func Evaluate(ctx context.Context, d *inference.Detector, s *Set, threads int) (*Result, error) {
	good, err := Score(ctx, d, s.Good, threads)
	if err != nil {
		return nil, err
	}
	measure, threshold := d.Model().Metadata.Measure()
	r := &Result{Measure: measure, Threshold: threshold, Normal: len(good), good: good}
	r.FalseAlarms = anomalousShare(good)
	for _, defect := range s.Defects {
		bad, err := Score(ctx, d, defect.Files, threads)
		if err != nil {
			return nil, err
		}
		f := computeFigures(scores(good), scores(bad))
		f.Name, f.Images, f.Hits = defect.Name, len(bad), anomalousShare(bad)
		r.Defects = append(r.Defects, f)
		r.bad = append(r.bad, bad...)
	}
	r.Together = computeFigures(scores(good), scores(r.bad))
	r.Together.Name, r.Together.Images, r.Together.Hits = "all", len(r.bad), anomalousShare(r.bad)
	if err := r.addPixelFigures(ctx, d, s, threads); err != nil {
		return nil, err
	}
	r.Mean = mean(r.Defects)
	return r, nil
}

// scores returns the anomaly scores.
func scores(js []Judged) []float64 {
	out := make([]float64, len(js))
	for i, j := range js {
		out[i] = j.Score
	}
	return out
}

// anomalousShare returns the share of images with the verdict "anomaly", 0…1.
func anomalousShare(js []Judged) float64 {
	n := 0
	for _, j := range js {
		if j.IsAnomaly {
			n++
		}
	}
	return float64(n) / float64(len(js))
}

// Certain returns up to n images of each: the defective ones with the highest scores,
// the defective ones with the lowest, and the normal ones with the highest.
func (r *Result) Certain(n int) (highestBad, lowestBad, highestGood []Judged) {
	order := func(js []Judged) []Judged {
		js = slices.Clone(js)
		slices.SortStableFunc(js, func(a, b Judged) int {
			switch {
			case a.Score > b.Score:
				return -1
			case a.Score < b.Score:
				return 1
			}
			return 0
		})
		return js
	}
	bad, good := order(r.bad), order(r.good)
	lowest := slices.Clone(bad)
	slices.Reverse(lowest)
	return bad[:min(n, len(bad))], lowest[:min(n, len(lowest))], good[:min(n, len(good))]
}
