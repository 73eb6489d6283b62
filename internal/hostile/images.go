package hostile

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
)

// Image is an image file that a reader must reject. Want is Format or TooLarge.
type Image struct {
	Name string // format and defect
	Want Reason
	Data []byte
}

// Picture returns a small valid PNG.
func Picture() []byte {
	var b bytes.Buffer
	must(png.Encode(&b, gradient()))
	return b.Bytes()
}

// gradient returns an image of 48×32 pixels.
func gradient() image.Image {
	m := image.NewPaletted(image.Rect(0, 0, 48, 32), nil)
	for i := range 64 {
		m.Palette = append(m.Palette, color.RGBA{byte(4 * i), byte(255 - 3*i), byte(i), 255})
	}
	for i := range m.Pix {
		m.Pix[i] = byte(i % 64)
	}
	return m
}

// Images returns images of every supported format: bombs, a few bytes that declare
// hundreds of megabytes of pixels, and inconsistent, damaged and truncated files.
func Images() []Image {
	var out []Image
	for _, format := range []struct {
		name  string
		files func(add func(name string, want Reason, data []byte))
	}{{"PNG", pngs}, {"JPEG", jpegs}, {"GIF", gifs}, {"BMP", bmps}, {"TIFF", tiffs}, {"WebP", webps}} {
		format.files(func(name string, want Reason, data []byte) {
			out = append(out, Image{format.name + " " + name, want, data})
		})
	}
	return out
}

// put returns data with bytes replaced, at an offset from the first occurrence of a
// signature.
func put(data []byte, signature string, offset int, with ...byte) []byte {
	data = bytes.Clone(data)
	at := bytes.Index(data, []byte(signature))
	if at < 0 {
		panic("hostile: no such signature in the image")
	}
	copy(data[at+offset:], with)
	return data
}

const pngSignature = "\x89PNG\r\n\x1a\n"

// pngChunk returns a chunk with its length and checksum.
func pngChunk(kind string, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, kind...), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// pngHead returns the signature and header of a PNG.
func pngHead(w, h uint32, depth, kind, interlace byte) []byte {
	d := binary.BigEndian.AppendUint32(nil, w)
	d = append(binary.BigEndian.AppendUint32(d, h), depth, kind, 0, 0, interlace)
	return append([]byte(pngSignature), pngChunk("IHDR", d)...)
}

func pngs(add func(string, Reason, []byte)) {
	good := Picture()
	idat := bytes.Index(good, []byte("IDAT"))
	add("of 8000×8000 without data", Format, pngHead(8000, 8000, 8, 6, 0))
	add("of 8000×8000, interlaced, of 16 bits, without data", Format, pngHead(8000, 8000, 16, 6, 1))
	add("of 2^31 pixels a side", Format, pngHead(1<<31-1, 1<<31-1, 1, 0, 0))
	add("of 60000×60000", TooLarge, pngHead(60000, 60000, 1, 0, 0))
	add("of one line of 40 megapixels", TooLarge, pngHead(40_000_000, 1, 1, 0, 0))
	add("of width 0", Format, pngHead(0, 5, 8, 2, 0))
	add("of an unknown colour type", Format, pngHead(5, 5, 8, 7, 0))
	add("truncated in its header", Format, good[:20])
	add("truncated in its pixels", Format, good[:idat+20])
	add("with a wrong checksum", Format, put(good, "IDAT", 8, 0xff, 0xff))
	add("whose chunk is 2 GB", Format, put(good, "IDAT", -4, 0x7f, 0xff, 0xff, 0xff))
	add("with invalid pixel data", Format, append(pngHead(40, 40, 8, 2, 0), pngChunk("IDAT", bytes.Repeat([]byte{0x5a, 0xc3}, 900))...))
	add("of palette colours without a palette", Format, append(pngHead(40, 40, 8, 3, 0), pngChunk("IDAT", []byte("x"))...))
}

