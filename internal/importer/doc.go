// Package importer reads an ONNX file that package exporter wrote back into the
// Gorgonia graph it came from: the same operators, the same weights, fit to be
// run on Gorgonia's machine, to be differentiated and to be lowered again.
//
// The decoder is onnx-go's, which knows nothing of how the exporter writes; the
// backend it fills is ours. So what the exporter wrote is read by somebody
// else, and a mistake in writing shows.
//
// Only files of the exporter are read here. Those of others go through
// models.Read, which keeps their weights and metadata, and are exported anew.
// Other bytes give an error and never a panic, but what they may cost is not
// bounded as it is in package models. Nothing here runs a graph.
package importer
