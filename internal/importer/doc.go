// Package importer reads an ONNX file written by package exporter back into the Gorgonia
// graph that it was lowered from. The graph has the same operators and weights, can run on
// Gorgonia's machine, and can be differentiated and lowered again.
//
// The file is decoded by onnx-go, which is independent of the exporter, so reading a file
// back also verifies what the exporter wrote. This package is onnx-go's backend.
//
// Only the exporter's files are read here. Files from other programs are read by
// models.Read, which returns their weights and metadata. Any other input results in an error
// and not in a panic, but memory and time are not limited as they are in package models. The
// package must not run graphs.
package importer
