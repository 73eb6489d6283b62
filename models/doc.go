// Package models defines a model (architecture, weights, reference statistics and
// metadata) and reads its file formats (.pt, .onnx and the zip of both) safely
// from untrusted bytes.
//
// Reading executes nothing from a file. A checkpoint's pickle is interpreted with
// an allow-list. From an ONNX file only weights and metadata are used, after a
// check that its graph computes the network that the weights belong to.
//
// The package must not depend on Gorgonia, ONNX Runtime or HTTP, and must not
// write models; package exporter does.
package models
