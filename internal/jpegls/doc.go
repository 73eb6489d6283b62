// Package jpegls decodes JPEG-LS (ITU-T T.87), lossless and near-lossless, of 2 to 16
// bits, for DICOM. It decodes untrusted bytes in one pass, with 2 bytes of memory per
// sample. Mapping tables, restarts and images of more than 65535 pixels a side are not
// read.
package jpegls
