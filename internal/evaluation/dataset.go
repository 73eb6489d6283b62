package evaluation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
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
	// Skipped are files of the test folder that are not used, with the reason.
	Skipped []models.SkippedFile

	folder string
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
// skips files and folders that are known to be unreadable. It returns ErrDataset, wrapped,
// when there are no normal images or no defects, and ErrMask, wrapped, when only some
// images of a defect have a mask.
func Open(folder string) (*Set, error) {
	entries, err := os.ReadDir(filepath.Join(folder, testFolder))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDataset, err)
	}
	s := &Set{folder: folder}
	for _, e := range entries {
		path := filepath.Join(folder, testFolder, e.Name())
		if info, err := os.Stat(path); err != nil || !info.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		files, err := s.images(path)
		if err != nil {
			s.skip(path, err)
			continue
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
	return s, s.complete()
}

// complete returns ErrDataset, wrapped, when there are no normal images or no defects.
func (s *Set) complete() error {
	if len(s.Good) > 0 && len(s.Defects) > 0 {
		return nil
	}
	skipped := ""
	if n := len(s.Skipped); n > 0 {
		skipped = fmt.Sprintf("; %d files cannot be read, the first (%s) because %s", n, s.Skipped[0].Name, s.Skipped[0].Reason)
	}
	return fmt.Errorf("%w: %s has %d normal images and %d kinds of defects%s", ErrDataset, s.folder, len(s.Good), len(s.Defects), skipped)
}

// skip records a file that is not used.
func (s *Set) skip(path string, err error) {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	s.Skipped = append(s.Skipped, models.SkippedFile{Name: dataset.Printable(path), Reason: err.Error()})
}

// images returns the image files in a folder and its subfolders, and skips those that
// are known to be unreadable.
func (s *Set) images(folder string) ([]string, error) {
	all, err := dataset.Images(folder)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, f := range all {
		if f.Reason == "" {
			files = append(files, f.Path)
		} else {
			s.skip(f.Path, errors.New(f.Reason))
		}
	}
	return files, nil
}

// Check reads all images and masks, at most threads of them concurrently, with the
// preprocessing p of the model to evaluate, and removes the images that cannot be read
// from the set. Call it before a training, which would be in
// vain for an unusable set. It returns ErrDataset, wrapped, when too few images are left,
// and ErrMask, wrapped, when a mask is unusable.
func (s *Set) Check(ctx context.Context, p *models.Preprocessing, threads int) error {
	o := imagefile.OptionsFor(p, imagefile.DefaultLimits())
	o.Probe = o.Window == nil // a training may choose a window for floating-point samples
	good, _, err := s.readable(ctx, s.Good, nil, o, threads)
	if err != nil {
		return err
	}
	s.Good = good
	var defects []Defect
	for _, d := range s.Defects {
		if d.Files, d.Masks, err = s.readable(ctx, d.Files, d.Masks, o, threads); err != nil {
			return err
		}
		if len(d.Files) > 0 {
			defects = append(defects, d)
		}
	}
	s.Defects = defects
	return s.complete()
}

// readable returns the files that can be read, with their masks, and skips the others.
func (s *Set) readable(ctx context.Context, files, masks []string, o imagefile.Options, threads int) (keptFiles, keptMasks []string, err error) {
	bad, regions := make([]error, len(files)), make([]int, len(files))
	err = eachFile(ctx, files, threads, func(ctx context.Context, i int, data []byte, err error) error {
		var img *imagefile.RGB
		if err == nil {
			img, err = decodeAll(ctx, data, o, masks != nil)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, ErrMask) {
			return fmt.Errorf("%w: %s", err, dataset.Printable(files[i]))
		}
		if err != nil || masks == nil {
			bad[i] = err
			return nil
		}
		m, err := readMask(masks[i], img.W, img.H, o)
		if err == nil {
			regions[i] = len(m.sizes)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	found := 0
	for i, file := range files {
		if bad[i] != nil {
			s.skip(file, bad[i])
			continue
		}
		keptFiles = append(keptFiles, file)
		if masks != nil {
			keptMasks = append(keptMasks, masks[i])
			found += regions[i]
		}
	}
	if len(keptMasks) > 0 && found == 0 {
		return nil, nil, fmt.Errorf("%w: all masks of %s are black", ErrMask, filepath.Dir(keptMasks[0]))
	}
	return keptFiles, keptMasks, nil
}

// decodeAll decodes all images of a file, so that an unreadable one is found, and returns the
// last. ErrMask is returned, wrapped, for several images if there is a mask.
func decodeAll(ctx context.Context, data []byte, o imagefile.Options, masked bool) (img *imagefile.RGB, err error) {
	frames, err := imagefile.OpenFrames(data, o)
	if err != nil {
		return nil, err
	}
	if n := frames.Len(); masked && n > 1 {
		return nil, fmt.Errorf("%w: a mask is for one image, and the DICOM file has %d frames: write each to a file of its own", ErrMask, n)
	}
	for i := 0; i < frames.Len() && err == nil && ctx.Err() == nil; i++ {
		img, err = imagefile.Decode(data, frames.Options(i))
	}
	return img, err
}

// Judged is an image with its anomaly score and verdict.
type Judged struct {
	File string `json:"file"`
	// Frame is the number of the frame, from 1, of a DICOM file of several; else 0.
	Frame     int     `json:"frame,omitempty"`
	Score     float64 `json:"reconstruction_error"`
	IsAnomaly bool    `json:"is_anomaly"`
}

// Name returns the name of the file, with the number of the frame if it has several.
func (j Judged) Name() string {
	if j.Frame == 0 {
		return j.File
	}
	return fmt.Sprintf("%s#%d", j.File, j.Frame)
}

// Score scores the images of files, each frame of a DICOM file, at most threads files
// concurrently. An unreadable image is an error, since metrics without it would be
// misleading; Set.Check removes those.
func Score(ctx context.Context, d *inference.Detector, files []string, threads int) ([]Judged, error) {
	out := make([][]Judged, len(files))
	err := eachFile(ctx, files, threads, func(ctx context.Context, i int, data []byte, err error) error {
		var v inference.Verdict
		if err == nil {
			v, err = d.Detect(ctx, data, nil, imagefile.DefaultLimits())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", dataset.Printable(files[i]), err)
		}
		if v.Frames == nil {
			out[i] = []Judged{{files[i], 0, v.ReconstructionError, v.IsAnomaly}}
		}
		for _, f := range v.Frames {
			out[i] = append(out[i], Judged{files[i], f.Frame, f.ReconstructionError, f.IsAnomaly})
		}
		return nil
	})
	return slices.Concat(out...), err
}

// eachFile calls f with the content of each file or the error of reading it, at most
// threads times concurrently. It returns the first error of f.
func eachFile(ctx context.Context, files []string, threads int, f func(ctx context.Context, i int, data []byte, err error) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(threads, 1))
	for i, file := range files {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			data, err := readFile(file)
			return f(ctx, i, data, err)
		})
	}
	return group.Wait()
}

// readFile returns the content of an image file, of which it reads no more than what is
// enough for Decode to refuse it.
func readFile(path string) ([]byte, error) {
	f, err := files.OpenRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, imagefile.DefaultLimits().MaxBytes+1))
}

