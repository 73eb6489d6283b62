package dicom

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// planted is text that must not be in any error.
const planted = "PLANTED^NAME"

// el returns an element in explicit little endian.
func el(t tag, vr, value string) string {
	b := head(t)
	b = append(b, vr...)
	switch vr {
	case "OB", "OV", "OW", "SQ", "UN", "UT":
		b = binary.LittleEndian.AppendUint32(append(b, 0, 0), uint32(len(value)))
	default:
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	}
	return string(b) + value
}

func head(t tag) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(t>>16))
	return binary.LittleEndian.AppendUint16(b, uint16(t))
}

// open returns the header of an element of undefined length.
func open(t tag, vr string) string { return string(head(t)) + vr + "\x00\x00\xff\xff\xff\xff" }

// item returns an item of a sequence with its length.
func item(value string) string { return itemOf(uint32(len(value))) + value }

func itemOf(length uint32) string {
	return string(binary.LittleEndian.AppendUint32(head(tagItem), length))
}

const (
	itemEnd     = "\xfe\xff\x0d\xe0\x00\x00\x00\x00"
	sequenceEnd = "\xfe\xff\xdd\xe0\x00\x00\x00\x00"
)

func us(v int) string { return string(binary.LittleEndian.AppendUint16(nil, uint16(v))) }

// attributes returns the attributes of an image of grey bytes, with the replacements in
// change. An empty one is left out.
func attributes(w, h int, change map[tag]string) string {
	values := map[tag]string{
		0x00100010:        el(0x00100010, "PN", planted),
		tagSamples:        el(tagSamples, "US", us(1)),
		tagPhotometric:    el(tagPhotometric, "CS", "MONOCHROME2 "),
		tagRows:           el(tagRows, "US", us(h)),
		tagColumns:        el(tagColumns, "US", us(w)),
		tagBitsAllocated:  el(tagBitsAllocated, "US", us(8)),
		tagBitsStored:     el(tagBitsStored, "US", us(8)),
		tagHighBit:        el(tagHighBit, "US", us(7)),
		tagRepresentation: el(tagRepresentation, "US", us(0)),
	}
	for t, v := range change {
		values[t] = v
	}
	var tags []tag
	for t := range values {
		tags = append(tags, t)
	}
	slices.Sort(tags)
	var b strings.Builder
	for _, t := range tags {
		b.WriteString(values[t])
	}
	return b.String()
}

// inFile returns a file of a data set in a transfer syntax.
func inFile(uid, dataset string) []byte {
	if len(uid)%2 != 0 {
		uid += "\x00"
	}
	return []byte(strings.Repeat("\x00", preamble) + signature + el(tagTransferSyntax, "UI", uid) + dataset)
}

func native(w, h int, change map[tag]string, pixels string) []byte {
	return inFile(explicitLittle, attributes(w, h, change)+el(tagPixels, "OB", pixels))
}

// fragmented returns a file of encapsulated frames: the offsets, then the fragments.
func fragmented(uid string, w, h int, change map[tag]string, items ...string) []byte {
	d := attributes(w, h, change) + open(tagPixels, "OB")
	for _, i := range items {
		d += item(i)
	}
	return inFile(uid, d+sequenceEnd)
}

// change returns the change of one attribute.
func change(t tag, vr, value string) map[tag]string { return map[tag]string{t: el(t, vr, value)} }

func packed(data string) string {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestCompression)
	_, _ = w.Write([]byte(data))
	_ = w.Close()
	return b.String()
}

// runs is a run-length encoded segment's header and content.
func runs(segments int, offset uint32, content string) string {
	b := binary.LittleEndian.AppendUint32(nil, uint32(segments))
	b = binary.LittleEndian.AppendUint32(b, offset)
	return string(b) + strings.Repeat("\x00", 64-len(b)) + content
}

