// Package decision learns from normal images what a model decides by. It extracts
// their features, fits reference statistics to them (internal/patches), trains defect
// heads (internal/heads), scores each image by what was fitted without it, and
// calibrates the anomaly score and its threshold (internal/calibration). The
// autoencoder and the loop of its epochs do not belong here.
package decision
