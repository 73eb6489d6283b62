// Package network writes down the networks as Gorgonia graphs: the operators
// Gorgonia lacks (convolution, transposed convolution and what their
// derivatives need), each with shape inference, a symbolic derivative and a
// plain Go implementation that serves as the reference, and the functions that
// put an architecture together from them.
//
// Nothing here trains, exports or reads a file. An architecture is one function
// that returns a Graph; another architecture is another function.
package network
