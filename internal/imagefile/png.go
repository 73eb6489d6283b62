package imagefile

import "bytes"

// completePNG returns the PNG with an end chunk if it has none: some cameras and
// interrupted copies omit it, and Pillow does not need it. What follows the pixels is
// dropped from such a file.
func completePNG(data []byte) []byte {
	p, pixels := 8, 0 // the end of the last IDAT chunk, 0 if there is none
	_, complete := pngChunks(data, func(id string, body []byte) {
		p += 12 + len(body)
		if id == "IDAT" {
			pixels = p
		}
	})
	if complete || pixels == 0 {
		return data
	}
	return append(bytes.Clone(data[:pixels]), "\x00\x00\x00\x00IEND\xae\x42\x60\x82"...)
}
