// Package hostile makes files that mean harm: models, images and data sets, as
// bombs and as lies. Of models: pickles that run code, zips that lie, ONNX graphs
// that compute something else. Each has the reason for which it must be refused;
// the small good files that they are made from are here too.
//
// It is for tests, and only _test files may import it. It does not know package
// models, whose own tests use it.
package hostile