// frameHeader is a JPEG of a size, without content.
func frameHeader(sof byte, w, h int) string {
	return string([]byte{0xff, 0xd8, 0xff, sof, 0, 11, 8, byte(h >> 8), byte(h), byte(w >> 8), byte(w), 1, 1, 0x11, 0})
}

// codestreamOf is a JPEG 2000 codestream of a tile without content.
func codestreamOf(w, h, tile uint32, style string) string {
	be := binary.BigEndian
	b := []byte{0xff, 0x4f, 0xff, 0x51, 0, 41, 0, 0}
	for _, v := range []uint32{w, h, 0, 0, tile, tile, 0, 0} {
		b = be.AppendUint32(b, v)
	}
	b = append(be.AppendUint16(b, 1), 7, 1, 1)
	b = append(b, 0xff, 0x52)
	b = be.AppendUint16(b, uint16(2+len(style)))
	b = append(b, style...)
	b = append(b, 0xff, 0x5c, 0, 4+3*5, 0x40)
	b = append(b, bytes.Repeat([]byte{0x48}, 1+3*5)...)
	b = append(b, 0xff, 0x90, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x93)
	return string(b) + strings.Repeat("\x80", 40)
}

type hostile struct {
	name string
	data []byte
	want string // in the error
	// most is the memory in bytes; 0 means 1 MiB.
	most uint64
}

