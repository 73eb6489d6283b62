package imagefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// expectedError reports whether err is one of the documented errors of Decode.
func expectedError(err error) bool {
	return errors.Is(err, ErrImage) || errors.Is(err, ErrTooLarge)
}

// inputs returns the names of the files in goldenDir.
func inputs(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir(goldenDir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestDecode_RefusesBytesThatAreNotAnImage(t *testing.T) {
	for name, c := range map[string]struct{ data, text string }{
		"nothing":              {"", "nothing"},
		"text":                 {"hello, world", "hello, w"},
		"a zip":                {"PK\x03\x04aaaaaaaaaaaaaaaa", "PK"},
		"the letters of a BMP": {"BMW drives on roads", "BMW"},
		"a sound in RIFF":      {"RIFF\x10\x00\x00\x00WAVEfmt \x00\x00\x00\x00", "RIFF"},
		"only a PNG signature": {"\x89PNG\r\n\x1a\n", "PNG"},
		"only a JPEG marker":   {"\xff\xd8\xff", "JPEG"},
		"only a GIF version":   {"GIF89a", "GIF"},
		"only a TIFF order":    {"II*\x00", "TIFF"},
		"a TIFF pointing out":  {"II*\x00\xff\xff\xff\xff", "TIFF"},
		"an empty WebP":        {"RIFF\x04\x00\x00\x00WEBP", "WebP"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode([]byte(c.data), Options{})
			if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, expected ErrImage with %q", err, c.text)
			}
		})
	}
}

func TestDecode_RefusesTruncatedImages(t *testing.T) {
	for _, name := range inputs(t) {
		data := readInput(t, name)
		for cut := 0; cut < len(data); cut += max(1, len(data)/97) {
			img, err := Decode(data[:cut], Options{})
			if err != nil && !expectedError(err) {
				t.Errorf("%s cut at %d: %v, expected ErrImage or ErrTooLarge", name, cut, err)
			}
			// The first half of an animation can hold the complete first frame.
			if err == nil && cut < len(data)/2 && !strings.Contains(name, "animated") {
				t.Errorf("%s cut at %d of %d bytes: a %d×%d image, expected an error", name, cut, len(data), img.W, img.H)
			}
		}
	}
}

func TestDecode_KeepsTheLimitsForDamagedImages(t *testing.T) {
	lim := Options{Limits: Limits{MaxPixels: 1 << 16}, Upright: true}
	for _, name := range inputs(t) {
		whole := readInput(t, name)
		for at := 0; at < len(whole); at += max(1, len(whole)/47) {
			for _, x := range []byte{0x10, 0xff} {
				data := bytes.Clone(whole)
				data[at] ^= x
				img, err := Decode(data, lim)
				if err != nil && !expectedError(err) {
					t.Fatalf("%s, byte %d: %v", name, at, err)
				}
				if err == nil && (img.W*img.H > lim.MaxPixels || len(img.Pix) != 3*img.W*img.H) {
					t.Fatalf("%s, byte %d: %d×%d with %d bytes", name, at, img.W, img.H, len(img.Pix))
				}
			}
		}
	}
}

// pngChunk returns a chunk with its checksum.
func pngChunk(kind string, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, kind...), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

func pngHeader(w, h uint32, depth, kind, interlace byte) []byte {
	d := binary.BigEndian.AppendUint32(nil, w)
	d = append(binary.BigEndian.AppendUint32(d, h), depth, kind, 0, 0, interlace)
	return append([]byte("\x89PNG\r\n\x1a\n"), pngChunk("IHDR", d)...)
}

// preceded returns a PNG with a text chunk before its header.
func preceded(png []byte) []byte {
	const signature = 8
	return slices.Concat(png[:signature], pngChunk("tEXt", []byte("a\x00b")), png[signature:])
}

// tiffFile returns a little-endian TIFF with one directory of long values.
func tiffFile(tags ...[2]uint32) []byte {
	le := binary.LittleEndian
	b := append([]byte("II*\x00"), 8, 0, 0, 0)
	b = le.AppendUint16(b, uint16(len(tags)))
	for _, t := range tags {
		b = le.AppendUint16(b, uint16(t[0]))
		b = le.AppendUint32(le.AppendUint16(b, typeLong), 1)
		b = le.AppendUint32(b, t[1])
	}
	return le.AppendUint32(b, 0)
}

// edited returns an input with bytes replaced at an offset from a marker.
func edited(t *testing.T, name, marker string, offset int, with ...byte) []byte {
	t.Helper()
	data := readInput(t, name)
	i := bytes.Index(data, []byte(marker))
	if i < 0 {
		t.Fatalf("%s has no %q", name, marker)
	}
	copy(data[i+offset:], with)
	return data
}

