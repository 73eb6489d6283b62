package ort

import (
	"errors"
	"fmt"
	"slices"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Tensor is a float32 tensor that ONNX Runtime reads and writes in place. It can be used
// for many runs, and one run's output can be another's input without a copy. It must be
// closed.
type Tensor struct {
	value *onnxruntime.Tensor[float32]
	shape []int
	data  []float32
}

// NewTensor returns a tensor of zeros. A single number must have the shape 1, because
// scalars of onnxruntime_go cannot be changed after their creation.
func NewTensor(shape ...int) (*Tensor, error) {
	if len(shape) == 0 {
		return nil, errors.New("ort: a tensor without a shape")
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

// Data returns the tensor's memory, in row-major order.
func (t *Tensor) Data() []float32 { return t.data }

// Shape returns the tensor's shape.
func (t *Tensor) Shape() []int { return t.shape }

// Close frees the tensor. It may be called more than once.
func (t *Tensor) Close() {
	if t != nil && t.value != nil {
		t.value.Destroy()
		t.value, t.data = nil, nil
	}
}