func jpegs(add func(string, Reason, []byte)) {
	var b bytes.Buffer
	must(jpeg.Encode(&b, gradient(), nil))
	good := b.Bytes()
	const frame, scan = "\xff\xc0", "\xff\xda"
	end := len(good) - 2
	at := bytes.Index(good, []byte(scan))
	add("of 8000×8000 in a kilobyte", Format, put(good, frame, 5, 0x1f, 0x40, 0x1f, 0x40))
	add("of 65535×65535", TooLarge, put(good, frame, 5, 0xff, 0xff, 0xff, 0xff))
	add("of height 0", Format, put(good, frame, 5, 0, 0))
	add("of 255 components", Format, put(good, frame, 9, 255))
	add("of 12 bits", Format, put(good, frame, 4, 12))
	add("of a sampling of 15×15", Format, put(good, frame, 11, 0xff))
	add("that ends after its first marker", Format, good[:4])
	add("truncated before its scan", Format, good[:at])
	add("truncated in its scan", Format, good[:at+40])
	add("whose Huffman table has too many codes", Format, put(good, "\xff\xc4", 5, 0xff, 0xff, 0xff))
	scans := bytes.Clone(good[:end])
	for range 300 {
		scans = append(scans, good[at:end]...)
	}
	add("of 300 scans", Format, append(scans, 0xff, 0xd9))
	add("whose segment is longer than the file", Format, put(good, "\xff\xdb", 2, 0xff, 0xff))
}

func gifs(add func(string, Reason, []byte)) {
	var b bytes.Buffer
	must(gif.Encode(&b, gradient(), nil))
	good := b.Bytes()
	frame := bytes.Index(good, []byte{',', 0, 0, 0, 0, 48, 0, 32, 0})
	const codeSize = 10
	add("with a screen of 65535×65535", TooLarge, put(good, "GIF8", 6, 0xff, 0xff, 0xff, 0xff))
	add("with a screen of 8000×8000", Format, put(good, "GIF8", 6, 0x40, 0x1f, 0x40, 0x1f))
	add("with a frame of 8000×8000", Format, put(good, string(good[frame:frame+9]), 5, 0x40, 0x1f, 0x40, 0x1f))
	add("with a frame of 65535×65535", TooLarge, put(good, string(good[frame:frame+9]), 5, 0xff, 0xff, 0xff, 0xff))
	add("with a frame at 65535, 65535", TooLarge, put(good, string(good[frame:frame+9]), 1, 0xff, 0xff, 0xff, 0xff))
	add("with codes of 255 bits", Format, put(good, string(good[frame:frame+9]), codeSize, 255))
	add("without a frame", Format, append(bytes.Clone(good[:frame]), ';'))
	add("truncated in its palette", Format, good[:20])
	add("truncated in its pixels", Format, good[:frame+60])
	add("of 5000 extensions", Format, append(bytes.Clone(good[:frame]), bytes.Repeat([]byte("!\xfe\x01x"), 5000)...))
}

// bmpHead returns the two headers of a BMP.
func bmpHead(w, h int32, bits uint16, compression uint32) []byte {
	b := []byte("BM\x36\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00")
	for _, v := range []any{w, h, uint16(1), bits, compression, [5]uint32{}} {
		b, _ = binary.Append(b, binary.LittleEndian, v)
	}
	return b
}

func bmps(add func(string, Reason, []byte)) {
	add("of 8000×8000 without pixels", Format, bmpHead(8000, 8000, 24, 0))
	add("of 65535×65535", TooLarge, bmpHead(65535, 65535, 24, 0))
	add("of 2^31 pixels a side", TooLarge, bmpHead(1<<31-1, 1<<31-1, 24, 0))
	add("of negative height", TooLarge, bmpHead(10, -1<<31, 24, 0))
	add("of negative width", Format, bmpHead(-10, 10, 24, 0))
	add("of 0 bits", Format, bmpHead(10, 10, 0, 0))
	add("run-length encoded", Format, append(bmpHead(8000, 8000, 8, 1), 0xff, 0, 0, 1))
	add("truncated in its header", Format, bmpHead(10, 10, 24, 0)[:30])
	add("truncated in its pixels", Format, append(bmpHead(10, 10, 24, 0), make([]byte, 100)...))
}

