package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"io"
)

// rows is an image that is decoded from top to bottom.
type rows struct {
	w, h int
	// largest is that of RGB. It is known before the first row.
	largest int
	// next writes the red, green and blue of the next row, 3·w bytes. It is called at most
	// h times.
	next func(dst []byte) error
	// end is called once after the last row, and finds damage behind it. It may be nil.
	end func() error
	// release returns memory to the pool. It may be nil.
	release func()
}

// openRows returns the rows of an image, which are those of Decode. It decodes row by row
// where the format stores rows in their order: PNGs of 8 bits that are not interlaced,
// and BMPs and TIFFs that are not compressed. Of a JPEG it holds the planes of brightness
// and colour, 1 to 3 bytes for each pixel, and converts them row by row. Any other image
// is decoded as a whole before, and so is one that must be turned. The errors are those of
// Decode; those of next and end are ErrImage, wrapped.
func openRows(data []byte, o Options) (r *rows, err error) {
	o = o.orDefault()
	if int64(len(data)) <= o.MaxBytes {
		format, _ := Sniff(data)
		defer func() {
			if p := recover(); p != nil {
				r, err = nil, fmt.Errorf("%w: damaged %s: %v", ErrImage, format, p)
			}
		}()
		switch format {
		case PNG:
			r, err = pngRows(data, o)
		case JPEG:
			r, err = jpegRows(data, o)
		case BMP:
			r, err = bmpRows(data, o)
		case TIFF:
			r, err = tiffRows(data, o)
		}
		if err != nil && (errors.Is(err, ErrImage) || errors.Is(err, ErrTooLarge)) {
			return nil, err
		}
		if r != nil && err == nil {
			return r, nil
		}
	}
	img, err := decode(data, o) // also for an error that only it describes
	if err != nil {
		return nil, err
	}
	return img.rows(), nil
}

// rows returns the rows of a decoded image.
func (img *RGB) rows() *rows {
	y := 0
	return &rows{w: img.W, h: img.H, largest: img.largest, next: func(dst []byte) error {
		if img.plane != nil && img.Pix == nil {
			repeat(dst, img.plane[y*img.W:(y+1)*img.W])
		} else {
			copy(dst, img.Pix[3*y*img.W:3*(y+1)*img.W])
		}
		y++
		return nil
	}, release: func() {
		giveBack(&img.Pix)
		giveBack(&img.plane)
	}}
}

// jpegRows returns the rows of a JPEG with a plane of brightness, and with those of colour or
// none; nil for others.
func jpegRows(data []byte, o Options) (*rows, error) {
	data = withHuffmanTables(data)
	if o.Upright {
		if n := jpegOrientation(data); n >= 2 && n <= 8 {
			return nil, nil
		}
	}
	planes, err := jpegPlanes(data, o.Limits)
	if err != nil {
		return nil, err
	}
	var row func(dst []byte, y int)
	switch m := planes.(type) {
	case *image.YCbCr:
		if row, err = ycbcrRows(m); err != nil {
			return nil, err
		}
	case *image.Gray:
		row = func(dst []byte, y int) { repeat(dst, m.Pix[y*m.Stride:][:m.Rect.Dx()]) }
	default:
		return nil, nil
	}
	y := 0
	return &rows{w: planes.Bounds().Dx(), h: planes.Bounds().Dy(), next: func(dst []byte) error {
		row(dst, y)
		y++
		return nil
	}}, nil
}

// bmpRows returns the rows of a BMP that is stored from top to bottom or from bottom to top
// with 8 bits or more for each pixel, nil for others.
func bmpRows(data []byte, o Options) (*rows, error) {
	d, err := readBMPHeader(data)
	if err != nil {
		return nil, err
	}
	if err := o.check(d.w, d.h); err != nil {
		return nil, err
	}
	stride := (d.w*d.bits + 31) / 32 * 4
	if d.compression == bmpRLE8 || d.compression == bmpRLE4 || d.bits < 8 || int64(stride)*int64(d.h) > int64(len(d.pixels)) {
		return nil, nil
	}
	pixel, size, y := d.pixel(), d.bits/8, 0
	return &rows{w: d.w, h: d.h, next: func(dst []byte) error {
		src := d.pixels[d.row(y)*stride:] // row is its own inverse
		for x := range d.w {
			pixel(dst[3*x:3*x+3:3*x+3], src[x*size:x*size+size:x*size+size])
		}
		y++
		return nil
	}}, nil
}

// tiffRows returns the rows of a TIFF of grey or RGB of 8 bits in strips that are not
// compressed, nil for others.
func tiffRows(data []byte, o Options) (*rows, error) {
	d, err := readTIFFDirectory(data)
	if err != nil {
		return nil, err
	}
	w, h := d.size()
	if err := o.check(w, h); err != nil {
		return nil, err
	}
	if err := d.supported(false); err != nil {
		return nil, err
	}
	samples, photometric := d.samples(), d.first(tagPhotometric)
	grey := photometric == blackIsZero && samples == 1
	colour := photometric == photometricRGB && samples == 3
	if !grey && !colour || d.packed() || d.or(tagPlanar, 1) != 1 || d.or(tagFillOrder, 1) != 1 || d.or(tagPredictor, 1) != 1 ||
		d.entries[tagTileWidth].count > 0 || d.entries[tagSampleFormat].count > 0 && d.first(tagSampleFormat) != 1 {
		return nil, nil
	}
	if n := d.orientation(o.Upright); n >= 2 && n <= 8 {
		return nil, nil
	}
	for i := range samples {
		if d.at(tagBitsPerSample, int64(min(i, max(int(d.entries[tagBitsPerSample].count)-1, 0)))) != 8 {
			return nil, nil
		}
	}
	if err := d.plausible(len(data), image.Config{Width: w, Height: h}, o.Limits); err != nil {
		return nil, err
	}
	perStrip := h
	if n := d.first(tagRowsPerStrip); n > 0 {
		perStrip = min(n, h)
	}
	stride := w * samples
	for i := range (h + perStrip - 1) / perStrip { // a strip that is cut off is left to the whole decoder
		at, n := d.at(tagStripOffsets, int64(i)), stride*min(perStrip, h-i*perStrip)
		if at <= 0 || at > len(data)-n || d.at(tagStripByteCounts, int64(i)) < n {
			return nil, nil
		}
	}
	y := 0
	return &rows{w: w, h: h, next: func(dst []byte) error {
		src := data[d.at(tagStripOffsets, int64(y/perStrip))+y%perStrip*stride:][:stride]
		if grey {
			repeat(dst, src)
		} else {
			copy(dst, src)
		}
		y++
		return nil
	}}, nil
}

