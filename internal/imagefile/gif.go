package imagefile

import (
	"compress/lzw"
	"encoding/binary"
	"fmt"
	"io"
)

// gifFrame is the first frame of a GIF: its rectangle on the screen and its colours.
type gifFrame struct {
	x, y, w, h  int
	interlaced  bool
	palette     [256][3]byte
	transparent int // index, or -1
}

// readGIF draws the first frame on the screen. The standard library's decoder loses the
// colour of the transparent index, which Pillow shows because it drops transparency.
//
// As in Pillow, pixels outside the frame have the colour of the transparent index, or
// of index 0 if there is none, and a frame beyond the screen enlarges the screen.
func readGIF(data []byte, o Options) (*RGB, error) {
	g := gifReader{data: data}
	width, height, f, err := g.header()
	if err != nil {
		return nil, err
	}
	if f.w == 0 || f.h == 0 {
		return nil, fmt.Errorf("%w: a GIF frame of %d×%d pixels", ErrImage, f.w, f.h)
	}
	width, height = max(width, f.x+f.w), max(height, f.y+f.h)
	if err := o.check(width, height); err != nil {
		return nil, err
	}
	if err := plausible(len(data), int64(width)*int64(height), lzwRatio); err != nil {
		return nil, err
	}
	codeSize, err := g.ReadByte()
	if err != nil {
		return nil, err
	}
	g.inBlocks = true
	r := lzw.NewReader(&g, lzw.LSB, int(codeSize))
	defer r.Close()

	img := newRGB(width, height)
	if f.w < width || f.h < height {
		img.fill(f.palette[max(f.transparent, 0)])
	}
	row := make([]byte, f.w)
	for i := range f.h {
		if _, err := io.ReadFull(r, row); err != nil {
			return nil, fmt.Errorf("%w: truncated or damaged GIF: row %d of %d: %w", ErrImage, i, f.h, err)
		}
		dst := img.Pix[3*((f.y+f.row(i))*width+f.x):]
		for _, v := range row {
			c := f.palette[v]
			dst[0], dst[1], dst[2] = c[0], c[1], c[2]
			dst = dst[3:]
		}
	}
	return img, nil
}

// row returns the row in the frame of the i-th row in the file.
func (f gifFrame) row(i int) int {
	if !f.interlaced {
		return i
	}
	for _, pass := range [4][2]int{{0, 8}, {4, 8}, {2, 4}, {1, 2}} {
		n := max(0, (f.h-pass[0]+pass[1]-1)/pass[1])
		if i < n {
			return pass[0] + i*pass[1]
		}
		i -= n
	}
	return f.h - 1
}

// fill sets all pixels to one colour.
func (img *RGB) fill(c [3]byte) {
	for i := 0; i < len(img.Pix); i += 3 {
		copy(img.Pix[i:i+3], c[:])
	}
}

// gifReader reads the structure of a GIF. Once inBlocks is set, ReadByte reads the
// content of the data blocks.
type gifReader struct {
	data     []byte
	inBlocks bool
	left     int // bytes left in the current data block
	ended    bool
}

// ReadByte implements io.ByteReader for the LZW decoder.
func (g *gifReader) ReadByte() (byte, error) {
	if g.inBlocks && g.left == 0 {
		if g.ended || len(g.data) == 0 || g.data[0] == 0 {
			g.ended = true
			return 0, io.EOF
		}
		g.left = int(g.data[0])
		g.data = g.data[1:]
	}
	if len(g.data) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if g.inBlocks {
		g.left--
	}
	b := g.data[0]
	g.data = g.data[1:]
	return b, nil
}

// Read implements io.Reader, which lzw.NewReader requires. The decoder uses ReadByte.
func (g *gifReader) Read(p []byte) (int, error) {
	for i := range p {
		b, err := g.ReadByte()
		if err != nil {
			return i, err
		}
		p[i] = b
	}
	return len(p), nil
}

// take returns and removes the first n bytes.
func (g *gifReader) take(n int) ([]byte, error) {
	if n > len(g.data) {
		return nil, fmt.Errorf("%w: truncated GIF", ErrImage)
	}
	b := g.data[:n]
	g.data = g.data[n:]
	return b, nil
}

// header reads up to the pixels of the first frame. It returns the width and height of
// the screen.
func (g *gifReader) header() (width, height int, f gifFrame, err error) {
	f.transparent = -1
	s, err := g.take(13)
	if err != nil {
		return 0, 0, f, err
	}
	le := binary.LittleEndian
	width, height = int(le.Uint16(s[6:])), int(le.Uint16(s[8:]))
	f.palette = greyRamp()
	if err := g.palette(s[10], &f.palette); err != nil {
		return 0, 0, f, err
	}
	for {
		b, err := g.take(1)
		if err != nil {
			return 0, 0, f, err
		}
		switch b[0] {
		case '!':
			if err := g.extension(&f); err != nil {
				return 0, 0, f, err
			}
		case ',':
			d, err := g.take(9)
			if err != nil {
				return 0, 0, f, err
			}
			f.x, f.y = int(le.Uint16(d)), int(le.Uint16(d[2:]))
			f.w, f.h = int(le.Uint16(d[4:])), int(le.Uint16(d[6:]))
			f.interlaced = d[8]&0x40 != 0
			return width, height, f, g.palette(d[8], &f.palette)
		case ';':
			return 0, 0, f, fmt.Errorf("%w: a GIF without a frame", ErrImage)
		}
		// Anything else is skipped, as Pillow does.
	}
}

// extension reads an extension block: the transparent index is set, the rest skipped.
func (g *gifReader) extension(f *gifFrame) error {
	const graphicControl = 0xf9
	label, err := g.take(1)
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		n, err := g.take(1)
		if err != nil {
			return err
		}
		if n[0] == 0 {
			return nil
		}
		b, err := g.take(int(n[0]))
		if err != nil {
			return err
		}
		if first && label[0] == graphicControl && len(b) >= 4 && b[0]&1 != 0 {
			f.transparent = int(b[3])
		}
	}
}

// palette reads the colour table if the flags have the table bit. Indexes beyond the
// table are black. Pillow ignores a table in which every index is its own grey, so the
// indexes beyond such a table stay grey.
func (g *gifReader) palette(flags byte, p *[256][3]byte) error {
	if flags&0x80 == 0 {
		return nil
	}
	n := 2 << (flags & 7)
	b, err := g.take(3 * n)
	if err != nil {
		return err
	}
	var t [256][3]byte
	ramp := true
	for i := range n {
		copy(t[i][:], b[3*i:])
		ramp = ramp && t[i] == [3]byte{byte(i), byte(i), byte(i)}
	}
	if ramp {
		t = greyRamp()
	}
	*p = t
	return nil
}

func greyRamp() (p [256][3]byte) {
	for i := range p {
		p[i] = [3]byte{byte(i), byte(i), byte(i)}
	}
	return p
}
