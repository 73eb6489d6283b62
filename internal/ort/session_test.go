package ort_test

import (
	"sync"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// ONNX Runtime has one table of operator domains in a process, and concurrent
// registrations in it fail.
func TestNewSession_RegistersCustomOperatorsConcurrently(t *testing.T) {
	engine := orttest.Open(t)
	m, err := exporter.HeadModel(models.Square(16), 0, exporter.Processor)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Kernels {
		t.Fatal("the graph has no custom operators")
	}
	var group sync.WaitGroup
	begin := make(chan struct{})
	for range 8 {
		group.Go(func() {
			<-begin
			for range 15 {
				s, err := engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: 1, Kernels: true})
				if err != nil {
					t.Error(err)
					return
				}
				s.Close()
			}
		})
	}
	// Sessions without custom operators need no lock.
	plain, err := exporter.HeadModel(models.Square(16), 0, exporter.Portable)
	if err != nil {
		t.Fatal(err)
	}
	close(begin)
	for range 5 {
		s, err := engine.NewSession(plain.ONNX, plain.Inputs, plain.Outputs, ort.SessionOptions{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var in []*ort.Tensor
		for _, tap := range models.HeadTaps() {
			p := tap.Patches(models.Square(16)).W
			in = append(in, orttest.Tensor(t, nil, 1, tap.Channels, p, p))
		}
		for _, p := range models.HeadParameters(0) {
			in = append(in, orttest.Tensor(t, nil, p.Shape...))
		}
		p := models.HeadTaps()[0].Patches(models.Square(16)).W
		if err := s.Run(t.Context(), in, []*ort.Tensor{orttest.Tensor(t, nil, 1, 1, p, p)}); err != nil {
			t.Error(err)
		}
	}
	group.Wait()
}
