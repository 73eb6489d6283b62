package imagefile

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// This file reads the JPEGs that image/jpeg refuses for their chroma sampling: baseline
// and progressive ones of 8 bits with any sampling factors. It computes what libjpeg
// does: the accurate integer inverse transform (jidctint.c), and the upsampling of chroma.

// jpegFrame is the state of reading such a JPEG.
type jpegFrame struct {
	w, h        int
	progressive bool
	parts       []jpegPart // components
	hMax, vMax  int
	quant       [4][64]uint16 // in zigzag order
	huffman     [2][4]*huffmanTable
	restart     int // MCUs between restart markers, 0 for none
	jfif, adobe bool
	transform   byte // of the Adobe segment
	colours     jpegColours

	data    []byte // from the next byte on
	acc     uint32
	accBits int
	eobRun  int
}

// jpegPart is a component: a plane of blocks.
type jpegPart struct {
	id, table    byte
	h, v         int
	bw, bh       int // blocks that hold samples of the image
	stride, rows int // blocks with the padding to whole MCUs
	coefficients [][64]int16
	dc           int
	pix          []byte // 8·stride × 8·rows samples
	dcTable      *huffmanTable
	acTable      *huffmanTable
}

var errJPEGEnd = errors.New("unexpected end of the scan")

var zigzag = [64]byte{
	0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
	35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
}

// huffmanTable decodes codes of up to 16 bits, in the form of T.81, F.2.2.3.
type huffmanTable struct {
	values  [256]byte
	first   [17]int // index of the first value with a code of this length
	minCode [17]int
	maxCode [17]int // -1 if there is no code of this length
}

// readSampledJPEG reads a JPEG that image/jpeg does not. The caller has not checked it.
func readSampledJPEG(data []byte, lim Limits) (*RGB, error) {
	return readJPEGAs(data, lim, jpegGuess)
}

// jpegColours is the colour space of a JPEG of three components.
type jpegColours int

const (
	jpegGuess jpegColours = iota // as libjpeg does, by segments and identifiers
	jpegYCC
	jpegRGB
)

// readJPEGAs is readSampledJPEG for a given colour space.
func readJPEGAs(data []byte, lim Limits, colours jpegColours) (*RGB, error) {
	f := jpegFrame{data: data[min(2, len(data)):], colours: colours}
	if n := countScans(data); n > maxScans {
		return nil, fmt.Errorf("%w: a JPEG of more than %d scans", ErrImage, maxScans)
	}
	scans := 0
	for {
		marker, body, err := f.segment()
		if err != nil {
			return nil, err
		}
		switch {
		case marker == 0xd9: // EOI
		case marker == 0xc4:
			err = f.readHuffman(body)
		case marker == 0xdb:
			err = f.readQuantization(body)
		case marker == 0xdd && len(body) >= 2:
			f.restart = int(binary.BigEndian.Uint16(body))
		case marker == 0xe0:
			f.jfif = f.jfif || len(body) >= 5 && string(body[:5]) == "JFIF\x00"
		case marker == 0xee && len(body) >= 12 && string(body[:5]) == "Adobe":
			f.adobe, f.transform = true, body[11]
		case marker == 0xda:
			if scans++; scans > maxScans {
				return nil, fmt.Errorf("%w: a JPEG of more than %d scans", ErrImage, maxScans)
			}
			err = f.scan(body)
		case marker >= 0xc0 && marker <= 0xcf && marker != 0xc8 && marker != 0xcc:
			err = f.readFrame(marker, body, len(data), lim)
		}
		if err != nil {
			return nil, err
		}
		if marker == 0xd9 {
			break
		}
	}
	if len(f.parts) == 0 || scans == 0 {
		return nil, fmt.Errorf("%w: a JPEG without pixels", ErrImage)
	}
	return f.image()
}

// segment returns the next marker and its segment.
func (f *jpegFrame) segment() (marker byte, body []byte, err error) {
	for {
		for len(f.data) >= 2 && (f.data[0] != 0xff || f.data[1] == 0 || f.data[1] == 0xff) {
			f.data = f.data[1:]
		}
		if len(f.data) < 2 {
			return 0, nil, fmt.Errorf("%w: truncated JPEG", ErrImage)
		}
		marker = f.data[1]
		f.data = f.data[2:]
		if marker == 0xd9 {
			return marker, nil, nil
		}
		if marker == 0x01 || 0xd0 <= marker && marker <= 0xd8 {
			continue
		}
		if len(f.data) < 2 {
			return 0, nil, fmt.Errorf("%w: truncated JPEG", ErrImage)
		}
		n := int(binary.BigEndian.Uint16(f.data))
		if n < 2 || n > len(f.data) {
			return 0, nil, fmt.Errorf("%w: truncated JPEG", ErrImage)
		}
		body, f.data = f.data[2:n], f.data[n:]
		return marker, body, nil
	}
}

