package ort

import (
	"testing"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Without a GPU, the test covers the graph of the probe.
func TestProbe_SucceedsOnTheCPU(t *testing.T) {
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
