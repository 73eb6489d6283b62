package main

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
	"google.golang.org/protobuf/proto"
)

// pngFile returns a PNG of one filter-less block of rows. The color types are those of the
// format: 0 grey, 2 RGB, 4 grey and alpha, 6 RGB and alpha.
func pngFile(colorType, bits byte, width, height int, rows []byte, chunks ...[]byte) []byte {
	header := binary.BigEndian.AppendUint32(nil, uint32(width))
	header = append(binary.BigEndian.AppendUint32(header, uint32(height)), bits, colorType, 0, 0, 0)
	out := append([]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", header)...)
	for _, c := range chunks {
		out = append(out, c...)
	}
	stride := len(rows) / height
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	for row := range slices.Chunk(rows, stride) {
		_, _ = z.Write([]byte{0}) // to memory
		_, _ = z.Write(row)
	}
	_ = z.Close()
	return append(append(out, chunk("IDAT", packed.Bytes())...), chunk("IEND", nil)...)
}

func chunk(name string, data []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	out = append(append(out, name...), data...)
	return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[4:]))
}

// tiffFile returns a TIFF of one strip of 16-bit samples.
func tiffFile(order interface {
	binary.ByteOrder
	binary.AppendByteOrder
}, photometric, channels, width, height int, values []uint16, compressed bool) []byte {
	var data []byte
	for _, v := range values {
		data = order.AppendUint16(data, v)
	}
	compression := 1
	if compressed {
		var packed bytes.Buffer
		z := zlib.NewWriter(&packed)
		_, _ = z.Write(data) // to memory
		_ = z.Close()
		data, compression = packed.Bytes(), 8
	}
	out := []byte("MM\x00*\x00\x00\x00\x08")
	if order.String() == binary.LittleEndian.String() {
		out = []byte("II*\x00\x08\x00\x00\x00")
	}
	tags := [][2]int{{256, width}, {257, height}, {258, 16}, {259, compression}, {262, photometric}, {273, 0}, {277, channels}, {278, height}, {279, len(data)}}
	if channels == 4 {
		tags = append(tags, [2]int{338, 1}) // associated alpha: the colours are multiplied by it
	}
	end := 8 + 2 + 12*len(tags) + 4
	out = order.AppendUint16(out, uint16(len(tags)))
	for _, tag := range tags {
		count, value := 1, tag[1]
		switch {
		case tag[0] == 258 && channels > 2:
			count, value = channels, end // the offset of the values
		case tag[0] == 273:
			value = end + 2*channels
		}
		out = order.AppendUint16(out, uint16(tag[0]))
		if tag[0] == 273 || tag[0] == 279 || count > 2 {
			kind := uint16(4)
			if tag[0] == 258 {
				kind = 3
			}
			out = order.AppendUint32(order.AppendUint32(order.AppendUint16(out, kind), uint32(count)), uint32(value))
		} else {
			out = order.AppendUint16(order.AppendUint16(order.AppendUint32(order.AppendUint16(out, 3), 1), uint16(value)), 0)
		}
	}
	out = order.AppendUint32(out, 0)
	for range channels {
		out = order.AppendUint16(out, 16)
	}
	return append(out, data...)
}

const deepWidth, deepHeight = 45, 31

// deepValues returns samples of up to the given number of bits, of a pattern that differs
// in each channel.
func deepValues(bits, channels int) []uint16 {
	var values []uint16
	for y := range deepHeight {
		for x := range deepWidth {
			for c := range channels {
				values = append(values, uint16((x*(2*c+3)*7919+y*(c+2)*3571+x*y*104729)%(1<<bits)))
			}
		}
	}
	return values
}

// bigEndian returns the bytes of a PNG's 16-bit samples.
func bigEndian(values []uint16) []byte {
	var out []byte
	for _, v := range values {
		out = binary.BigEndian.AppendUint16(out, v)
	}
	return out
}