// corpus are files that must be refused.
func corpus() []hostile {
	nested := strings.Repeat(open(0x00081140, "SQ")+itemOf(undefined), 10_000)
	unknown := strings.Repeat(open(0x00091001, "UN")+itemOf(undefined), 1) + strings.Repeat("\x08\x00\x40\x11\xff\xff\xff\xff"+itemOf(undefined), 10_000)
	groups := open(tagShared, "SQ") + itemOf(undefined) + strings.Repeat(open(tagFrameVOI, "SQ")+itemOf(undefined), 10_000)
	bitsOf := func(allocated, stored, high int) map[tag]string {
		return map[tag]string{tagBitsAllocated: el(tagBitsAllocated, "US", us(allocated)), tagBitsStored: el(tagBitsStored, "US", us(stored)), tagHighBit: el(tagHighBit, "US", us(high))}
	}
	paletteOf := func(descriptor, entries string) map[tag]string {
		m := change(tagPhotometric, "CS", "PALETTE COLOR ")
		for i := range tag(3) {
			m[tagRedDescriptor+i] = el(tagRedDescriptor+i, "US", descriptor)
			m[tagRedPalette+i] = el(tagRedPalette+i, "OW", entries)
		}
		return m
	}
	windowOf := func(center, width string) map[tag]string {
		return map[tag]string{tagWindowCenter: el(tagWindowCenter, "DS", center), tagWindowWidth: el(tagWindowWidth, "DS", width)}
	}
	frames := func(n string) map[tag]string { return change(tagFrames, "IS", n) }
	rgb := map[tag]string{tagSamples: el(tagSamples, "US", us(3)), tagPhotometric: el(tagPhotometric, "CS", "RGB ")}
	ybr := map[tag]string{tagSamples: el(tagSamples, "US", us(3)), tagPhotometric: el(tagPhotometric, "CS", "YBR_FULL_422")}
	style := func(layers int, levels, blocks, flags byte, precincts string) string {
		scod := byte(0)
		if precincts != "" {
			scod = 1
		}
		return string([]byte{scod, 0, byte(layers >> 8), byte(layers), 0, levels, blocks, blocks, flags, 1}) + precincts
	}
	plain := style(1, 5, 4, 0, "")
	pixels := strings.Repeat("x", 16)
	all := []hostile{
		{name: "nothing after the preamble", data: inFile(explicitLittle, ""), want: "no image"},
		{name: "no pixel data", data: inFile(explicitLittle, attributes(4, 4, nil)), want: "no image"},
		{name: "an element longer than the file", data: inFile(explicitLittle, string(head(0x00091010))+"OB\x00\x00\xfe\xff\xff\xff"), want: "truncated"},
		{name: "pixel data longer than the file", data: inFile(explicitLittle, attributes(4, 4, nil)+string(head(tagPixels))+"OB\x00\x00\x00\x00\x00\x70"), want: "truncated"},
		{name: "no value representation", data: inFile(explicitLittle, el(0x00080005, "CS", "A ")+"\x10\x00\x10\x00\x01\x02\x03\x04"+planted), want: "malformed"},
		{name: "sequences nested 10,000 deep", data: inFile(explicitLittle, nested), want: "nested"},
		{name: "implicit sequences nested 10,000 deep", data: inFile(explicitLittle, unknown), want: "nested"},
		{name: "functional groups nested 10,000 deep", data: inFile(explicitLittle, groups), want: "nested"},
		{name: "a number of undefined length", data: inFile(explicitLittle, open(0x00280010, "OF")), want: "malformed"},
		{name: "meta information of undefined length", data: []byte(strings.Repeat("\x00", 128) + "DICM" + open(0x00020001, "OB")), want: "malformed"},
		{name: "a delimiter without a sequence", data: inFile(explicitLittle, sequenceEnd), want: "malformed"},
		{name: "no item in a sequence", data: inFile(explicitLittle, open(0x00081140, "SQ")+el(0x00100010, "PN", planted)), want: "malformed"},
		{name: "65535×65535 pixels in 10 bytes", data: native(65535, 65535, nil, strings.Repeat("x", 10)), want: "pixels"},
		{name: "8000×8000 pixels in 10 bytes", data: native(8000, 8000, nil, strings.Repeat("x", 10)), want: "10 bytes of pixel data"},
		{name: "no rows", data: native(4, 0, nil, strings.Repeat("x", 16)), want: "pixels"},
		{name: "no columns", data: native(0, 4, nil, strings.Repeat("x", 16)), want: "pixels"},
		{name: "no size", data: native(4, 4, map[tag]string{tagRows: ""}, strings.Repeat("x", 16)), want: "no size"},
		{name: "2^31 frames", data: native(4, 4, frames("2147483648"), strings.Repeat("x", 16)), want: "number of frames"},
		{name: "2^31-1 frames", data: native(8000, 8000, frames("2147483647"), strings.Repeat("x", 16)), want: "2147483647 frames of 8000×8000 pixels"},
		{name: "-1 frames", data: native(4, 4, frames("-1"), strings.Repeat("x", 16)), want: "number of frames"},
		{name: "frames in words", data: native(4, 4, frames(planted), strings.Repeat("x", 16)), want: "number"},
		{name: "a million frames in a fragment", data: fragmented(runLength, 4, 4, frames("1000000"), "", runs(1, 64, "\xf1\x00")), want: "1000000 frames"},
		{name: "12 bits allocated", data: native(4, 4, bitsOf(12, 12, 11), strings.Repeat("x", 24)), want: "12 bits allocated"},
		{name: "32 bits allocated", data: native(4, 4, bitsOf(32, 32, 31), strings.Repeat("x", 64)), want: "32 bits allocated"},
		{name: "no bits allocated", data: native(4, 4, bitsOf(0, 0, 0), ""), want: "0 bits allocated"},
		{name: "more bits stored than allocated", data: native(4, 4, bitsOf(8, 17, 16), strings.Repeat("x", 16)), want: "impossible"},
		{name: "no bits stored", data: native(4, 4, bitsOf(8, 0, 7), strings.Repeat("x", 16)), want: "impossible"},
		{name: "a high bit below the bits stored", data: native(4, 4, bitsOf(8, 8, 3), strings.Repeat("x", 16)), want: "impossible"},
		{name: "65535 samples per pixel", data: native(4, 4, change(tagSamples, "US", us(65535)), strings.Repeat("x", 16)), want: "65535 samples"},
		{name: "an unknown photometric interpretation", data: native(4, 4, change(tagPhotometric, "CS", planted), strings.Repeat("x", 16)), want: "photometric"},
		{name: "CMYK", data: native(4, 4, change(tagPhotometric, "CS", "CMYK"), strings.Repeat("x", 64)), want: "CMYK"},
		{name: "an unknown planar configuration", data: native(4, 4, with(rgb, tagPlanar, el(tagPlanar, "US", us(7))), strings.Repeat("x", 48)), want: "planar configuration 7"},
		{name: "YBR_FULL_422 of an odd width", data: native(3, 4, ybr, strings.Repeat("x", 24)), want: "odd number of columns"},
		{name: "no palette", data: native(4, 4, change(tagPhotometric, "CS", "PALETTE COLOR "), strings.Repeat("x", 16)), want: "palette"},
		{name: "a short palette", data: native(4, 4, paletteOf("\x00\x00\x00\x00\x10\x00", "\x00\x01"), strings.Repeat("x", 16)), want: "palette"},
		{name: "a palette of 77 bits", data: native(4, 4, paletteOf("\x02\x00\x00\x00\x4d\x00", "\x00\x01\x02\x03"), strings.Repeat("x", 16)), want: "palette"},
		{name: "a segmented palette", data: native(4, 4, with(paletteOf("\x02\x00\x00\x00\x10\x00", "\x00\x01\x02\x03"), tagRedSegmented, el(tagRedSegmented, "OW", "\x00\x00")), strings.Repeat("x", 16)), want: "segmented palette"},
		{name: "floating-point pixels", data: inFile(explicitLittle, attributes(4, 4, nil)+string(head(tagFloatPixels))+"OF\x00\x00\x00\x00\x00\x00"), want: "floating-point"},
		{name: "a window without width", data: native(4, 4, windowOf("1 ", "0 "), strings.Repeat("x", 16)), want: "window"},
		{name: "a window that is no number", data: native(4, 4, windowOf("NaN ", "1 "), strings.Repeat("x", 16)), want: "number"},
		{name: "a window beyond all numbers", data: native(4, 4, windowOf("1e999 ", "1 "), strings.Repeat("x", 16)), want: "number"},
		{name: "a slope of 0", data: native(4, 4, change(tagSlope, "DS", "0 "), strings.Repeat("x", 16)), want: "slope"},
		{name: "an unknown transfer syntax", data: inFile(planted, attributes(4, 4, nil)), want: "unknown transfer syntax"},
		{name: "video", data: inFile(jpeg+"102", attributes(4, 4, nil)), want: "MPEG-4 video DICOM images are not read: "},
		{name: "high-throughput JPEG 2000", data: inFile(jpeg+"201", attributes(4, 4, nil)), want: "high-throughput JPEG 2000 DICOM images are not read: "},
		{name: "fragments in a native syntax", data: fragmented(explicitLittle, 4, 4, nil, "", "x"), want: "fragments"},
		{name: "no fragments in an encapsulated syntax", data: inFile(runLength, attributes(4, 4, nil)+el(tagPixels, "OB", strings.Repeat("x", 16))), want: "fragments"},
		{name: "a native frame in a short fragment", data: fragmented(encapsulated, 8000, 8000, nil, "", "xx"), want: "2 bytes, expected 64000000"},
		{name: "bits in a short fragment", data: fragmented(encapsulated, 8000, 8000, bitsOf(1, 1, 0), "", "xx"), want: "2 bytes, expected 8000000"},
		{name: "an empty list of fragments", data: fragmented(runLength, 4, 4, nil), want: "no fragments"},
		{name: "a fragment longer than the file", data: inFile(runLength, attributes(4, 4, nil)+open(tagPixels, "OB")+item("")+itemOf(0x7fffffff)), want: "truncated"},
		{name: "a fragment of undefined length", data: inFile(runLength, attributes(4, 4, nil)+open(tagPixels, "OB")+item("")+itemOf(undefined)), want: "malformed"},
		{name: "too many fragments", data: inFile(runLength, attributes(4, 4, nil)+open(tagPixels, "OB")+strings.Repeat(item(""), maxFragments+2)), want: "fragments", most: 24 << 20},
		{name: "offsets outside the pixel data", data: fragmented(runLength, 4, 4, frames("2 "), "\xff\xff\xff\x7f\xff\xff\xff\xff", "aa", "bb", "cc"), want: "offsets"},
		{name: "frames that cannot be told apart", data: fragmented(runLength, 4, 4, frames("2 "), "", "aa", "bb", "cc"), want: "told apart"},
		{name: "a run-length bomb", data: fragmented(runLength, 8000, 8000, nil, "", runs(1, 64, "\x81\x00\x81\x00")), want: "run-length"},
		{name: "a short run-length segment", data: fragmented(runLength, 4, 4, nil, "", runs(1, 64, "\xfd\x00")), want: "run-length"},
		{name: "15 run-length segments", data: fragmented(runLength, 4, 4, nil, "", runs(15, 64, "\xf1\x00")), want: "run-length"},
		{name: "a run-length segment outside the frame", data: fragmented(runLength, 4, 4, nil, "", runs(1, 0xfffffff0, "\xf1\x00")), want: "run-length"},
		{name: "a run-length segment in its header", data: fragmented(runLength, 4, 4, nil, "", runs(1, 2, "\xf1\x00")), want: "run-length"},
		{name: "a deflate bomb", data: inFile(deflated, packed(strings.Repeat("\x00", 64<<20))), want: "unpacks to more than", most: 96 << 20},
		{name: "damaged deflate", data: inFile(deflated, "\xff\xff\xff\xff"), want: "damaged"},
		{name: "a JPEG of another size", data: fragmented(jpeg+"50", 4, 4, nil, "", frameHeader(0xc0, 65535, 65535)), want: "JPEG baseline"},
		{name: "a lossless JPEG of another size", data: fragmented(jpeg+"70", 4, 4, nil, "", frameHeader(0xc3, 65535, 65535)), want: "65535×65535"},
		{name: "a lossless JPEG without content", data: fragmented(jpeg+"70", 8000, 8000, nil, "", frameHeader(0xc3, 8000, 8000)), want: "more pixels"},
		{name: "a lossless JPEG of another process", data: fragmented(jpeg+"57", 4, 4, nil, "", frameHeader(0xc0, 4, 4)), want: "another process"},
		{name: "a JPEG-LS without content", data: fragmented(jpeg+"80", 8000, 8000, nil, "", frameHeader(0xf7, 8000, 8000)), want: "more pixels"},
		{name: "a JPEG-LS that ends", data: fragmented(jpeg+"80", 4, 4, nil, "", frameHeader(0xf7, 4, 4)+"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"), want: "truncated"},
		{name: "a JPEG 2000 of another size", data: fragmented(jpeg+"90", 4, 4, nil, "", codestreamOf(1<<31-1, 1<<31-1, 1<<31-1, plain)), want: "2147483647"},
		{name: "a JPEG 2000 of 2^32-1 pixels a side", data: fragmented(jpeg+"90", 4, 4, nil, "", codestreamOf(1<<32-1, 1<<32-1, 1<<32-1, plain)), want: "damaged"},
		{name: "a JPEG 2000 of a million tiles", data: fragmented(jpeg+"90", 1000, 1000, nil, "", codestreamOf(1000, 1000, 1, plain)), want: "65535 tiles"},
		{name: "a JPEG 2000 of 10,000 tiles of 10×10 pixels", data: fragmented(jpeg+"90", 1000, 1000, nil, "", codestreamOf(1000, 1000, 10, plain)), want: "10000 tiles"},
		{name: "a JPEG 2000 of 25 megapixels", data: fragmented(jpeg+"90", 5000, 5000, nil, "", codestreamOf(5000, 5000, 5000, plain)), want: "has 25000000 samples", most: 4 << 20},
		{name: "a JPEG 2000 without its tiles", data: fragmented(jpeg+"90", 100, 100, nil, "", codestreamOf(100, 100, 10, plain)), want: "truncated"},
		{name: "a JPEG 2000 of 1×1 precincts", data: fragmented(jpeg+"90", 1000, 1000, nil, "", codestreamOf(1000, 1000, 1000, style(1, 5, 4, 0, "\x11\x11\x11\x11\x11\x11"))), want: "more precincts than bytes", most: 4 << 20},
		{name: "a JPEG 2000 of precincts without a size", data: fragmented(jpeg+"90", 1000, 1000, nil, "", codestreamOf(1000, 1000, 1000, style(1, 5, 4, 0, "\x00\x00\x00\x00\x00\x00"))), want: "precincts are too small"},
		{name: "a JPEG 2000 of 65535 layers", data: fragmented(jpeg+"90", 1000, 1000, nil, "", codestreamOf(1000, 1000, 1000, style(65535, 5, 4, 0, ""))), want: "damaged", most: 4 << 20},
		{name: "a JPEG 2000 of 200 levels", data: fragmented(jpeg+"90", 100, 100, nil, "", codestreamOf(100, 100, 100, style(1, 200, 4, 0, ""))), want: "200 levels"},
		{name: "a JPEG 2000 of 4×4 blocks without content", data: fragmented(jpeg+"90", 8000, 2000, nil, "", codestreamOf(8000, 2000, 8000, style(1, 1, 0, 0, ""))+strings.Repeat("\x80", 2000)), want: "too many blocks", most: 64 << 20},
		{name: "a JPEG 2000 with high-throughput coding", data: fragmented(jpeg+"90", 100, 100, nil, "", codestreamOf(100, 100, 100, style(1, 5, 4, 64, ""))), want: "high-throughput"},
	}
	return append(append(all, tableCorpus(pixels)...), frameCorpus(pixels)...)
}

