package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

// trained is a model and the duration of its training.
type trained struct {
	model *models.Model
	// seconds is the duration of each part: "training" is all of it, "decision" is
	// reading images and fitting the reference statistics, "epochs" is the steps, and
	// "plain error" is measuring the mean squared errors.
	seconds map[string]float64
}

// train trains on a folder. A brief training stops after its first step. The verdicts
// are the same, because they do not depend on the epochs; see
// TestTrain_BrieflyHasTheSameDecision.
func train(ctx context.Context, e *ort.Engine, folder string, o trainer.Options, brief bool) (*trained, error) {
	src, err := dataset.OpenFolder(folder, dataset.DefaultLimits())
	if err != nil {
		return nil, err
	}
	began := time.Now()
	var first, last time.Time // of the steps
	stop := make(chan struct{})
	once := sync.OnceFunc(func() { close(stop) })
	o.Stop = stop
	o.Progress = func(p trainer.Progress) {
		last = time.Now()
		if first.IsZero() {
			first = last.Add(-p.Elapsed)
		}
		if brief {
			once()
		}
	}
	m, err := trainer.Train(ctx, e, src, o)
	if err != nil {
		return nil, fmt.Errorf("training on %s: %w", folder, err)
	}
	return &trained{m, map[string]float64{
		"training": time.Since(began).Seconds(), "decision": first.Sub(began).Seconds(),
		"epochs": last.Sub(first).Seconds(), "plain error": time.Since(last).Seconds(),
	}}, nil
}

// judge calls f with a detector of a model.
func judge(e *ort.Engine, m *models.Model, f func(*inference.Detector) error) error {
	d, err := inference.NewDetector(e, m, 1)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(d)
}

// imagesIn returns the images below a folder, sorted by name.
func imagesIn(folder string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && dataset.IsImage(p) {
			out = append(out, p)
		}
		return err
	})
	slices.Sort(out)
	return out, err
}

// normalImages returns all normal images of a data set, for training and for testing.
func normalImages(folder string) ([]string, error) {
	images, err := imagesIn(filepath.Join(folder, evaluation.TrainFolder))
	if err != nil {
		return nil, err
	}
	s, err := evaluation.Open(folder)
	if err != nil {
		return nil, err
	}
	return append(images, s.Good...), nil
}

// link creates a folder of symbolic links to files.
func link(folder string, files []string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for i, f := range files {
		if err := os.Symlink(f, filepath.Join(folder, fmt.Sprintf("%05d%s", i, filepath.Ext(f)))); err != nil {
			return err
		}
	}
	return nil
}
