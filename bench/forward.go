package main

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// forward is a model's forward pass without a service: a session of the exported
// autoencoder.onnx that computes the anomaly score of one prepared image.
type forward struct {
	session *ort.Session
	image   *ort.Tensor
	outputs []*ort.Tensor
	// served computes the score of the same pixels like the service does.
	served *inference.Detector
	pixels []byte
}

// newForward prepares a forward pass on the given number of threads.
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
	if m.Reference != nil {
		names = append(names, network.MSEName)
	}
	f := &forward{}
	if f.session, err = engine.NewSession(onnx, []string{network.ImageName}, names,
		ort.SessionOptions{Threads: threads, SharedArena: true}); err != nil {
		return nil, err
	}
	if f.image, err = ort.NewTensor(1, models.InputChannels, m.Input().H, m.Input().W); err != nil {
		return nil, err
	}
	for range names {
		t, err := ort.NewTensor(1)
		if err != nil {
			return nil, err
		}
		f.outputs = append(f.outputs, t)
	}
	if f.pixels, err = imagefile.Prepare(image, m.Input(), imagefile.OptionsFor(m.Metadata.Preprocessing, imagefile.Limits{})); err != nil {
		return nil, err
	}
	imagefile.Normalize(f.image.Data(), f.pixels)
	f.served, err = inference.NewDetector(engine, m, threads)
	return f, err
}

// export runs autoencoder.onnx.
func (f *forward) export(ctx context.Context) error {
	return f.session.Run(ctx, []*ort.Tensor{f.image}, f.outputs)
}

// verdict runs the forward pass of the service.
func (f *forward) verdict(ctx context.Context) error {
	_, err := f.served.Score(ctx, f.pixels)
	return err
}

// times calls f n times and returns the milliseconds of each call.
func times(n int, f func() error) (series, error) {
	s := make(series, 0, n)
	for range n {
		began := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		s = append(s, time.Since(began).Seconds()*1e3)
	}
	return s, nil
}

func (f *forward) close() {
	f.served.Close()
	f.session.Close()
	f.image.Close()
	for _, t := range f.outputs {
		t.Close()
	}
}