// with returns a map with one more entry.
func with(m map[tag]string, t tag, v string) map[tag]string {
	out := map[tag]string{t: v}
	for k, e := range m {
		if k != t {
			out[k] = e
		}
	}
	return out
}

// serviceLimits are the defaults of internal/imagefile.
func serviceLimits() Limits { return limits(32<<20, 64_000_000) }

func TestDecode_RefusesHostileFilesInBoundedMemoryAndTime(t *testing.T) {
	all := corpus()
	header := func(w, h int) string { return strings.Replace(frameHeader(0xc1, w, h), "\x0b\x08", "\x0b\x0c", 1) }
	all = append(all,
		hostile{name: "a JPEG of 12 bits of another size", data: deepJPEG(4, 4, header(65535, 65535)), want: "65535×65535"},
		hostile{name: "a JPEG of 12 bits without content", data: deepJPEG(8000, 8000, header(8000, 8000)), want: "more pixels"},
		hostile{name: "a JPEG of 12 bits without a scan", data: deepJPEG(4, 4, header(4, 4)+"\xff\xd9"), want: "damaged"},
		hostile{name: "a JPEG of 12 bits of another process", data: deepJPEG(4, 4, strings.Replace(header(4, 4), "\xc1", "\xc2", 1)), want: "not read"},
	)
	if len(all) < 100 {
		t.Fatalf("%d files, expected at least 100", len(all))
	}
	for _, c := range all {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := decodeFrame(c.data, 0, serviceLimits(), testJPEG)
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, expected %q", err, c.want)
			}
			if strings.Contains(err.Error(), "PLANTED") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has text of the file or several lines", err)
			}
			most := c.most
			if most == 0 {
				most = 1 << 20
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > most {
				t.Errorf("%d bytes allocated, expected at most %d", got, most)
			}
			if took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestDecode_ReadsAWindowOfTheHighBits(t *testing.T) {
	// Values of 4 bits below other bits, which do not count.
	data := native(2, 1, map[tag]string{tagBitsStored: el(tagBitsStored, "US", us(4)), tagHighBit: el(tagHighBit, "US", us(5))}, "\xc3\xff")
	img, err := decodeFrame(data, 0, testLimits(), testJPEG)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.Grey, []uint16{0, 65535}) {
		t.Errorf("%v, expected 0 and 65535", img.Grey)
	}
}

