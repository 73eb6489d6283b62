// Package trainer trains a model on a folder or zip of normal images and returns it.
// It holds the options and levels of a training, the autoencoder's epochs with their
// time budget and micro-batches, and the calibration of a trained model on other
// images (Recalibrate).
//
// Reading images (internal/dataset), what decides about an image (internal/decision),
// Adam (internal/optimizer) and writing files (exporter) do not belong here, nor does
// anything about HTTP or a terminal.
package trainer
