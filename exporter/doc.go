// Package exporter writes models to files and graphs to ONNX. It lowers Gorgonia graphs
// (package network) to ONNX, both the networks that users download and the graphs that
// this program runs itself, writes the PyTorch checkpoint, packs the zip that a training
// returns, and describes the files to Triton.
//
// Lowering is a table from each Gorgonia operator to the ONNX nodes that compute it. For
// graphs that run in this program on a CPU, a second table maps operators to the operators
// of package kernels. Lowering an operator without an entry returns ErrNoLowering with the
// operator's name, before anything runs.
//
// The package must not run graphs, train, read users' files, or define networks: those
// belong to the packages ort, trainer, models and network.
package exporter
