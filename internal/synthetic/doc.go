// Package synthetic paints synthetic anomalies on normal images, so that a model
// can learn from defects, or be measured by them, where nobody has real ones.
//
// An anomaly is a shape filled with an appearance, as in DRAEM (Zavrtanik et al.,
// 2021), which takes thresholded Perlin noise (Perlin, 1985) for its shapes:
// islands are of that kind, of value noise, beside scratches, ellipses and
// rectangles. A patch of another normal image is CutPaste (Li et al., 2021) as NSA
// has it (Schlüter et al., 2022), between images; a thin one is what CutPaste
// calls a scar.
//
// Images are side×side×3 bytes, rows of red, green and blue. The package knows
// nothing of features, training or file formats.
package synthetic

// channels are those of an image: red, green and blue.
const channels = 3