// deepImages returns images of 16-bit samples by file name.
func deepImages() map[string][]byte {
	out := map[string][]byte{}
	for _, kind := range []struct {
		name     string
		color    byte
		channels int
	}{{"grey", 0, 1}, {"grey_alpha", 4, 2}, {"rgb", 2, 3}, {"rgba", 6, 4}} {
		for _, bits := range []int{10, 12, 16} {
			out[fmt.Sprintf("%s_%d.png", kind.name, bits)] = pngFile(kind.color, 16, deepWidth, deepHeight, bigEndian(deepValues(bits, kind.channels)))
		}
	}
	for _, bits := range []int{12, 16} {
		for packed, name := range map[bool]string{false: "", true: "_deflate"} {
			le, be := binary.LittleEndian, binary.BigEndian
			out[fmt.Sprintf("grey_le_%d%s.tif", bits, name)] = tiffFile(le, 1, 1, deepWidth, deepHeight, deepValues(bits, 1), packed)
			out[fmt.Sprintf("grey_be_%d%s.tif", bits, name)] = tiffFile(be, 1, 1, deepWidth, deepHeight, deepValues(bits, 1), packed)
			out[fmt.Sprintf("white_is_zero_le_%d%s.tif", bits, name)] = tiffFile(le, 0, 1, deepWidth, deepHeight, deepValues(bits, 1), packed)
			out[fmt.Sprintf("rgb_le_%d%s.tif", bits, name)] = tiffFile(le, 2, 3, deepWidth, deepHeight, deepValues(bits, 3), packed)
			out[fmt.Sprintf("rgb_be_%d%s.tif", bits, name)] = tiffFile(be, 2, 3, deepWidth, deepHeight, deepValues(bits, 3), packed)
			out[fmt.Sprintf("premultiplied_%d%s.tif", bits, name)] = tiffFile(le, 2, 4, deepWidth, deepHeight, deepValues(bits, 4), packed)
		}
	}
	return out
}

// Equal pixels have equal errors up to the rounding of float32. A step of one grey level
// in one of 32×32 pixels is more.
const samePixels = 2e-6

// unreadByPillow are images that the service reads and Pillow does not, or wrongly.
var unreadByPillow = []string{"tiff_big16.tif", "tiff_big_endian.tif", "tiff_planar16.tif"}

func TestPredictScript_DecodesPixelsLikeTheService(t *testing.T) {
	s := newScript(t)
	dir := t.TempDir()
	var images []string
	for name, data := range deepImages() {
		images = append(images, write(t, dir, name, data))
	}
	golden, err := filepath.Glob("../../testdata/golden/images/*.*")
	if err != nil || len(golden) < 50 {
		t.Fatalf("%d images, %v", len(golden), err)
	}
	images = append(images, golden...)
	slices.Sort(images)
	theirs := entries(t, s.run(t, append([]string{"--json"}, images...)...))
	ours := entries(t, run(t, append([]string{"detect", "--json", "--model", smallModel(t)}, images...)...))
	if len(ours) != len(images) || len(theirs) != len(images) {
		t.Fatalf("%d images, %d results of detect, %d of predict.py", len(images), len(ours), len(theirs))
	}
	for i, name := range images {
		if unread := slices.Contains(unreadByPillow, filepath.Base(name)); ours[i].Error != nil || (theirs[i].Error != nil) != unread {
			t.Errorf("%s: detect has the error %t, predict.py %t, expected %t", name, ours[i].Error != nil, theirs[i].Error != nil, unread)
			continue
		} else if unread {
			continue
		}
		tolerance := samePixels
		if filepath.Ext(name) == ".jpg" {
			tolerance = jpegToleranceMSE
		}
		if a, b := *ours[i].MSE, *theirs[i].MSE; math.Abs(a-b) > tolerance*a {
			t.Errorf("%s: the mean squared error is %v, of predict.py %v", name, a, b)
		}
	}
}

// withPreprocessing writes the model's autoencoder.onnx with other values of keys in
// preprocessing; nil removes a key.
func withPreprocessing(t testing.TB, s script, keys map[string]any) string {
	t.Helper()
	var m onnx.ModelProto
	if err := proto.Unmarshal(read(t, filepath.Join(s.dir, models.ONNXFile)), &m); err != nil {
		t.Fatal(err)
	}
	changed := false
	for _, p := range m.GetMetadataProps() {
		if p.GetKey() != "metadata_json" {
			continue
		}
		var metadata map[string]any
		if err := json.Unmarshal([]byte(p.GetValue()), &metadata); err != nil {
			t.Fatal(err)
		}
		for key, value := range keys {
			preprocessing := metadata["preprocessing"].(map[string]any)
			if preprocessing[key] = value; value == nil {
				delete(preprocessing, key)
			}
		}
		text, err := json.Marshal(metadata)
		if err != nil {
			t.Fatal(err)
		}
		p.Value, changed = proto.String(string(text)), true
	}
	data, err := proto.Marshal(&m)
	if err != nil || !changed {
		t.Fatalf("%v, changed %t", err, changed)
	}
	return write(t, t.TempDir(), models.ONNXFile, data)
}