func (f *jpegFrame) readQuantization(b []byte) error {
	for len(b) > 0 {
		id, wide := b[0]&15, b[0]>>4
		size := 64 * (1 + int(wide))
		if id > 3 || wide > 1 || len(b) < 1+size {
			return fmt.Errorf("%w: damaged JPEG: quantization table", ErrImage)
		}
		for i := range 64 {
			if wide == 0 {
				f.quant[id][i] = uint16(b[1+i])
			} else {
				f.quant[id][i] = binary.BigEndian.Uint16(b[1+2*i:])
			}
		}
		b = b[1+size:]
	}
	return nil
}

func (f *jpegFrame) readHuffman(b []byte) error {
	for len(b) > 0 {
		damaged := fmt.Errorf("%w: damaged JPEG: Huffman table", ErrImage)
		if len(b) < 17 {
			return damaged
		}
		class, id := b[0]>>4, b[0]&15
		t, n, code := &huffmanTable{}, 0, 0
		for length := 1; length <= 16; length++ {
			count := int(b[length])
			t.first[length], t.minCode[length], t.maxCode[length] = n, code, -1
			if count > 0 {
				t.maxCode[length] = code + count - 1
			}
			n += count
			code += count
			if code > 1<<length {
				return damaged
			}
			code <<= 1
		}
		if class > 1 || id > 3 || n > 256 || len(b) < 17+n {
			return damaged
		}
		copy(t.values[:], b[17:17+n])
		f.huffman[class][id] = t
		b = b[17+n:]
	}
	return nil
}

// readFrame reads the header of the image and allocates its coefficients.
func (f *jpegFrame) readFrame(marker byte, b []byte, length int, lim Limits) error {
	switch {
	case len(f.parts) > 0:
		return fmt.Errorf("%w: a JPEG of several frames", ErrImage)
	case len(b) < 6 || len(b) < 6+3*int(b[5]):
		return fmt.Errorf("%w: truncated JPEG", ErrImage)
	case marker == 0xc3 || marker >= 0xc5 && marker <= 0xc7 || marker == 0xcb || marker >= 0xcd:
		return fmt.Errorf("%w: a lossless or hierarchical JPEG is not read: save it as PNG", ErrImage)
	case marker == 0xc9 || marker == 0xca:
		return fmt.Errorf("%w: a JPEG with arithmetic coding is not read: save it as PNG or as a usual JPEG", ErrImage)
	case b[0] != 8:
		return fmt.Errorf("%w: a JPEG of %d bits per sample is not read: save it as 16-bit PNG", ErrImage, b[0])
	}
	f.progressive = marker == 0xc2
	f.h, f.w = int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:]))
	if err := lim.check(f.w, f.h); err != nil {
		return err
	}
	if err := plausible(length, int64(f.w)*int64(f.h), jpegPixelsPerByte); err != nil {
		return err
	}
	n := int(b[5])
	if n != 1 && n != 3 && n != 4 {
		return fmt.Errorf("%w: a JPEG of %d components", ErrImage, n)
	}
	parts := make([]jpegPart, n)
	for i := range parts {
		e := b[6+3*i:]
		parts[i] = jpegPart{id: e[0], h: int(e[1] >> 4), v: int(e[1] & 15), table: e[2]}
		p := &parts[i]
		if p.h < 1 || p.h > 4 || p.v < 1 || p.v > 4 || p.table > 3 {
			return fmt.Errorf("%w: damaged JPEG: sampling factors %d×%d, quantization table %d", ErrImage, p.h, p.v, p.table)
		}
		if n == 1 {
			p.h, p.v = 1, 1
		}
		f.hMax, f.vMax = max(f.hMax, p.h), max(f.vMax, p.v)
	}
	across, down := f.mcus()
	for i := range parts {
		p := &parts[i]
		if f.hMax%p.h != 0 || f.vMax%p.v != 0 {
			return fmt.Errorf("%w: a JPEG of fractional chroma sampling is not read: save it as PNG", ErrImage)
		}
		w, h := p.size(f)
		p.bw, p.bh = (w+7)/8, (h+7)/8
		p.stride, p.rows = across*p.h, down*p.v
		p.coefficients = make([][64]int16, p.stride*p.rows)
	}
	f.parts = parts
	return nil
}