// tiffOf returns a little-endian TIFF with one directory of 32-bit values, followed by
// data.
func tiffOf(data []byte, tags ...[2]uint32) []byte {
	le := binary.LittleEndian
	b := append([]byte("II*\x00"), 8, 0, 0, 0)
	b = le.AppendUint16(b, uint16(len(tags)))
	for _, t := range tags {
		b = le.AppendUint16(b, uint16(t[0]))
		b = le.AppendUint32(le.AppendUint16(b, 4), 1)
		b = le.AppendUint32(b, t[1])
	}
	return append(le.AppendUint32(b, 0), data...)
}

// tiffTags returns the tags of a grey image with one strip directly after the
// directory.
func tiffTags(w, h, compression, length uint32) [][2]uint32 {
	return [][2]uint32{{256, w}, {257, h}, {258, 8}, {259, compression}, {262, 1}, {273, 8 + 2 + 8*12 + 4}, {278, h}, {279, length}}
}

func tiffs(add func(string, Reason, []byte)) {
	const plain, lzw, deflated = 1, 5, 8
	add("of 8000×8000 without pixels", Format, tiffOf(nil, tiffTags(8000, 8000, plain, 10)...))
	add("whose deflated strip is 8000×8000", TooLarge, tiffOf(nil, tiffTags(8000, 8000, deflated, 10)...))
	add("of four billion pixels a side", TooLarge, tiffOf(nil, tiffTags(1<<32-1, 1, deflated, 10)...))
	add("of 65,000 strips", Format, tiffOf(nil, [2]uint32{256, 900}, [2]uint32{257, 65000}, [2]uint32{258, 8}, [2]uint32{259, 8},
		[2]uint32{262, 1}, [2]uint32{273, 8}, [2]uint32{278, 1}, [2]uint32{279, 10}))
	add("of half a million tiles", Format, tiffOf(nil, [2]uint32{256, 8000}, [2]uint32{257, 8000}, [2]uint32{258, 8}, [2]uint32{259, 8},
		[2]uint32{262, 1}, [2]uint32{322, 8}, [2]uint32{323, 16}, [2]uint32{324, 8}, [2]uint32{325, 8}))
	add("whose tiles lack a height", Format, tiffOf(nil, [2]uint32{256, 80}, [2]uint32{257, 80}, [2]uint32{258, 8}, [2]uint32{259, 8},
		[2]uint32{262, 1}, [2]uint32{322, 16}, [2]uint32{324, 8}, [2]uint32{325, 8}))
	add("whose directory is beyond the end", Format, []byte("II*\x00\xff\xff\xff\xff"))
	add("with a directory of 65535 entries", Format, []byte("II*\x00\x08\x00\x00\x00\xff\xff"))
	add("with a strip beyond the end", Format, put(tiffOf(nil, tiffTags(10, 10, plain, 100)...), "\x11\x01\x04\x00", 8, 0xff, 0xff, 0xff, 0xff))
	add("of four billion strips", Format, put(tiffOf(nil, tiffTags(10, 10, plain, 100)...), "\x11\x01\x04\x00", 4, 0xff, 0xff, 0xff, 0xff))
	add("with invalid LZW data", Format, tiffOf(bytes.Repeat([]byte{0xff, 0x0f}, 50), tiffTags(100, 100, lzw, 100)...))
	add("with a truncated strip", Format, tiffOf(make([]byte, 50), tiffTags(10, 10, plain, 100)...))
	add("with JPEG compression", Format, tiffOf(make([]byte, 100), tiffTags(10, 10, 7, 100)...))
}

// webpOf returns a WebP file of the chunks.
func webpOf(chunks ...[]byte) []byte {
	body := append([]byte("WEBP"), bytes.Join(chunks, nil)...)
	return append(binary.LittleEndian.AppendUint32([]byte("RIFF"), uint32(len(body))), body...)
}