// A bomb is a small file whose header announces an image of hundreds of megabytes.
func TestDecode_RefusesBombsBeforeItAllocatesTheirPixels(t *testing.T) {
	const most = 4 << 20 // bytes
	webpCanvas := []byte("RIFF\x1e\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00\xfe\x3f\x00\x9f\x0f\x00ALPH\x00\x00\x00\x00")
	vp8l := []byte("RIFF\x14\x00\x00\x00WEBPVP8L\x08\x00\x00\x00\x2f\xff\xdf\xff\x03\x00\x00\x00")
	bmp := readInput(t, "rgb.bmp")
	copy(bmp[18:], []byte{0x40, 0x1f, 0, 0, 0x40, 0x1f, 0, 0})
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"a PNG of 8000×8000 without data":           {pngHeader(8000, 8000, 8, 6, 0), ErrImage},
		"an interlaced 16-bit PNG without data":     {pngHeader(8000, 8000, 16, 6, 1), ErrImage},
		"a PNG with a chunk before its header":      {append(preceded(pngHeader(7900, 7900, 16, 6, 0)), pngChunk("IDAT", []byte{0x78, 0x9c, 3, 0, 0, 0, 0, 1})...), ErrImage},
		"a PNG of 2^31 pixels a side":               {pngHeader(1<<31-1, 1<<31-1, 1, 0, 0), ErrImage},
		"a PNG above the pixel limit":               {pngHeader(60000, 60000, 1, 0, 0), ErrTooLarge},
		"a PNG that is one line of 40 megapixels":   {pngHeader(40_000_000, 1, 1, 0, 0), ErrTooLarge},
		"a PNG of no width":                         {pngHeader(0, 5, 8, 2, 0), ErrImage},
		"a JPEG of 8000×8000 in a kilobyte":         {edited(t, "jpeg_420_48x32.jpg", "\xff\xc0", 5, 0x1f, 0x40, 0x1f, 0x40), ErrImage},
		"a progressive JPEG of 8000×8000":           {edited(t, "jpeg_progressive.jpg", "\xff\xc2", 5, 0x1f, 0x40, 0x1f, 0x40), ErrImage},
		"a JPEG of 65535×65535":                     {edited(t, "jpeg_420_48x32.jpg", "\xff\xc0", 5, 0xff, 0xff, 0xff, 0xff), ErrTooLarge},
		"a GIF with a screen of 65535×65535":        {edited(t, "plain.gif", "GIF8", 6, 0xff, 0xff, 0xff, 0xff), ErrTooLarge},
		"a GIF with a screen of 8000×8000":          {edited(t, "screen.gif", "GIF8", 6, 0x40, 0x1f, 0x40, 0x1f), ErrImage},
		"a BMP of 8000×8000 in some bytes":          {bmp, ErrImage},
		"a WebP with a canvas of 16383×4000":        {webpCanvas, ErrTooLarge},
		"a lossless WebP of 8192×4096 in no bytes":  {vp8l, ErrImage},
		"a TIFF of 8000×8000 without compression":   {tiffFile([2]uint32{256, 8000}, [2]uint32{257, 8000}, [2]uint32{258, 8}, [2]uint32{259, 1}, [2]uint32{262, 1}, [2]uint32{273, 8}, [2]uint32{278, 8000}, [2]uint32{279, 10}), ErrImage},
		"a TIFF whose deflated strip is 8000×8000":  {tiffFile([2]uint32{256, 8000}, [2]uint32{257, 8000}, [2]uint32{258, 8}, [2]uint32{259, 8}, [2]uint32{262, 1}, [2]uint32{273, 8}, [2]uint32{278, 8000}, [2]uint32{279, 10}), ErrTooLarge},
		"a TIFF of many one-row strips":             {tiffFile([2]uint32{256, 900}, [2]uint32{257, 65000}, [2]uint32{258, 8}, [2]uint32{259, 8}, [2]uint32{262, 1}, [2]uint32{273, 8}, [2]uint32{278, 1}, [2]uint32{279, 10}), ErrImage},
		"a TIFF of half a million tiles":            {tiffFile([2]uint32{256, 8000}, [2]uint32{257, 8000}, [2]uint32{258, 8}, [2]uint32{259, 8}, [2]uint32{262, 1}, [2]uint32{322, 8}, [2]uint32{323, 16}, [2]uint32{324, 8}, [2]uint32{325, 8}), ErrImage},
		"a TIFF whose tile has no height":           {tiffFile([2]uint32{256, 80}, [2]uint32{257, 80}, [2]uint32{258, 8}, [2]uint32{259, 8}, [2]uint32{262, 1}, [2]uint32{322, 16}, [2]uint32{324, 8}, [2]uint32{325, 8}), ErrImage},
		"a TIFF with a side of four billion pixels": {tiffFile([2]uint32{256, 1<<32 - 1}, [2]uint32{257, 1}, [2]uint32{258, 8}, [2]uint32{259, 8}, [2]uint32{262, 1}), ErrTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Decode(c.data, Options{})
			runtime.ReadMemStats(&after)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, expected %v", err, c.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > most {
				t.Errorf("allocated %d bytes for %d bytes of image, expected at most %d", n, len(c.data), most)
			}
		})
	}
}

