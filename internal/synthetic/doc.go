// Package synthetic generates synthetic anomalies on normal images, to train defect
// heads and to measure detectability without real defects.
//
// An anomaly is a shape with an appearance, as in DRAEM (Zavrtanik et al., 2021).
// DRAEM's shapes are thresholded Perlin noise (Perlin, 1985); here islands are
// thresholded value noise, and there are scratches, ellipses and rectangles. Texture
// from another normal image is CutPaste (Li et al., 2021), between images as in NSA
// (Schlüter et al., 2022); a thin piece is CutPaste's scar.
//
// Images are width×height×3 bytes, rows of red, green and blue. The package must not
// depend on features, training or file formats.
package synthetic

// channels is the number of channels of an image: red, green and blue.
const channels = 3
