// Package models says what a model is: its architecture, its weights, what its
// metadata means, and how its file formats (.pt, .onnx, the zip of both) are
// read safely from untrusted bytes.
//
// Reading never executes anything a file holds: a checkpoint's pickle is
// interpreted by an allow-list, and of an ONNX file only the weights and the
// metadata are taken, after its graph was found to compute the network they are
// for. Nothing here knows of Gorgonia, ONNX Runtime or HTTP, and nothing here
// writes a model: that is the exporter's work.
package models
