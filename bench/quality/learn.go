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

// learnt is a model and what its training took.
type learnt struct {
	model *models.Model
	// seconds of the parts: reading the images and learning what the verdict comes
	// from, which is the decision; the epochs; and measuring the plain error.
	seconds map[string]float64
}

// learn trains on a folder. A brief training ends after its first step: no epoch
// changes what a model decides by, so that the verdicts are those of a whole
// training (TestBriefTrainingDecidesAlike holds it to that).
func learn(ctx context.Context, e *ort.Engine, folder string, o trainer.Options, brief bool) (*learnt, error) {
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
	return &learnt{m, map[string]float64{
		"training": time.Since(began).Seconds(), "decision": first.Sub(began).Seconds(),
		"epochs": last.Sub(first).Seconds(), "plain error": time.Since(last).Seconds(),
	}}, nil
}

// judge makes a detector of a model for as long as f takes.
func judge(e *ort.Engine, m *models.Model, f func(*inference.Detector) error) error {
	d, err := inference.NewDetector(e, m, 1)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(d)
}

// imagesIn lists the images below a folder, by name.
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

// normals are all normal images of a data set, those to train on and those to
// test with.
func normals(folder string) ([]string, error) {
	train, err := imagesIn(filepath.Join(folder, evaluation.TrainFolder))
	if err != nil {
		return nil, err
	}
	s, err := evaluation.Open(folder)
	if err != nil {
		return nil, err
	}
	return append(train, s.Good...), nil
}

// link makes a folder of links to those files.
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
