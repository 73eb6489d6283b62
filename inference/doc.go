// Package inference judges images by a model: the preprocessing (the one used
// in training too), the sessions and their cache, and the scoring.
//
// The preprocessing turns untrusted bytes into the network's input exactly as
// the Python service does it: Pillow's Image.open(f).convert("RGB"), then
// Pillow's bilinear resize, then a division by 255.
//
// The package may import models, exporter and internal/ort. It knows nothing of
// HTTP or of training.
package inference