func TestDecode_ReadsWhatProgramsWriteAgainstTheStandard(t *testing.T) {
	explicit, implicit := read(t, "explicit_mono2_8.dcm"), read(t, "no_meta.dcm")
	plain := strings.Repeat("\x00\xff", 8)
	for name, data := range map[string][]byte{
		"explicit elements in an implicit file":    bytes.Replace(explicit, []byte(explicitLittle+"\x00"), []byte(implicitLittle+"\x00\x00\x00"), 1),
		"implicit elements in an explicit file":    inFile(explicitLittle, string(implicit)),
		"0 frames":                                 native(4, 4, change(tagFrames, "IS", "0 "), plain),
		"an empty number of frames":                native(4, 4, change(tagFrames, "IS", ""), plain),
		"an empty window":                          native(4, 4, map[tag]string{tagWindowCenter: el(tagWindowCenter, "DS", "  "), tagWindowWidth: el(tagWindowWidth, "DS", "")}, plain),
		"bytes after the pixels":                   append(native(4, 4, nil, plain), "trailing"...),
		"no delimiter after the fragments":         inFile(runLength, attributes(4, 4, nil)+open(tagPixels, "OB")+item("")+item(runs(1, 64, "\xf1\x00"))),
		"no bits stored, high bit or photometrics": native(4, 4, map[tag]string{tagBitsStored: "", tagHighBit: "", tagPhotometric: ""}, plain),
	} {
		if img, err := decodeFrame(data, 0, testLimits(), testJPEG); err != nil || len(img.Grey) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecode_RefusesTruncatedFiles(t *testing.T) {
	for _, g := range goldens(t) {
		data := read(t, g.File)
		for cut := 0; cut < len(data)-40; cut += 1 + len(data)/23 {
			if img, err := decodeFrame(data[:cut], 0, testLimits(), testJPEG); err == nil {
				t.Errorf("%s cut at %d of %d: %d×%d pixels, expected an error", g.File, cut, len(data), img.W, img.H)
			}
		}
	}
}

func TestDecode_ReturnsEachFrame(t *testing.T) {
	for _, name := range []string{"explicit_frames.dcm", "rle_frames.dcm", "jpeg2000_frames.dcm"} {
		data := read(t, name)
		var first []uint16
		for frame := range 3 {
			img, err := decodeFrame(data, frame, testLimits(), testJPEG)
			if err != nil {
				t.Fatal(name, err)
			}
			if frame == 0 {
				first = img.Grey
			} else if slices.Equal(first, img.Grey) {
				t.Errorf("%s: frame %d equals frame 0", name, frame)
			}
		}
		if _, err := decodeFrame(data, 3, testLimits(), testJPEG); err == nil {
			t.Errorf("%s: frame 3 of 3 was read", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, g := range goldens(f) {
		f.Add(read(f, g.File))
	}
	for _, c := range corpus() {
		if len(c.data) < 1<<16 {
			f.Add(c.data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := decodeFrame(data, 0, testLimits(), testJPEG)
		if err != nil {
			if err.Error() == "" || len(err.Error()) > 500 {
				t.Errorf("%v", err)
			}
			return
		}
		if n := img.W * img.H; len(img.Grey) != n && len(img.RGB) != 3*n {
			t.Errorf("%d×%d pixels with %d grey values and %d bytes of colours", img.W, img.H, len(img.Grey), len(img.RGB))
		}
	})
}
