// Package inference judges images with a model. It prepares images as training
// does, runs the model in ONNX Runtime, compares the anomaly score with the
// threshold, and draws reconstructions and heatmaps. Cache keeps models loaded and
// Scheduler divides the processors between concurrent requests.
//
// The preprocessing is the Python service's: Pillow's Image.open(f).convert("RGB"),
// Pillow's bilinear resize, and a division by 255.
//
// The package may import models, exporter, internal/network (for the names of
// tensors), internal/imagefile, internal/backbone and internal/ort. HTTP and
// training must not be part of it.
package inference
