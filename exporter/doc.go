// Package exporter turns what was built and learnt into files: it lowers
// Gorgonia graphs to ONNX, for the network that users take away as well as for
// the training step, writes the PyTorch checkpoint, packs the zip that a
// training answers with, and describes the files to Triton.
//
// The lowering is a table from an operator to the ONNX nodes it becomes, and for what
// runs here on a processor a second one, to the operators of package kernels. What
// has no entry is an error that names the operator, when the graph is built and
// not when it runs. Nothing here runs a graph or reads a user's file.
package exporter