// webpChunk returns a chunk, padded to an even length.
func webpChunk(id string, data ...byte) []byte {
	b := append(binary.LittleEndian.AppendUint32([]byte(id), uint32(len(data))), data...)
	return append(b, make([]byte, len(data)&1)...)
}

func uint24(v int) []byte { return []byte{byte(v), byte(v >> 8), byte(v >> 16)} }

// webpCanvas returns the VP8X chunk, which declares the size. Flag 2 is animation, 16
// is alpha.
func webpCanvas(flags byte, w, h int) []byte {
	return webpChunk("VP8X", bytes.Join([][]byte{{flags, 0, 0, 0}, uint24(w - 1), uint24(h - 1)}, nil)...)
}

// webpFrame returns a frame of an animation.
func webpFrame(x, y, w, h int, chunks ...[]byte) []byte {
	head := bytes.Join([][]byte{uint24(x / 2), uint24(y / 2), uint24(w - 1), uint24(h - 1), {50, 0, 0, 0}}, nil)
	return webpChunk("ANMF", append(head, bytes.Join(chunks, nil)...)...)
}

func webps(add func(string, Reason, []byte)) {
	// A lossless header is a signature followed by 14 bits for each side.
	lossless := func(w, h int) []byte {
		return webpChunk("VP8L", append([]byte{0x2f}, binary.LittleEndian.AppendUint32(nil, uint32(w-1)|uint32(h-1)<<14)...)...)
	}
	lossy := func(w, h int) []byte {
		return webpChunk("VP8 ", 0x10, 0, 0, 0x9d, 1, 0x2a, byte(w), byte(w>>8), byte(h), byte(h>>8))
	}
	control := webpChunk("ANIM", 0, 0, 0, 0, 0, 0)
	const animated, alpha = 2, 16
	add("of 16384×16384, lossless", TooLarge, webpOf(lossless(16384, 16384)))
	add("of 8192×4096 without data, lossless", Format, webpOf(lossless(8192, 4096)))
	add("of 16383×16383, lossy", TooLarge, webpOf(lossy(16383, 16383)))
	add("of 8000×8000 without data, lossy", Format, webpOf(lossy(8000, 8000)))
	add("with a canvas of 16383×16383", TooLarge, webpOf(webpCanvas(alpha, 16383, 16383), webpChunk("ALPH", 0)))
	add("of only a signature", Format, webpOf())
	add("whose length is 4 GB", Format, put(webpOf(lossless(10, 10)), "RIFF", 4, 0xff, 0xff, 0xff, 0xff))
	add("truncated in its pixels", Format, webpOf(lossless(100, 100)))
	add("animated, without a frame", Format, webpOf(webpCanvas(animated, 10, 10), control))
	add("animated, with a truncated frame", Format, webpOf(webpCanvas(animated, 10, 10), control, webpChunk("ANMF", 0, 0)))
	add("animated, whose frame has no pixels", Format, webpOf(webpCanvas(animated, 10, 10), control, webpFrame(0, 0, 10, 10)))
	add("animated, on a canvas of 16384×16384", TooLarge, webpOf(webpCanvas(animated, 16384, 16384), control, webpFrame(0, 0, 1, 1, lossless(1, 1))))
	add("animated, on a canvas of 8000×8000 without data", Format, webpOf(webpCanvas(animated, 8000, 8000), control, webpFrame(0, 0, 1, 1, lossy(1, 1))))
	add("animated, with a frame beyond the canvas", Format, webpOf(webpCanvas(animated, 10, 10), control, webpFrame(8, 8, 10, 10, lossless(10, 10))))
	add("animated, with a frame larger than declared", Format, webpOf(webpCanvas(animated, 10, 10), control, webpFrame(0, 0, 10, 10, lossless(4000, 4000))))
	add("animated, whose frame is an animation", Format, webpOf(webpCanvas(animated, 10, 10), control,
		webpFrame(0, 0, 10, 10, webpCanvas(animated, 10, 10), webpFrame(0, 0, 10, 10))))
}