// Evaluate scores a data set with a model and computes the metrics. It returns ErrMask,
// wrapped, when a mask is unusable.
func Evaluate(ctx context.Context, d *inference.Detector, s *Set, threads int) (*Result, error) {
	r, err := compute(s, func(files []string) ([]Judged, error) { return Score(ctx, d, files, threads) })
	if err != nil {
		return nil, err
	}
	r.Measure, r.Threshold = d.Model().Metadata.Measure()
	if err := r.addPixelFigures(ctx, d, s, threads); err != nil {
		return nil, err
	}
	r.Mean = mean(r.Defects)
	return r, nil
}

// EvaluateScores computes the metrics of scores that were computed elsewhere. score
// returns the anomaly score of a file of the set; above the threshold it is anomalous.
// There are no pixel metrics.
func EvaluateScores(s *Set, threshold float64, score func(file string) float64) *Result {
	r, _ := compute(s, func(files []string) ([]Judged, error) {
		out := make([]Judged, len(files))
		for i, file := range files {
			v := score(file)
			out[i] = Judged{File: file, Score: v, IsAnomaly: v > threshold}
		}
		return out, nil
	})
	r.Threshold, r.Mean = threshold, mean(r.Defects)
	return r
}

// compute computes the metrics of the verdicts that judge returns. It returns judge's
// errors only.
func compute(s *Set, judge func(files []string) ([]Judged, error)) (*Result, error) {
	good, err := judge(s.Good)
	if err != nil {
		return nil, err
	}
	r := &Result{Normal: len(good), Skipped: s.Skipped, good: good}
	r.FalseAlarms = anomalousShare(good)
	for _, defect := range s.Defects {
		bad, err := judge(defect.Files)
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
