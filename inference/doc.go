// Package inference judges images by a model: the preprocessing (the one used
// in training too), the sessions and their cache, the scheduler that shares out
// threads, the scoring, and the pictures and heatmaps of it.
//
// The preprocessing turns untrusted bytes into the network's input exactly as
// the Python service does it: Pillow's Image.open(f).convert("RGB"), then
// Pillow's bilinear resize, then a division by 255.
//
// The package may import models, exporter, internal/network (for the names of
// tensors) and internal/ort. It knows nothing of HTTP or of training.
package inference