// mcus returns the number of MCUs in a row and in a column.
func (f *jpegFrame) mcus() (across, down int) {
	return (f.w + 8*f.hMax - 1) / (8 * f.hMax), (f.h + 8*f.vMax - 1) / (8 * f.vMax)
}

// size returns the samples of the component that belong to the image.
func (p *jpegPart) size(f *jpegFrame) (w, h int) {
	return (f.w*p.h + f.hMax - 1) / f.hMax, (f.h*p.v + f.vMax - 1) / f.vMax
}

// scan reads the entropy-coded blocks of one or several components.
func (f *jpegFrame) scan(b []byte) error {
	if len(b) < 1 || len(b) < 4+2*int(b[0]) || b[0] < 1 || b[0] > 4 || len(f.parts) == 0 {
		return fmt.Errorf("%w: damaged JPEG: scan header", ErrImage)
	}
	n := int(b[0])
	var parts []*jpegPart
	for i := range n {
		for j := range f.parts {
			if p := &f.parts[j]; p.id == b[1+2*i] {
				t := b[2+2*i]
				if t>>4 > 3 || t&15 > 3 {
					return fmt.Errorf("%w: damaged JPEG: scan header", ErrImage)
				}
				p.dcTable, p.acTable, p.dc = f.huffman[0][t>>4], f.huffman[1][t&15], 0
				parts = append(parts, p)
				break
			}
		}
	}
	s := jpegScan{from: int(b[1+2*n]), to: int(b[2+2*n]), high: int(b[3+2*n] >> 4), low: int(b[3+2*n] & 15)}
	if !f.progressive {
		s = jpegScan{to: 63}
	}
	if len(parts) != n || s.from > s.to || s.to > 63 || s.low > 13 || f.progressive && s.from == 0 && s.to != 0 || s.from > 0 && n > 1 {
		return fmt.Errorf("%w: damaged JPEG: scan header", ErrImage)
	}
	for _, p := range parts {
		if dc, ac := s.from == 0 && s.high == 0, s.to > 0; dc && p.dcTable == nil || ac && p.acTable == nil {
			return fmt.Errorf("%w: damaged JPEG: a scan without its Huffman table", ErrImage)
		}
	}
	f.acc, f.accBits, f.eobRun = 0, 0, 0
	blocks := 0
	for _, p := range parts {
		blocks += p.h * p.v
	}
	if n > 1 && blocks > 10 { // T.81, B.2.3
		return fmt.Errorf("%w: a JPEG with %d blocks per unit, at most 10 are read", ErrImage, blocks)
	}
	across, down := f.mcus()
	if n == 1 { // not interleaved: only the blocks that hold samples
		across, down = parts[0].bw, parts[0].bh
	}
	for mcu := range across * down {
		if f.restart > 0 && mcu > 0 && mcu%f.restart == 0 {
			if err := f.restarted(parts); err != nil {
				return err
			}
		}
		x, y := mcu%across, mcu/across
		for _, p := range parts {
			h, v := p.h, p.v
			if n == 1 {
				h, v = 1, 1
			}
			for i := range h * v {
				block := &p.coefficients[(y*v+i/h)*p.stride+x*h+i%h]
				if err := f.block(p, block, s); err != nil {
					return fmt.Errorf("%w: damaged or truncated JPEG: %w", ErrImage, err)
				}
			}
		}
	}
	return nil
}

// jpegScan is the coefficients of a scan, in zigzag order, and the bits of them.
type jpegScan struct{ from, to, high, low int }

// restarted skips a restart marker.
func (f *jpegFrame) restarted(parts []*jpegPart) error {
	for len(f.data) >= 2 && f.data[0] == 0xff && f.data[1] == 0xff {
		f.data = f.data[1:]
	}
	if len(f.data) < 2 || f.data[0] != 0xff || f.data[1] < 0xd0 || f.data[1] > 0xd7 {
		return fmt.Errorf("%w: damaged JPEG: no restart marker", ErrImage)
	}
	f.data = f.data[2:]
	f.acc, f.accBits, f.eobRun = 0, 0, 0
	for _, p := range parts {
		p.dc = 0
	}
	return nil
}

// bit returns the next bit of the scan.
func (f *jpegFrame) bit() (int, error) {
	if f.accBits == 0 {
		if len(f.data) == 0 {
			return 0, errJPEGEnd
		}
		b := f.data[0]
		if b == 0xff {
			if len(f.data) < 2 || f.data[1] != 0 {
				return 0, errJPEGEnd
			}
			f.data = f.data[1:]
		}
		f.data = f.data[1:]
		f.acc, f.accBits = uint32(b), 8
	}
	f.accBits--
	return int(f.acc>>f.accBits) & 1, nil
}