// serviceKnows reports whether the service reads a key of preprocessing.
func serviceKnows(key string) bool {
	for _, field := range reflect.VisibleFields(reflect.TypeFor[models.Preprocessing]()) {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name == key {
			return true
		}
	}
	return false
}

// sameErrors checks that the images of each pair have equal pixels for predict.py, and
// for the service if it knows the keys of the model.
func sameErrors(t *testing.T, s script, model string, known bool, images, expected []string) {
	t.Helper()
	programs := map[string]func([]string) ran{"predict.py": func(files []string) ran {
		return s.run(t, append([]string{"--json", "--model", model}, files...)...)
	}}
	if known {
		programs["detect"] = func(files []string) ran {
			return run(t, append([]string{"detect", "--json", "--model", model}, files...)...)
		}
	}
	for name, judge := range programs {
		got, want := entries(t, judge(images)), entries(t, judge(expected))
		for i := range images {
			if got[i].Error != nil || want[i].Error != nil {
				t.Errorf("%s: %+v, expected %+v", name, got[i], want[i])
			} else if a, b := *got[i].MSE, *want[i].MSE; math.Abs(a-b) > samePixels*a {
				t.Errorf("%s: %s: the mean squared error is %v, expected %v", name, filepath.Base(images[i]), a, b)
			}
		}
	}
}

func TestPredictScript_ScalesToTheModelsRange(t *testing.T) {
	s := newScript(t)
	const largest = 4095
	model := withPreprocessing(t, s, map[string]any{"max_value": largest})
	dir := t.TempDir()
	var images, expected []string
	for name, data := range deepImages() {
		bits, channels, color := 16, 1, byte(0)
		if strings.Contains(name, "_10") {
			bits = 10
		} else if strings.Contains(name, "_12") {
			bits = 12
		}
		switch {
		case strings.HasPrefix(name, "grey_alpha"):
			channels, color = 2, 4
		case strings.HasPrefix(name, "rgba"), strings.HasPrefix(name, "premultiplied"):
			channels, color = 4, 6
		case strings.HasPrefix(name, "rgb"):
			channels, color = 3, 2
		}
		var rows []byte
		for _, v := range deepValues(bits, channels) {
			b := byte(min(int(v)*256/(largest+1), 255))
			if strings.HasPrefix(name, "white") {
				b = 255 - b
			}
			rows = append(rows, b)
		}
		if strings.HasPrefix(name, "premultiplied") {
			values := deepValues(bits, channels)
			for i := range rows {
				if alpha := int(values[i|3] >> 8); alpha == 0 {
					rows[i] = 0
				} else {
					rows[i] = byte(min(int(rows[i])*255/alpha, 255))
				}
			}
		}
		images = append(images, write(t, dir, name, data))
		expected = append(expected, write(t, dir, "8bit_"+name+".png", pngFile(color, 8, deepWidth, deepHeight, rows)))
	}
	sameErrors(t, s, model, serviceKnows("max_value"), images, expected)
	// Images of 8 bits are not scaled.
	plain := entries(t, s.run(t, "--json", expected[0]))
	if scaled := entries(t, s.run(t, "--json", "--model", model, expected[0])); *plain[0].MSE != *scaled[0].MSE {
		t.Error("max_value changes an image of 8 bits")
	}
}

