package imagefile

import (
	"encoding/binary"
	"fmt"
	"image"
)

// webpFrame is the first frame of an animated WebP, an image at a position of the
// animation's canvas.
type webpFrame struct {
	canvas, frame image.Config
	x, y          int
	still         []byte // the frame as a WebP file
}

// firstWebPFrame returns the first frame of an animation, which the library cannot
// decode. ok is false if the WebP is not animated.
func firstWebPFrame(data []byte) (f webpFrame, ok bool, err error) {
	// The first chunk of an animation is VP8X with the animation flag.
	const animated, bodyAt, bodySize = 0x02, 20, 10
	if len(data) < bodyAt+bodySize || string(data[12:16]) != "VP8X" || data[bodyAt]&animated == 0 {
		return f, false, nil
	}
	f.canvas.Width, f.canvas.Height = uint24(data[24:])+1, uint24(data[27:])+1
	for rest := data[12:]; ; {
		var id string
		var body []byte
		if id, body, rest, ok = webpChunk(rest); !ok {
			return f, true, fmt.Errorf("%w: an animated WebP without a complete frame", ErrImage)
		}
		if id == "ANMF" {
			return f, true, f.read(body)
		}
	}
}

// read reads the frame from the body of its chunk.
func (f *webpFrame) read(body []byte) error {
	const header = 16
	if len(body) < header {
		return fmt.Errorf("%w: truncated frame of an animated WebP", ErrImage)
	}
	f.x, f.y = 2*uint24(body), 2*uint24(body[3:])
	f.frame.Width, f.frame.Height = uint24(body[6:])+1, uint24(body[9:])+1
	if f.x+f.frame.Width > f.canvas.Width || f.y+f.frame.Height > f.canvas.Height {
		return fmt.Errorf("%w: a frame of an animated WebP that is outside its canvas", ErrImage)
	}
	var alpha, pixels []byte
	for rest := body[header:]; pixels == nil; {
		id, _, after, ok := webpChunk(rest)
		if !ok {
			return fmt.Errorf("%w: a frame of an animated WebP without pixels", ErrImage)
		}
		switch whole := rest[:len(rest)-len(after)]; id {
		case "ALPH":
			alpha = whole
		case "VP8 ", "VP8L":
			pixels = whole
		}
		rest = after
	}
	f.still = append(f.still, "RIFF\x00\x00\x00\x00WEBP"...)
	if alpha != nil && string(pixels[:4]) == "VP8 " {
		const withAlpha = 0x10
		f.still = append(f.still, "VP8X\x0a\x00\x00\x00"...)
		f.still = append(f.still, withAlpha, 0, 0, 0)
		f.still = append(f.still, body[6:12]...)
		f.still = append(f.still, alpha...)
	}
	f.still = append(f.still, pixels...)
	binary.LittleEndian.PutUint32(f.still[4:], uint32(len(f.still)-8))
	return nil
}

// webpChunk returns the first chunk and the bytes after it and its padding byte.
func webpChunk(data []byte) (id string, body, rest []byte, ok bool) {
	if len(data) < 8 {
		return "", nil, nil, false
	}
	n := int64(binary.LittleEndian.Uint32(data[4:]))
	if 8+n > int64(len(data)) {
		return "", nil, nil, false
	}
	return string(data[:4]), data[8 : 8+n], data[min(8+n+n&1, int64(len(data))):], true
}

func uint24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

// onCanvas draws the picture at the frame's position on a black canvas, as Pillow does.
func (f webpFrame) onCanvas(picture *RGB) *RGB {
	if picture.W == f.canvas.Width && picture.H == f.canvas.Height {
		return picture
	}
	out := newRGB(f.canvas.Width, f.canvas.Height)
	for y := range picture.H {
		copy(out.Pix[3*((f.y+y)*out.W+f.x):], picture.Pix[3*y*picture.W:3*(y+1)*picture.W])
	}
	return out
}
