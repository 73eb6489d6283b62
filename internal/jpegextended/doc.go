// Package jpegextended decodes the JPEG of 12 bits (ITU-T T.81, the extended sequential
// process with Huffman coding), which DICOM files have and image/jpeg does not read. It does
// not convert colours and does not read components of different sizes.
package jpegextended
