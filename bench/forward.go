package main

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// forward is a model's bare forward pass: a session of the autoencoder.onnx that
// users take away, asked for what a verdict needs, on one image that was prepared
// beforehand.
type forward struct {
	session *ort.Session
	image   *ort.Tensor
	outputs []*ort.Tensor
}

// newForward prepares the pass by so many threads.
func newForward(engine *ort.Engine, file, image []byte, threads int) (*forward, error) {
	m, err := models.Read(file, models.DefaultLimits())
	if err != nil {
		return nil, err
	}
	onnx, err := exporter.InferenceModel(m)
	if err != nil {
		return nil, err
	}
	names := []string{network.ErrorName}
	if m.Normality != nil {
		names = append(names, network.MSEName)
	}
	f := &forward{}
	if f.session, err = engine.NewSession(onnx, []string{network.ImageName}, names,
		ort.SessionOptions{Threads: threads, SharedArena: true}); err != nil {
		return nil, err
	}
	if f.image, err = ort.NewTensor(1, models.InputChannels, m.ImageSize, m.ImageSize); err != nil {
		return nil, err
	}
	for range names {
		t, err := ort.NewTensor(1)
		if err != nil {
			return nil, err
		}
		f.outputs = append(f.outputs, t)
	}
	pixels, err := inference.Prepare(image, m.ImageSize, inference.ImageLimits{})
	if err != nil {
		return nil, err
	}
	inference.Normalize(f.image.Data(), pixels)
	return f, nil
}

// times runs the pass so often, and gives the milliseconds of each run.
func (f *forward) times(ctx context.Context, n int) (series, error) {
	var s series
	for range n {
		began := time.Now()
		if err := f.session.Run(ctx, []*ort.Tensor{f.image}, f.outputs); err != nil {
			return nil, err
		}
		s = append(s, time.Since(began).Seconds()*1e3)
	}
	return s, nil
}

func (f *forward) close() {
	f.session.Close()
	f.image.Close()
	for _, t := range f.outputs {
		t.Close()
	}
}
