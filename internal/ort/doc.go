// Package ort wraps ONNX Runtime: it finds and loads the library, selects the execution
// provider, and creates sessions and tensors. All use of ONNX Runtime goes through this
// package and internal/kernels. The content of graphs and images must not be part of it.
package ort
