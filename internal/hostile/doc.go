// Package hostile makes model files that mean harm: pickles that run code, zips
// that lie, ONNX graphs that compute something else, each with the reason for
// which it must be refused, and the small good files that they are made from.
//
// It is for tests, and only _test files may import it. It does not know package
// models, whose own tests use it.
package hostile
