// Package hostile creates malicious and damaged files for tests: model files (pickles
// that run code, inconsistent zips, ONNX graphs that compute something else), images
// and data sets. Each file comes with the error that a reader must return. The
// package also has the small valid files that they are derived from.
//
// Only _test files may import it. It must not import package models, whose tests use
// it.
package hostile
