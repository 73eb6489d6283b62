// Package onnx holds the protobuf schema of ONNX files, as much of it as this
// project reads and writes, and nothing else: no builders, no checks.
//
// onnx.pb.go is generated from onnx.proto by `make proto`.
package onnx
