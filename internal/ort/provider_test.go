package ort

import (
	"testing"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// What the probe of a GPU computes must be right where there is none.
func TestProbeComputesOnTheCPU(t *testing.T) {
	if _, err := Open(Options{Provider: CPU}); err != nil {
		t.Fatal(err)
	}
	options, err := onnxruntime.NewSessionOptions()
	if err != nil {
		t.Fatal(err)
	}
	defer options.Destroy()
	if err := probe(options); err != nil {
		t.Error(err)
	}
}
