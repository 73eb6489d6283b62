package ort

import (
	"errors"
	"fmt"
	"slices"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Tensor is a float32 tensor that ONNX Runtime reads and writes in place. It is
// made once and used for many runs: what a run writes into it the next run
// reads, and nothing is copied in between. It must be closed.
type Tensor struct {
	value *onnxruntime.Tensor[float32]
	shape []int
	data  []float32
}

// NewTensor makes a tensor of zeros. A single number is a tensor of shape 1:
// the binding's scalars cannot be set once ONNX Runtime knows them.
func NewTensor(shape ...int) (*Tensor, error) {
	if len(shape) == 0 {
		return nil, errors.New("ort: a tensor needs a shape")
	}
	dims := make(onnxruntime.Shape, len(shape))
	for i, d := range shape {
		dims[i] = int64(d)
	}
	t, err := onnxruntime.NewEmptyTensor[float32](dims)
	if err != nil {
		return nil, fmt.Errorf("ort: a tensor of shape %v: %w", shape, err)
	}
	return &Tensor{t, slices.Clone(shape), t.GetData()}, nil
}

// Data is the tensor's memory, in row-major order.
func (t *Tensor) Data() []float32 { return t.data }

// Shape is the tensor's shape.
func (t *Tensor) Shape() []int { return t.shape }

// Close gives the tensor back. It may be called more than once.
func (t *Tensor) Close() {
	if t != nil && t.value != nil {
		t.value.Destroy()
		t.value, t.data = nil, nil
	}
}
