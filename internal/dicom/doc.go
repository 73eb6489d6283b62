// Package dicom reads the image of an untrusted DICOM file. Of its attributes it reads
// only those that pixels need: size, depth, photometric interpretation, rescale, window,
// palette and transfer syntax. No other value leaves the parser, and no error has a text
// of the file, so nothing about a patient can. It does not resize and does not write
// DICOM. Baseline JPEG is decoded by a function of the caller.
package dicom
