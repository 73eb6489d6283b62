// Package onnx is the generated code for the part of ONNX's protobuf schema that this
// project reads and writes. Builders and checks must not be here.
//
// onnx.pb.go is generated from onnx.proto by `make proto`.
package onnx
