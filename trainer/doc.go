// Package trainer learns what normal looks like: it reads the data set in a
// zip or a folder, trains the autoencoder on it in ONNX Runtime, learns what the
// places of normal images look like and the markers of defects, and draws the
// threshold from images that were not learnt from. What it returns is a model;
// writing files is the exporter's work, and nothing here knows of HTTP or of a
// terminal.
package trainer