func TestPredictScript_AppliesTheOrientationIfTheModelDoes(t *testing.T) {
	s := newScript(t)
	upright := withPreprocessing(t, s, map[string]any{"orientation": "exif"})
	dir := t.TempDir()
	// Orientation 6: the first row of the file is the right column of the picture.
	picture := image.NewGray(image.Rect(0, 0, deepHeight, deepWidth))
	deep := image.NewGray16(image.Rect(0, 0, deepHeight, deepWidth))
	var rows, deepRows []byte
	for i, v := range deepValues(16, 1) {
		x, y := deepHeight-1-i/deepWidth, i%deepWidth
		picture.SetGray(x, y, color.Gray{Y: byte(v)})
		deep.SetGray16(x, y, color.Gray16{Y: v})
		rows = append(rows, byte(v))
		deepRows = binary.BigEndian.AppendUint16(deepRows, v)
	}
	exif := chunk("eXIf", []byte("MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"))
	turned := []string{
		write(t, dir, "turned.png", pngFile(0, 8, deepWidth, deepHeight, rows, exif)),
		write(t, dir, "turned16.png", pngFile(0, 16, deepWidth, deepHeight, deepRows, exif)),
	}
	expected := []string{write(t, dir, "upright.png", encoded(t, picture)), write(t, dir, "upright16.png", encoded(t, deep))}
	stored := []string{
		write(t, dir, "stored.png", pngFile(0, 8, deepWidth, deepHeight, rows)),
		write(t, dir, "stored16.png", pngFile(0, 16, deepWidth, deepHeight, deepRows)),
	}
	known := serviceKnows("orientation")
	sameErrors(t, s, upright, known, turned, expected)
	asStored := withPreprocessing(t, s, map[string]any{"orientation": nil})
	sameErrors(t, s, asStored, true, turned, stored)

	// The orientation of a TIFF is applied once, by every model.
	tiffs, err := filepath.Glob("../../testdata/golden/images/orientation_*.tif")
	if err != nil || len(tiffs) != 7 {
		t.Fatalf("%d files, %v", len(tiffs), err)
	}
	a := entries(t, s.run(t, append([]string{"--json", "--model", upright}, tiffs...)...))
	b := entries(t, s.run(t, append([]string{"--json", "--model", asStored}, tiffs...)...))
	for i := range tiffs {
		if *a[i].MSE != *b[i].MSE {
			t.Errorf("%s is turned twice", tiffs[i])
		}
	}
	// Boxes are in the upright image: the picture is higher than wide.
	c := exec.Command(s.interpreter, "-c", `
import sys, predict
print(*(predict.prepare(sys.argv[1], (32, 32), how)[1].whole for how in ({"orientation": "exif"}, {})))
`, turned[0])
	c.Env = append(os.Environ(), "PYTHONPATH="+s.dir, "PYTHONDONTWRITEBYTECODE=1")
	if r, want := finish(t, c), fmt.Sprintf("(%d, %d) (%d, %d)\n", deepHeight, deepWidth, deepWidth, deepHeight); r.stdout != want {
		t.Errorf("the sizes are %q, expected %q: %s", r.stdout, want, r.stderr)
	}
}

func TestPredictScript_RefusesTIFFThatPillowDecodesWrongly(t *testing.T) {
	s := newScript(t)
	data := tiffFile(binary.LittleEndian, 2, 3, deepWidth, deepHeight, deepValues(16, 3), false)
	rows := []byte{0x16, 1, 3, 0, 1, 0, 0, 0, deepHeight, 0, 0, 0} // rows per strip, an optional tag
	planar := []byte{0x1c, 1, 3, 0, 1, 0, 0, 0, 2, 0, 0, 0}
	if bytes.Count(data, rows) != 1 {
		t.Fatal("the file has no such tag")
	}
	path := write(t, t.TempDir(), "planar.tif", bytes.Replace(data, rows, planar, 1))
	if list := entries(t, s.run(t, "--json", path)); list[0].Error == nil || !strings.Contains(*list[0].Error, "each channel of 16 bits separately") {
		t.Errorf("%+v", list[0])
	}
}

func TestPredictScript_RefusesPixelsThatTheServiceDoesNotRead(t *testing.T) {
	s := newScript(t)
	dir := t.TempDir()
	c := exec.Command(s.interpreter, "-c", `
import sys, numpy
from PIL import Image
values = numpy.arange(64 * 64).reshape(64, 64)
Image.fromarray(values.astype("int32")).save(sys.argv[1] + "/integer.tif")
Image.fromarray(values.astype("float32")).save(sys.argv[1] + "/float.tif")
`, dir)
	if r := finish(t, c); r.status != 0 {
		t.Fatal(r.stderr)
	}
	for _, name := range []string{"integer.tif", "float.tif"} {
		list := entries(t, s.run(t, "--json", filepath.Join(dir, name)))
		if list[0].Error == nil || !strings.Contains(*list[0].Error, "8 or 16 bits") {
			t.Errorf("%s: %+v", name, list[0])
		}
		if list := entries(t, run(t, "detect", "--json", "--model", smallModel(t), filepath.Join(dir, name))); list[0].Error == nil {
			t.Errorf("detect takes %s", name)
		}
	}
}