// receive returns the next n bits.
func (f *jpegFrame) receive(n int) (int, error) {
	v := 0
	for range n {
		b, err := f.bit()
		if err != nil {
			return 0, err
		}
		v = v<<1 | b
	}
	return v, nil
}

// extended returns a value of n bits with a sign (T.81, F.2.2.1).
func (f *jpegFrame) extended(n int) (int, error) {
	if n > 16 {
		return 0, errors.New("a coefficient of too many bits")
	}
	v, err := f.receive(n)
	if err == nil && n > 0 && v < 1<<(n-1) {
		v += -1<<n + 1
	}
	return v, err
}

func (f *jpegFrame) symbol(t *huffmanTable) (int, error) {
	code := 0
	for length := 1; length <= 16; length++ {
		b, err := f.bit()
		if err != nil {
			return 0, err
		}
		code = code<<1 | b
		if code <= t.maxCode[length] {
			return int(t.values[t.first[length]+code-t.minCode[length]]), nil
		}
	}
	return 0, errors.New("unknown Huffman code")
}

// block reads a block's share of a scan.
func (f *jpegFrame) block(p *jpegPart, c *[64]int16, s jpegScan) error {
	k := s.from
	if k == 0 {
		if s.high > 0 {
			b, err := f.bit()
			c[0] |= int16(b << s.low)
			return err
		}
		n, err := f.symbol(p.dcTable)
		if err != nil {
			return err
		}
		d, err := f.extended(n)
		if err != nil {
			return err
		}
		p.dc += d
		c[0] = int16(p.dc << s.low)
		k = 1
	}
	if s.to == 0 {
		return nil
	}
	if s.high > 0 {
		return f.refine(p, c, s)
	}
	if f.eobRun > 0 {
		f.eobRun--
		return nil
	}
	for ; k <= s.to; k++ {
		v, err := f.symbol(p.acTable)
		if err != nil {
			return err
		}
		run, n := v>>4, v&15
		if n == 0 {
			if run == 15 {
				k += 15
				continue
			}
			if !f.progressive {
				return nil
			}
			return f.endOfBand(run)
		}
		if k += run; k > s.to {
			return errors.New("too many coefficients")
		}
		d, err := f.extended(n)
		if err != nil {
			return err
		}
		c[k] = int16(d << s.low)
	}
	return nil
}

// endOfBand starts a run of blocks without further coefficients. This block is the
// first.
func (f *jpegFrame) endOfBand(bits int) error {
	v, err := f.receive(bits)
	f.eobRun = 1<<bits + v - 1
	return err
}

// refine adds a bit to the coefficients of a block (T.81, G.1.2.3).
func (f *jpegFrame) refine(p *jpegPart, c *[64]int16, s jpegScan) error {
	step := int16(1) << s.low
	k := s.from
	// passed adds bits to nonzero coefficients until it has passed zeros zero ones.
	passed := func(zeros int) error {
		for ; k <= s.to; k++ {
			if c[k] == 0 {
				if zeros == 0 {
					return nil
				}
				zeros--
				continue
			}
			b, err := f.bit()
			if err != nil {
				return err
			}
			if b == 1 && c[k]&step == 0 {
				if c[k] > 0 {
					c[k] += step
				} else {
					c[k] -= step
				}
			}
		}
		return nil
	}
	if f.eobRun > 0 {
		f.eobRun--
		return passed(64)
	}
	for k <= s.to {
		v, err := f.symbol(p.acTable)
		if err != nil {
			return err
		}
		run, n := v>>4, v&15
		value := int16(0)
		switch {
		case n == 1:
			b, err := f.bit()
			if err != nil {
				return err
			}
			value = step
			if b == 0 {
				value = -step
			}
		case n != 0:
			return errors.New("unexpected Huffman value")
		case run < 15:
			if err := f.endOfBand(run); err != nil {
				return err
			}
			return passed(64)
		}
		if err := passed(run); err != nil {
			return err
		}
		if k <= s.to {
			if value != 0 {
				c[k] = value
			}
			k++
		}
	}
	return nil
}

