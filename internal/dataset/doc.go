// Package dataset reads a data set of normal images from a folder or zip: it lists the
// files, decodes and resizes the images, stores their pixels in memory or on disk, and
// reads class names from YAML files. It treats uploads as hostile and bounds what they
// cost. Decoding a single image file belongs to internal/imagefile; training does not
// belong here.
package dataset
