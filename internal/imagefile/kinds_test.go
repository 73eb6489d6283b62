package imagefile

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// The reader of unusual sampling must equal Pillow for usual JPEGs, too.
func TestReadSampledJPEG_EqualsPillowForEveryJPEG(t *testing.T) {
	read := 0
	for _, g := range goldens(t) {
		if !strings.HasSuffix(g.input, ".jpg") || g.w == 16 || strings.HasPrefix(g.input, "upright") {
			continue
		}
		read++
		img, err := readSampledJPEG(withHuffmanTables(readInput(t, g.input)), DefaultLimits())
		if err != nil {
			t.Errorf("%s: %v", g.input, err)
			continue
		}
		if largest, _, _ := difference(img.Pix, g.pix); img.W != g.w || img.H != g.h || largest > 0 {
			t.Errorf("%s: %d×%d, differs by up to %d", g.input, img.W, img.H, largest)
		}
	}
	if read < 30 {
		t.Errorf("read %d JPEGs", read)
	}
}

func TestDecode_NamesAnUnreadJPEG(t *testing.T) {
	for name, c := range map[string]struct {
		marker, precision byte
		text              string
	}{
		"12 bits":    {0xc1, 12, "12 bits per sample"},
		"lossless":   {0xc3, 8, "lossless"},
		"arithmetic": {0xc9, 8, "arithmetic"},
	} {
		data := edited(t, "jpeg_420_48x32.jpg", "\xff\xc0", 1, c.marker)
		data[bytes.Index(data, []byte{0xff, c.marker, 0, 17})+4] = c.precision
		if _, err := Decode(data, Options{}); !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, expected %q", name, err, c.text)
		}
	}
}

