package dicom

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// tableCorpus are files with hostile look-up tables.
func tableCorpus(pixels string) []hostile {
	table := func(t tag, content string) []byte {
		return native(4, 4, map[tag]string{t: el(t, "SQ", item(content))}, pixels)
	}
	descriptor := func(count, first, bits int) string {
		return el(tagLUTDescriptor, "US", us(count)+us(first)+us(bits))
	}
	data := func(n int) string { return el(tagLUTData, "OW", strings.Repeat("\x01\x00", n)) }
	return []hostile{
		{name: "a table without data", data: table(tagVOILUT, descriptor(256, 0, 8)), want: "shorter than it states"},
		{name: "a table without a descriptor", data: table(tagVOILUT, data(256)), want: "no usable descriptor"},
		{name: "a table of 65536 entries in 4 bytes", data: table(tagModalityLUT, descriptor(0, 0, 16)+data(2)), want: "shorter than it states"},
		{name: "a table one entry short", data: table(tagVOILUT, descriptor(257, 0, 12)+data(256)), want: "shorter than it states"},
		{name: "a table of 65535 bits", data: table(tagModalityLUT, descriptor(2, 0, 65535)+data(2)), want: "no usable descriptor"},
		{name: "a table of no bits", data: table(tagVOILUT, descriptor(2, 0, 0)+data(2)), want: "no usable descriptor"},
		{name: "a descriptor of 4 bytes", data: table(tagVOILUT, el(tagLUTDescriptor, "US", us(1)+us(2))+data(2)), want: "malformed"},
		{name: "a table longer than the file", data: inFile(explicitLittle, attributes(4, 4, map[tag]string{tagVOILUT: open(tagVOILUT, "SQ") + itemOf(0x7fffffff) + descriptor(2, 0, 8)})), want: "truncated"},
		{name: "tables nested 10,000 deep", data: inFile(explicitLittle, strings.Repeat(open(tagVOILUT, "SQ")+itemOf(undefined), 10_000)), want: "nested"},
	}
}