func TestDecode_RefusesJPEGsOfTooManyScans(t *testing.T) {
	data := readInput(t, "jpeg_progressive.jpg")
	last := bytes.LastIndex(data, []byte{0xff, 0xda})
	end := bytes.LastIndex(data, []byte{0xff, 0xd9})
	many := bytes.Clone(data[:end])
	for range maxScans {
		many = append(many, data[last:end]...)
	}
	many = append(many, data[end:]...)
	if n := countScans(data); n < 2 || n > 20 {
		t.Errorf("counted %d scans in a progressive JPEG", n)
	}
	if _, err := Decode(many, Options{}); !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), "scans") {
		t.Errorf("%v, expected ErrImage for the number of scans", err)
	}
}

func TestDecode_AcceptsImagesUpToTheLimits(t *testing.T) {
	data := readInput(t, "tiny_47x1.png")
	for name, c := range map[string]struct {
		lim  Limits
		want error
	}{
		"the default":         {Limits{}, nil},
		"as many bytes":       {Limits{MaxBytes: int64(len(data))}, nil},
		"one byte too many":   {Limits{MaxBytes: int64(len(data)) - 1}, ErrTooLarge},
		"as many pixels":      {Limits{MaxPixels: 47}, nil},
		"one pixel too many":  {Limits{MaxPixels: 46}, ErrTooLarge},
		"negative is default": {Limits{MaxBytes: -1, MaxPixels: -1}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(data, Options{Limits: c.lim}); !errors.Is(err, c.want) {
				t.Errorf("%v, expected %v", err, c.want)
			}
		})
	}
}

func TestDecode_ReturnsErrImageForAPanicOfADecoder(t *testing.T) {
	saved := codecs[GIF]
	t.Cleanup(func() { codecs[GIF] = saved })
	codecs[GIF] = func([]byte, Options) (*RGB, error) {
		var none []byte
		return nil, errors.New(string(none[3:4]))
	}
	if img, err := Decode([]byte("GIF89a"), Options{}); img != nil || !errors.Is(err, ErrImage) {
		t.Errorf("%v, %v, expected ErrImage", img, err)
	}
}

func TestToRGB_DecodesIndexesOutsideThePaletteAsBlack(t *testing.T) {
	m := image.NewPaletted(image.Rect(0, 0, 2, 1), nil)
	m.Pix = []byte{0, 255}
	img, err := Options{}.toRGB(m)
	if err != nil || !bytes.Equal(img.Pix, make([]byte, 6)) {
		t.Errorf("%v, %v, expected two black pixels", img, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, name := range inputs(f) {
		f.Add(readInput(f, name))
	}
	for _, name := range []string{"explicit_mono2_12.dcm", "rle_rgb.dcm", "jpeg_baseline_ybr_full_422.dcm", "jpegls_mono2_16.dcm", "jpeg2000_rgb.dcm", "jpeg_lossless_p7_rgb.dcm"} {
		f.Add(readDICOMFile(f, name))
	}
	for _, name := range []string{"float.tif", "grey12.png"} {
		data, err := os.ReadFile(filepath.Join(deepDir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	lim := Options{Limits: Limits{MaxBytes: 1 << 20, MaxPixels: 1 << 18}, Upright: true, MaxValue: 4095}
	deep := lim.WithRegion(models.NewRegion(models.Square(2), []bool{true, true, false, true}))
	deep.Window, deep.Fit = &models.Window{0, 4095}, models.FitPad
	f.Fuzz(func(t *testing.T, data []byte) {
		prepareDeep(t, data, deep)
		img, err := Decode(data, lim)
		if err != nil {
			if !expectedError(err) {
				t.Fatalf("%v, expected ErrImage or ErrTooLarge", err)
			}
			return
		}
		if img.W < 1 || img.H < 1 || img.W*img.H > lim.MaxPixels || len(img.Pix) != 3*img.W*img.H {
			t.Fatalf("a %d×%d image of %d bytes", img.W, img.H, len(img.Pix))
		}
		if out := img.Resize(16, 16); len(out.Pix) != 3*16*16 {
			t.Fatalf("%d bytes of a 16×16 image", len(out.Pix))
		}
	})
}

// prepareDeep prepares an image with a window, a border and a region: every value of the
// network's input must be in 0…1 or Outside.
func prepareDeep(t *testing.T, data []byte, o Options) {
	t.Helper()
	size := models.Size{W: 16, H: 32}
	pixels, err := Prepare(data, size, o)
	if err != nil {
		if !expectedError(err) {
			t.Fatalf("%v, expected ErrImage or ErrTooLarge", err)
		}
		return
	}
	values := make([]float32, 3*size.Area())
	Normalize(values, pixels)
	for i, v := range values {
		if !(v >= 0 && v <= 1 || v == Outside) {
			t.Fatalf("value %d is %v", i, v)
		}
	}
}
