// Package jpegmarkers reads the marker segments of a JPEG file, its frame header and its
// Huffman codes (ITU-T T.81, annexes B and F), which the decoders of JPEG share. It decodes no
// samples.
package jpegmarkers