// frameCorpus are files with hostile frames.
func frameCorpus(pixels string) []hostile {
	offsets := func(values ...uint64) string {
		var b []byte
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return string(b)
	}
	extended := func(table, lengths string) map[tag]string {
		return map[tag]string{tagFrames: el(tagFrames, "IS", "2 "), tagExtendedOffsets: el(tagExtendedOffsets, "OV", table), tagExtendedLengths: el(tagExtendedLengths, "OV", lengths)}
	}
	frames := func(n string) map[tag]string { return change(tagFrames, "IS", n) }
	run := runs(1, 64, "\xf1\x00")
	bits := with(with(with(frames("2000"), tagBitsAllocated, el(tagBitsAllocated, "US", us(1))), tagBitsStored, el(tagBitsStored, "US", us(1))), tagHighBit, el(tagHighBit, "US", us(0)))
	groups := func(content string) map[tag]string {
		return map[tag]string{tagFrames: el(tagFrames, "IS", "1 "), tagPerFrame: el(tagPerFrame, "SQ", item(content))}
	}
	return []hostile{
		{name: "extended offsets of 2^64-1", data: fragmented(runLength, 4, 4, extended(offsets(0, 1<<64-1), offsets(66, 66)), "", run, run, run), want: "offsets"},
		{name: "extended offsets that descend", data: fragmented(runLength, 4, 4, extended(offsets(74, 0), offsets(66, 66)), "", run, run, run), want: "offsets"},
		{name: "extended offsets that are equal", data: fragmented(runLength, 4, 4, extended(offsets(0, 0), offsets(66, 66)), "", run, run, run), want: "offsets"},
		{name: "an extended offset into a fragment", data: fragmented(runLength, 4, 4, extended(offsets(0, 10), offsets(66, 66)), "", run, run, run), want: "offsets"},
		{name: "an extended length of 1 byte", data: fragmented(runLength, 4, 4, extended(offsets(0, 74), offsets(1, 1)), "", run, run), want: "run-length"},
		{name: "a short extended offset table", data: fragmented(runLength, 4, 4, extended(offsets(0), offsets(66)), "", run, run, run), want: "told apart"},
		{name: "offsets that overlap a fragment", data: fragmented(runLength, 4, 4, frames("2 "), "\x00\x00\x00\x00\x05\x00\x00\x00", run, run, run), want: "offsets"},
		{name: "2000 frames in 16 bytes", data: native(4, 4, frames("2000"), pixels), want: "16 bytes of pixel data for 2000 frames"},
		{name: "2001 frames", data: native(4, 4, frames("2001"), pixels), want: "2001 frames"},
		{name: "2000 frames of 8000×8000 pixels", data: native(8000, 8000, frames("2000"), pixels), want: "2000 frames of 8000×8000"},
		{name: "2000 frames of one bit in 16 bytes", data: native(400, 400, bits, pixels), want: "16 bytes of pixel data for 2000 frames"},
		{name: "a functional group of 10,000 nested ones", data: native(4, 4, groups(strings.Repeat(open(tagFrameVOI, "SQ")+itemOf(undefined), 10_000)), pixels), want: "nested"},
		{name: "a functional group that is cut", data: native(4, 4, groups(string(head(tagFrameVOI))+"SQ\x00\x00\xff\xff\x00\x00"), pixels), want: "truncated"},
		{name: "a functional group with a window of words", data: native(4, 4, groups(el(tagFrameVOI, "SQ", item(el(tagWindowCenter, "DS", planted)))), pixels), want: "number"},
		{name: "a JPEG of 12 bits in 8", data: fragmented(jpeg+"51", 4, 4, nil, "", strings.Replace(frameHeader(0xc1, 4, 4), "\x0b\x08", "\x0b\x0c", 1)), want: "8 bits allocated and its JPEG has 12"},
	}
}

// deepJPEG returns a file of 16 bits with a JPEG of 12 bits.
func deepJPEG(w, h int, stream string) []byte {
	bits := map[tag]string{tagBitsAllocated: el(tagBitsAllocated, "US", us(16)), tagBitsStored: el(tagBitsStored, "US", us(12)), tagHighBit: el(tagHighBit, "US", us(11))}
	return fragmented(jpeg+"51", w, h, bits, "", stream)
}

func FuzzFrames(f *testing.F) {
	for _, g := range goldens(f) {
		if g.Frames > 1 || strings.Contains(g.File, "lut") || strings.Contains(g.File, "enhanced") {
			f.Add(read(f, g.File))
		}
	}
	for _, c := range append(tableCorpus(strings.Repeat("x", 16)), frameCorpus(strings.Repeat("x", 16))...) {
		f.Add(c.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		opened, err := Open(data, limits(1<<20, 1<<12))
		if err != nil {
			return
		}
		if n := opened.Frames(); n < 1 || n > 2000 {
			t.Fatalf("%d frames", n)
		}
		for i := range min(opened.Frames(), 4) {
			first, err := opened.Decode(i, testJPEG)
			again, errAgain := opened.Decode(i, testJPEG)
			if (err == nil) != (errAgain == nil) {
				t.Fatalf("frame %d: %v, then %v", i, err, errAgain)
			}
			if err != nil {
				continue
			}
			if !slices.Equal(first.Grey, again.Grey) || !bytes.Equal(first.RGB, again.RGB) {
				t.Errorf("frame %d is not the same when it is decoded again", i)
			}
			if n := first.W * first.H; len(first.Grey) != n && len(first.RGB) != 3*n {
				t.Errorf("%d×%d pixels with %d grey values and %d bytes of colours", first.W, first.H, len(first.Grey), len(first.RGB))
			}
		}
		if _, err := opened.Decode(opened.Frames(), testJPEG); err == nil {
			t.Error("a frame after the last was decoded")
		}
	})
}
