// Package ort is the one place that knows ONNX Runtime: finding its library,
// execution providers, sessions, and tensors that stay in ONNX Runtime's memory
// from one step to the next. It knows nothing of what a graph computes.
package ort
