// Package dicom reads the frames of an untrusted DICOM file. Of its attributes it reads
// only those that pixels need: size, depth, photometric interpretation, rescale, window,
// look-up tables, palette, offsets of frames and transfer syntax. No other value leaves the
// parser, and no error has a text of the file, so nothing about a patient can. It does not
// resize and does not write DICOM. JPEG of 8 bits is decoded by a function of the caller.
package dicom
