// Package imagefile decodes untrusted image files within limits and prepares them for a
// network: Pillow's conversion to RGB, Pillow's bilinear resize, and a division by 255.
// It is the only package that may decode images. It may import internal/dicom and models (for the largest
// image size); drawing and encoding images must not be part of it.
package imagefile