// pngSamples are the samples of a pixel by PNG's colour type, of the types that pngRows
// reads.
var pngSamples = map[byte]int{0: 1, 2: 3, 4: 2, 6: 4}

// pngRows returns the rows of a PNG of 8 bits for each sample that is not interlaced and has
// no palette, nil for others and for those that are damaged before the pixels.
func pngRows(data []byte, o Options) (*rows, error) {
	data = completePNG(data)
	cfg, err := pngConfig(data, o.Limits)
	if err != nil {
		return nil, err
	}
	samples := pngSamples[data[25]]
	if samples == 0 || data[24] != 8 || data[28] != 0 {
		return nil, nil
	}
	if o.Upright {
		if n := pngOrientation(data); n >= 2 && n <= 8 {
			return nil, nil
		}
	}
	var parts []io.Reader
	sound, ended := true, false // no chunk is damaged, and the pixels are in one run of chunks
	p := 8
	_, complete := pngChunks(data, func(id string, body []byte) {
		sum := binary.BigEndian.Uint32(data[p+8+len(body):])
		sound = sound && crc32.ChecksumIEEE(data[p+4:p+8+len(body)]) == sum
		switch {
		case id == "IDAT":
			sound = sound && !ended
			parts = append(parts, bytes.NewReader(body))
		case len(parts) > 0:
			ended = true
		case id == "tRNS":
			sound = sound && samples != 1 && samples != 3 // colours that are transparent
		}
		p += 12 + len(body)
	})
	if !complete || !sound || len(parts) == 0 {
		return nil, nil
	}
	z, err := zlib.NewReader(io.MultiReader(parts...))
	if err != nil {
		return nil, err
	}
	damaged := func(err error) error {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: damaged PNG: it has too few pixels", ErrImage)
		}
		return fmt.Errorf("%w: damaged PNG: %w", ErrImage, err)
	}
	n := cfg.Width * samples
	line, before := make([]byte, n+1), make([]byte, n+1) // with the filter's type in front
	return &rows{w: cfg.Width, h: cfg.Height, next: func(dst []byte) error {
		line, before = before, line
		if _, err := io.ReadFull(z, line); err != nil {
			return damaged(err)
		}
		if err := unfilter(line[0], line[1:], before[1:], samples); err != nil {
			return err
		}
		pixels := line[1:]
		switch samples {
		case 1:
			repeat(dst, pixels)
		case 3:
			copy(dst, pixels)
		case 2:
			for x := range cfg.Width {
				v := pixels[2*x]
				dst[3*x], dst[3*x+1], dst[3*x+2] = v, v, v
			}
		default:
			for x := range cfg.Width {
				copy(dst[3*x:3*x+3], pixels[4*x:4*x+3])
			}
		}
		return nil
	}, end: func() error {
		var more [1]byte
		for tries := 0; ; tries++ {
			k, err := z.Read(more[:])
			if err == io.EOF && k == 0 {
				return nil
			}
			if k > 0 || err == nil && tries > 100 {
				return fmt.Errorf("%w: damaged PNG: it has too many pixels", ErrImage)
			}
			if err != nil {
				return damaged(err)
			}
		}
	}}, nil
}

// unfilter reverses the filter of a row of a PNG, whose pixels have n bytes. before is the
// row before.
func unfilter(kind byte, row, before []byte, n int) error {
	switch kind {
	case 0:
	case 1: // the pixel to the left
		for i := n; i < len(row); i++ {
			row[i] += row[i-n]
		}
	case 2: // the pixel above
		for i, v := range before {
			row[i] += v
		}
	case 3: // the mean of both
		for i := range row {
			left := 0
			if i >= n {
				left = int(row[i-n])
			}
			row[i] += byte((left + int(before[i])) / 2)
		}
	case 4: // that of left, above and above left that is nearest to left + above − above left
		for i := range row {
			var left, corner int
			if i >= n {
				left, corner = int(row[i-n]), int(before[i-n])
			}
			above := int(before[i])
			toLeft, toAbove := above-corner, left-corner
			toCorner := toLeft + toAbove
			toLeft, toAbove, toCorner = max(toLeft, -toLeft), max(toAbove, -toAbove), max(toCorner, -toCorner)
			switch {
			case toLeft <= toAbove && toLeft <= toCorner:
				row[i] += byte(left)
			case toAbove <= toCorner:
				row[i] += byte(above)
			default:
				row[i] += byte(corner)
			}
		}
	default:
		return fmt.Errorf("%w: damaged PNG: a row has the filter %d", ErrImage, kind)
	}
	return nil
}
