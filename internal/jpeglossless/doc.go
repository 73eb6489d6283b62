// Package jpeglossless decodes lossless JPEG (ITU-T T.81, process 14: Huffman coding with
// any of the seven predictors) of 2 to 16 bits, for DICOM. It decodes untrusted bytes in
// one pass, with 2 bytes of memory per sample. Other JPEG processes must not be part of
// it.
package jpeglossless
