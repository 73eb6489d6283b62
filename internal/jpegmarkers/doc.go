// Package jpegmarkers reads the marker segments of a JPEG file and its frame header
// (ITU-T T.81, annex B), which lossless JPEG and JPEG-LS share. It decodes no samples.
package jpegmarkers
