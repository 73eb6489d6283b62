// Package decision learns the anomaly score and threshold of a model from normal images.
// It extracts their features, fits reference statistics to them (internal/patches),
// trains defect heads (internal/heads), scores each image by statistics fitted without
// it, and calibrates the anomaly score and its threshold (internal/calibration). The
// autoencoder and its epochs do not belong here.
package decision