// deepPNG returns a PNG of 16-bit samples, grey or colour, whose values are given.
func deepPNG(t *testing.T, colour bool, values ...uint16) []byte {
	t.Helper()
	all := image.Rect(0, 0, len(values), 1)
	grey, rgb := image.NewGray16(all), image.NewRGBA64(all)
	for x, v := range values {
		grey.SetGray16(x, 0, color.Gray16{Y: v})
		rgb.SetRGBA64(x, 0, color.RGBA64{R: v, G: v / 2, B: v / 4, A: 0xffff})
	}
	var b bytes.Buffer
	var m image.Image = grey
	if colour {
		m = rgb
	}
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDecode_ScalesDeepSamplesByTheMaxValue(t *testing.T) {
	values := []uint16{0, 1, 15, 16, 1000, 2039, 4095, 4096, 65535}
	for _, c := range []struct {
		most int
		want []byte
	}{
		{0, []byte{0, 0, 0, 0, 3, 7, 15, 16, 255}},
		{65535, []byte{0, 0, 0, 0, 3, 7, 15, 16, 255}},
		{-1, []byte{0, 0, 0, 0, 3, 7, 15, 16, 255}},
		{4095, []byte{0, 0, 0, 1, 62, 127, 255, 255, 255}},
		{1023, []byte{0, 0, 3, 4, 250, 255, 255, 255, 255}},
		{255, []byte{0, 1, 15, 16, 255, 255, 255, 255, 255}},
	} {
		img, err := Decode(deepPNG(t, false, values...), Options{MaxValue: c.most})
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range c.want {
			if img.Pix[3*i] != want {
				t.Errorf("%d of at most %d is %d, expected %d", values[i], c.most, img.Pix[3*i], want)
			}
		}
		img, err = Decode(deepPNG(t, true, 2000), Options{MaxValue: 4095})
		if err != nil || !bytes.Equal(img.Pix, []byte{125, 62, 31}) {
			t.Errorf("%v, %v, expected 2000, 1000 and 500 of 4095", img, err)
		}
	}
}

func TestPrepare_ReturnsTheLargestDeepSample(t *testing.T) {
	white := tiffFile([2]uint32{256, 1}, [2]uint32{257, 1}, [2]uint32{258, 16}, [2]uint32{259, 1}, [2]uint32{262, 0}, [2]uint32{273, 8 + 2 + 12*8 + 4}, [2]uint32{278, 1}, [2]uint32{279, 2})
	white = append(white, 0xe8, 0x03) // 1000
	for name, c := range map[string]struct {
		data []byte
		want int
	}{
		"grey of 16 bits":              {deepPNG(t, false, 3, 2039, 7), 2039},
		"colour of 16 bits":            {deepPNG(t, true, 3, 2039, 7), 2039},
		"black of 16 bits":             {deepPNG(t, false, 0), 1},
		"8 bits":                       {readInput(t, "rgb.png"), 0},
		"a TIFF in which 0 is white":   {white, 1000},
		"planes of 16 bits in a TIFF":  {readInput(t, "tiff_planar16.tif"), 65535},
		"16 bits of an upright PNG":    {deepPNG(t, false, 77), 77},
		"a JPEG, whatever its quality": {readInput(t, "jpeg_grey.jpg"), 0},
	} {
		p, err := PreparePooled(c.data, models.Square(16), Options{Upright: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := p.Largest - c.want; d > 0 || d < 0 && c.want < 65535 || d < -600 {
			t.Errorf("%s: %d, expected %d", name, p.Largest, c.want)
		}
	}
	img, err := Decode(white, Options{MaxValue: 1023})
	if err != nil || img.Pix[0] != 255-250 {
		t.Errorf("%v, %v, expected 1000 of 1023 below white", img, err)
	}
}

func TestMaxValueFor_IsThatOfTheNextDepth(t *testing.T) {
	for largest, want := range map[int]int{
		0: 65535, 1: 255, 255: 255, 256: 1023, 1023: 1023, 1024: 4095, 2039: 4095, 4095: 4095, 4096: 16383, 16383: 16383, 16384: 65535, 65535: 65535,
	} {
		if got := MaxValueFor(largest); got != want {
			t.Errorf("%d: %d, expected %d", largest, got, want)
		}
	}
}

func TestDecode_LeavesTheOrientationWithoutUpright(t *testing.T) {
	for _, name := range []string{"upright_6.jpg", "upright.png", "upright_lossy.webp"} {
		plain, err := Decode(readInput(t, name), Options{})
		if err != nil {
			t.Fatal(err)
		}
		turned, err := Decode(readInput(t, name), Options{Upright: true})
		if err != nil || plain.W != turned.H || plain.H != turned.W {
			t.Errorf("%s: %d×%d and upright %d×%d, %v", name, plain.W, plain.H, turned.W, turned.H, err)
		}
	}
}

// box returns the beginning of a file in ISO boxes.
func box(brands ...string) string {
	b := "ftyp" + brands[0] + "\x00\x00\x00\x00" + strings.Join(brands[1:], "")
	return "\x00\x00\x00" + string(rune(len(b)+4)) + b
}

func TestSniff_NamesFormats(t *testing.T) {
	raw := func(maker string) string {
		tags := tiffFile([2]uint32{254, 1}, [2]uint32{259, 6}, [2]uint32{271, 8}, [2]uint32{330, 8})
		if maker != "" { // the maker's text follows the directory
			tags[10+12*2+2] = 2 // ASCII
			tags[10+12*2+4] = byte(len(maker))
			tags[10+12*2+8] = byte(len(tags))
		}
		return string(tags) + maker
	}
	for name, c := range map[string]struct {
		head string
		want Format
	}{
		"HEIC":                   {box("heic", "mif1", "heic"), HEIC},
		"HEIC of a generic kind": {box("mif1", "mif1", "heic"), HEIC},
		"AVIF":                   {box("avif", "mif1", "miaf"), AVIF},
		"AVIF of a generic kind": {box("mif1", "avif", "miaf"), AVIF},
		"CR3":                    {box("crx ", "crx ", "isom"), "camera raw (CR3)"},
		"a video":                {box("isom", "isom", "avc1"), "MP4 or QuickTime video"},
		"JPEG XL":                {"\xff\x0a\xfa\x1f", JPEGXL},
		"JPEG XL in boxes":       {"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a\x00", JPEGXL},
		"JPEG 2000":              {"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a\x00", JPEG2000},
		"JPEG 2000 codestream":   {"\xff\x4f\xff\x51\x00", JPEG2000},
		"JPEG-LS":                {"\xff\xd8\xff\xf7\x00", "JPEG-LS"},
		"JPEG XR":                {"II\xbc\x01", "JPEG XR"},
		"CR2":                    {"II*\x00\x10\x00\x00\x00CR\x02\x00\x00\x00\x00\x00", "camera raw (CR2)"},
		"NEF":                    {raw("NIKON CORPORATION\x00"), "camera raw (NEF)"},
		"ARW":                    {raw("SONY\x00"), "camera raw (ARW)"},
		"a raw of another maker": {raw("Leaf\x00"), "camera raw"},
		"DNG":                    {string(tiffFile([2]uint32{50706, 0x401})), "camera raw (DNG)"},
		"RAF":                    {"FUJIFILMCCD-RAW 0201", "camera raw (RAF)"},
		"ORF":                    {"IIRO\x08\x00\x00\x00", "camera raw (ORF)"},
		"RW2":                    {"IIU\x00\x18\x00\x00\x00", "camera raw (RW2)"},
		"a TIFF of layers":       {raw(""), TIFF},
		"PSD":                    {"8BPS\x00\x01", "Photoshop (PSD)"},
		"SVG":                    {"<svg xmlns='http://www.w3.org/2000/svg'>", SVG},
		"SVG in XML":             {"\xef\xbb\xbf<?xml version='1.0'?>\n<svg>", SVG},
		"XML":                    {"<?xml version='1.0'?>\n<annotation>", "XML"},
		"PDF":                    {"%PDF-1.7", "PDF"},
		"EXR":                    {"\x76\x2f\x31\x01\x02", "OpenEXR"},
		"HDR":                    {"#?RADIANCE\n", "Radiance HDR"},
		"PGM":                    {"P5\n640 480\n255\n", "PNM"},
		"PFM":                    {"PF\n640 480\n", "PNM"},
		"ICO":                    {"\x00\x00\x01\x00\x01\x00\x10\x10", "icon (ICO)"},
		"TGA":                    {"\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x40\x00\x30\x00\x18\x00\x01\x02", TGA},
		"TGA of runs":            {"\x00\x00\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x40\x00\x30\x00\x20\x08\x01\x02", TGA},
		"zip":                    {"PK\x03\x04\x14\x00", Zip},
		"gzip":                   {"\x1f\x8b\x08\x00", "gzip"},
		"HTML":                   {"\n<!DOCTYPE html><html>", HTML},
		"text":                   {"a sentence\n", Text},
		"text cut in a letter":   {"Gr\xc3", Text},
		"JSON":                   {"{\"a\": 1}", Text},
		"LFS pointer":            {"version https://git-lfs.github.com/spec/v1\noid sha256:", LFSPointer},
		"AppleDouble":            {"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", "AppleDouble (a macOS “._” file)"},
		"nothing":                {"", Empty},
		"zeros":                  {strings.Repeat("\x00", 300), Unknown},
		"NumPy":                  {"\x93NUMPY\x01\x00", "NumPy array"},
		"BigTIFF":                {"II+\x00\x08\x00\x00\x00", TIFF},
		"letters of a BMP":       {"BMW drives on roads", Text},
	} {
		got, readable := Sniff([]byte(c.head))
		if got != c.want || readable != (c.want == TIFF) {
			t.Errorf("%s: %v, readable %t, expected %v", name, got, readable, c.want)
		}
		if readable {
			continue
		}
		_, err := Decode([]byte(c.head), Options{})
		if !errors.Is(err, ErrImage) || c.want != Unknown && c.want != Empty && c.want != Text && !strings.Contains(err.Error(), c.want.String()) {
			t.Errorf("%s: %v, expected ErrImage with %q", name, err, c.want)
		}
	}
	for _, name := range inputs(t) {
		data := readInput(t, name)
		want := map[string]Format{"png": PNG, "jpg": JPEG, "gif": GIF, "bmp": BMP, "tif": TIFF, "webp": WebP}[name[strings.LastIndexByte(name, '.')+1:]]
		if got, readable := Sniff(data[:min(len(data), SniffBytes)]); got != want || !readable {
			t.Errorf("%s: %v, readable %t, expected %v", name, got, readable, want)
		}
	}
}

func TestDecode_NamesAnUnreadTIFF(t *testing.T) {
	usual := func(with ...[2]uint32) []byte {
		tags := map[uint32]uint32{256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 278: 4, 279: 16}
		for _, w := range with {
			tags[w[0]] = w[1]
		}
		var list [][2]uint32
		for tag := range uint32(400) {
			if v, ok := tags[tag]; ok {
				list = append(list, [2]uint32{tag, v})
			}
		}
		return tiffFile(list...)
	}
	for text, data := range map[string][]byte{
		"floating-point": usual([2]uint32{258, 32}, [2]uint32{339, 3}),
		"signed":         usual([2]uint32{258, 16}, [2]uint32{339, 2}),
		"JPEG (old":      usual([2]uint32{259, 6}, [2]uint32{262, 6}),
		"Zstandard":      usual([2]uint32{259, 50000}),
		"LZMA":           usual([2]uint32{259, 34925}),
		"YCbCr":          usual([2]uint32{262, 6}),
		"Lab":            usual([2]uint32{262, 8}),
		"32 bits":        usual([2]uint32{258, 32}),
		"predictor 3":    usual([2]uint32{258, 12}, [2]uint32{317, 3}),
		"inks":           usual([2]uint32{262, 5}, [2]uint32{277, 4}, [2]uint32{332, 2}),
	} {
		if _, err := Decode(data, Options{}); !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "not read: ") {
			t.Errorf("%v, expected ErrImage with %q and a remedy", err, text)
		}
	}
}

const caseDir = "testdata/cases"

// The files are of cameras, converters and users, as they came; see make_more_images.py.
func TestPrepare_ReadsFilesOfUsersAsPillow(t *testing.T) {
	expected, err := filepath.Glob(filepath.Join(caseDir, "*.16.png"))
	if err != nil || len(expected) < 5 {
		t.Fatalf("%d expectations, %v", len(expected), err)
	}
	for _, file := range expected {
		name := strings.TrimSuffix(filepath.Base(file), ".16.png")
		data, err := os.ReadFile(filepath.Join(caseDir, name))
		if err != nil {
			t.Fatal(err)
		}
		result, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Decode(result, Options{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := PrepareSized(data, models.Square(16), Options{Upright: true, MaxValue: 4095})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if largest, _, _ := difference(p.Pix, want.Pix); p.W != 295 || p.H != 296 || largest > 1 {
			t.Errorf("%s: %d×%d, differs by up to %d", name, p.W, p.H, largest)
		}
	}
}

func TestDecode_NamesTheFormatOfUsersFiles(t *testing.T) {
	for name, want := range map[string]Format{"photo.heic": HEIC, "photo.avif": AVIF} {
		data, err := os.ReadFile(filepath.Join(caseDir, name))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Decode(data, Options{})
		if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), want.String()+" images are not read: export JPEG or PNG") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every file is damaged in its first bytes, where the headers are.
func TestDecode_KeepsTheLimitsForDamagedHeaders(t *testing.T) {
	lim := Options{Limits: Limits{MaxPixels: 1 << 14}, Upright: true}
	for _, name := range inputs(t) {
		if !strings.HasPrefix(name, "bmp_") && !strings.HasPrefix(name, "tiff_") && !strings.HasPrefix(name, "jpeg_sampled") {
			continue
		}
		whole := readInput(t, name)
		for at := range whole {
			if at > 160 && at < len(whole)-300 {
				continue
			}
			data := bytes.Clone(whole)
			data[at] = 0xff
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

// The bombs of the readers of this package.
func TestDecode_RefusesBombsOfItsOwnReaders(t *testing.T) {
	const most = 4 << 20 // bytes
	rle := edited(t, "bmp_rle8.bmp", "BM", 18, 0x40, 0x1f, 0, 0, 0x40, 0x1f, 0, 0)
	sampled := edited(t, "jpeg_sampled_22_11_12.jpg", "\xff\xc0", 5, 0x1f, 0x40, 0x1f, 0x40)
	inks := tiffFile([2]uint32{256, 4000}, [2]uint32{257, 4000}, [2]uint32{258, 16}, [2]uint32{259, 8}, [2]uint32{262, 2}, [2]uint32{273, 8}, [2]uint32{277, 64}, [2]uint32{278, 4000}, [2]uint32{279, 10})
	plain := tiffFile([2]uint32{256, 8000}, [2]uint32{257, 8000}, [2]uint32{258, 8}, [2]uint32{259, 1}, [2]uint32{262, 5}, [2]uint32{273, 8}, [2]uint32{277, 4}, [2]uint32{278, 8000}, [2]uint32{279, 10})
	for name, data := range map[string][]byte{
		"a BMP of runs of 8000×8000":                   rle,
		"a JPEG of unusual sampling of 8000×8000":      sampled,
		"a TIFF of 64 samples in a deflated strip":     inks,
		"a TIFF of inks of 8000×8000 without data":     plain,
		"a PNG of 8000×8000 with neither data nor end": pngHeader(8000, 8000, 8, 6, 0),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Decode(data, Options{})
		runtime.ReadMemStats(&after)
		if !expectedError(err) {
			t.Errorf("%s: %v, expected ErrImage or ErrTooLarge", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > most {
			t.Errorf("%s: allocated %d bytes, expected at most %d", name, n, most)
		}
	}
}