// image transforms the blocks, and upsamples and converts the components.
func (f *jpegFrame) image() (*RGB, error) {
	planes := make([]*chroma, len(f.parts))
	rows := make([][]byte, len(f.parts))
	for i := range f.parts {
		p := &f.parts[i]
		p.pix = make([]byte, 64*p.stride*p.rows)
		for y := range p.rows {
			for x := range p.stride {
				inverseDCT(p.pix[(8*y*p.stride+x)*8:], 8*p.stride, &p.coefficients[y*p.stride+x], &f.quant[p.table])
			}
		}
		p.coefficients = nil
		w, h := p.size(f)
		planes[i] = &chroma{
			pix: p.pix, stride: 8 * p.stride, w: w, h: h, xStep: f.hMax / p.h, yStep: f.vMax / p.v,
			fancyX: f.hMax == 2*p.h && f.vMax <= 2*p.v && w > 2, sums: make([]int32, w),
		}
		rows[i] = make([]byte, w*planes[i].xStep)
	}
	out := newRGB(f.w, f.h)
	ids := [3]byte{}
	for i := range min(len(f.parts), 3) {
		ids[i] = f.parts[i].id
	}
	// libjpeg's guess of the colour space.
	ycc := f.jfif || !f.adobe && ids != [3]byte{'R', 'G', 'B'} || f.adobe && f.transform != 0
	if f.colours != jpegGuess {
		ycc = f.colours == jpegYCC
	}
	if len(f.parts) == 4 {
		ycc = f.adobe && f.transform == 2
	}
	for y := range f.h {
		for i, p := range planes {
			if p.xStep == 1 && p.yStep == 1 {
				rows[i] = p.row(y)
			} else {
				p.upsample(rows[i], y)
			}
		}
		dst := out.Pix[3*y*f.w : 3*(y+1)*f.w]
		switch {
		case len(rows) == 1:
			repeat(dst, rows[0][:f.w])
			continue
		case ycc:
			yccRow(dst, rows[0][:f.w], rows[1], rows[2])
		default:
			for x := range f.w {
				dst[3*x], dst[3*x+1], dst[3*x+2] = rows[0][x], rows[1][x], rows[2][x]
			}
		}
		if len(rows) == 4 {
			for x := range f.w {
				d, ink := dst[3*x:3*x+3], [4]byte{}
				for i := range 3 {
					ink[i] = d[i]
					if ycc {
						ink[i] = 255 - d[i] // ycck_cmyk_convert
					}
				}
				ink[3] = rows[3][x]
				if f.adobe { // Adobe stores inks inverted.
					for i := range ink {
						ink[i] = 255 - ink[i]
					}
				}
				cmykToRGB(d, ink[:])
			}
		}
	}
	return out, nil
}

// inverseDCT writes the 8×8 samples of a block to dst, which has rows of stride bytes.
// It is jidctint.c's jpeg_idct_islow: 13 fractional bits of the constants, and 2 between
// the passes.
func inverseDCT(dst []byte, stride int, c *[64]int16, quant *[64]uint16) {
	var t [64]int32
	for i, v := range c {
		t[zigzag[i]] = int32(v) * int32(quant[i])
	}
	for x := range 8 {
		pass(t[x:], 8, 11)
	}
	for y := range 8 {
		row := t[8*y : 8*y+8]
		pass(row, 1, 18)
		d := dst[y*stride : y*stride+8]
		for x, v := range row {
			d[x] = clamp8(v + 128)
		}
	}
}

// pass transforms eight values with the given distance in place and drops shift bits.
func pass(v []int32, step int, shift uint) {
	at := func(i int) int32 { return v[i*step] }
	z1 := (at(2) + at(6)) * 4433
	t2, t3 := z1-at(6)*15137, z1+at(2)*6270
	t0, t1 := (at(0)+at(4))<<13, (at(0)-at(4))<<13
	t10, t13, t11, t12 := t0+t3, t0-t3, t1+t2, t1-t2

	t0, t1, t2, t3 = at(7), at(5), at(3), at(1)
	z1, z2, z3, z4 := t0+t3, t1+t2, t0+t2, t1+t3
	z5 := (z3 + z4) * 9633
	z1, z2, z3, z4 = z1*-7373, z2*-20995, z3*-16069+z5, z4*-3196+z5
	t0, t1, t2, t3 = t0*2446+z1+z3, t1*16819+z2+z4, t2*25172+z2+z3, t3*12299+z1+z4

	round := int32(1) << (shift - 1)
	for i, p := range [4][2]int32{{t10, t3}, {t11, t2}, {t12, t1}, {t13, t0}} {
		v[i*step] = (p[0] + p[1] + round) >> shift
		v[(7-i)*step] = (p[0] - p[1] + round) >> shift
	}
}
