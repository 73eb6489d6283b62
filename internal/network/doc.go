// Package network builds the networks as Gorgonia graphs: the autoencoder, the
// backbone, the scoring graphs, the defect heads, and Adam. It implements the
// operators that Gorgonia lacks, each with shape inference, a symbolic
// derivative if it is trained, and a plain Go implementation that serves as the
// reference.
//
// The package does not train, export or read files. Each architecture is one
// function that returns a graph.
package network
