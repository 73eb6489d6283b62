package imagefile

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"
)

// rowsOf returns all rows of an image, or the first error.
func rowsOf(data []byte, o Options) (*RGB, error) {
	r, err := openRows(data, o)
	if err != nil {
		return nil, err
	}
	img := newRGB(r.w, r.h)
	img.largest = r.largest
	for y := range r.h {
		if err := r.read(img.Pix[3*y*r.w : 3*(y+1)*r.w]); err != nil {
			return nil, err
		}
	}
	if r.end != nil {
		if err := r.end(); err != nil {
			return nil, err
		}
	}
	return img, nil
}

// noiseOf returns an image of w×h random pixels of a kind.
func noiseOf(kind string, w, h int) image.Image {
	random := rand.New(rand.NewPCG(uint64(w), uint64(h)))
	box := image.Rect(0, 0, w, h)
	switch kind {
	case "grey":
		m := image.NewGray(box)
		for i := range m.Pix {
			m.Pix[i] = byte(random.Uint32())
		}
		return m
	case "deep":
		m := image.NewGray16(box)
		for i := range m.Pix {
			m.Pix[i] = byte(random.Uint32())
		}
		return m
	case "palette":
		m := image.NewPaletted(box, color.Palette{color.Black, color.White, color.NRGBA{200, 10, 30, 255}})
		for i := range m.Pix {
			m.Pix[i] = byte(random.IntN(3))
		}
		return m
	}
	m := image.NewNRGBA(box)
	for i := range m.Pix {
		m.Pix[i] = byte(int(random.Uint32())&63 + i/64)
		if i%4 == 3 && kind == "opaque" {
			m.Pix[i] = 255
		}
	}
	return m
}

// encoded returns images by name, of all kinds that are read row by row and some that are
// not.
func encoded(t testing.TB) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, kind := range []string{"grey", "deep", "palette", "opaque", "transparent"} {
		m := noiseOf(kind, 75, 53)
		for name, encode := range map[string]func(*bytes.Buffer) error{
			"png":          func(b *bytes.Buffer) error { return png.Encode(b, m) },
			"png, stored":  func(b *bytes.Buffer) error { return (&png.Encoder{CompressionLevel: png.NoCompression}).Encode(b, m) },
			"jpeg":         func(b *bytes.Buffer) error { return jpeg.Encode(b, m, nil) },
			"bmp":          func(b *bytes.Buffer) error { return bmp.Encode(b, m) },
			"tiff":         func(b *bytes.Buffer) error { return tiff.Encode(b, m, nil) },
			"tiff, packed": func(b *bytes.Buffer) error { return tiff.Encode(b, m, &tiff.Options{Compression: tiff.Deflate}) },
		} {
			var b bytes.Buffer
			if err := encode(&b); err != nil {
				continue // not every format has every kind
			}
			out[kind+" "+name] = b.Bytes()
		}
	}
	return out
}

// addImages adds the images in folders, by their paths, to files.
func addImages(t *testing.T, files map[string][]byte, folders ...string) {
	t.Helper()
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) == ".zip" {
				return err
			}
			data, err := os.ReadFile(path)
			if format, _ := Sniff(data); err == nil && codecs[format] != nil {
				files[path] = data
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRows_ReturnsThePixelsOfDecode(t *testing.T) {
	files := encoded(t)
	addImages(t, files, "testdata", filepath.Join("..", "..", "testdata"))
	if len(files) < 30 {
		t.Fatalf("%d images", len(files))
	}
	for name, data := range files {
		for _, o := range []Options{{}, {Upright: true}, {MaxValue: 4095}} {
			want, wantErr := Decode(data, o)
			got, err := rowsOf(data, o)
			if wantErr != nil || err != nil {
				if (wantErr == nil) != (err == nil) || errors.Is(wantErr, ErrImage) != errors.Is(err, ErrImage) {
					t.Errorf("%s: error %v, Decode's is %v", name, err, wantErr)
				}
				continue
			}
			if got.W != want.W || got.H != want.H || got.largest != want.largest || !bytes.Equal(got.Pix, want.Pix) {
				t.Errorf("%s, %+v: other pixels than Decode's", name, o)
			}
		}
	}
}

// The formats that are read row by row need no memory for the whole image.
func TestOpenRows_ReadsRowByRowWhereTheFormatAllows(t *testing.T) {
	files := encoded(t)
	for name, read := range map[string]func([]byte, Options) (*rows, error){
		"grey png": pngRows, "opaque png": pngRows, "transparent png": pngRows, "opaque png, stored": pngRows,
		"opaque jpeg": jpegRows, "grey jpeg": jpegRows, "opaque bmp": bmpRows, "grey bmp": bmpRows, "grey tiff": tiffRows,
	} {
		if r, err := read(files[name], Options{}.orDefault()); r == nil || err != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	for name, read := range map[string]func([]byte, Options) (*rows, error){"deep png": pngRows, "palette png": pngRows, "opaque tiff, packed": tiffRows} {
		if r, err := read(files[name], Options{}.orDefault()); r != nil || err != nil {
			t.Errorf("%s: %v, %v; it cannot be read row by row", name, r, err)
		}
	}
}

func TestOpenRows_RejectsDamage(t *testing.T) {
	for name, data := range encoded(t) {
		for cut := 1; cut < len(data); cut += 1 + len(data)/40 {
			_, wantErr := Decode(data[:cut], Options{})
			if _, err := rowsOf(data[:cut], Options{}); wantErr != nil && (err == nil || !errors.Is(err, ErrImage) && !errors.Is(err, ErrTooLarge)) {
				t.Errorf("%s cut at %d of %d: %v, Decode's error is %v", name, cut, len(data), err, wantErr)
			}
		}
	}
	if _, err := rowsOf(encoded(t)["opaque png"], Options{Limits: Limits{MaxPixels: 75*53 - 1}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("above the limit: %v", err)
	}
}

func TestCutTiles_CutsTheImage(t *testing.T) {
	data := encoded(t)["opaque png"] // 75×53
	whole, err := Decode(data, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		side int
		models.Tiles
		n int
	}{
		{16, models.Tiles{Overlap: 4}, 6 * 5}, {16, models.Tiles{}, 5 * 4}, {64, models.Tiles{Overlap: 8}, 2}, {128, models.Tiles{Overlap: 8}, 1},
		{32, models.Tiles{Overlap: 8, LongestSide: 150}, 6 * 5}, {32, models.Tiles{Overlap: 8, LongestSide: 20}, 1},
	} {
		w, h := tiling.Scaled(75, 53, c.LongestSide)
		scaled := whole.Resize(w, h)
		seen := 0
		cut, err := CutTiles(data, c.side, c.Tiles, Options{}, func(cut Cut) error {
			if cut.Grid.Len() != c.n {
				t.Errorf("%+v: %d tiles", c, cut.Grid.Len())
			}
			return nil
		}, func(i int, pix []byte) error {
			if i != seen {
				t.Fatalf("%+v: tile %d after %d", c, i, seen)
			}
			seen++
			left, top := tiling.New(w, h, c.side, c.Overlap).At(i)
			for y := range c.side {
				for x := range c.side {
					at := 3 * (min(top+y, h-1)*w + min(left+x, w-1))
					if !bytes.Equal(pix[3*(y*c.side+x):][:3], scaled.Pix[at:at+3]) {
						t.Fatalf("%+v: another pixel at %d, %d of tile %d", c, x, y, i)
					}
				}
			}
			ReleaseTile(pix)
			return nil
		})
		if err != nil || seen != c.n || cut.W != 75 || cut.H != 53 {
			t.Errorf("%+v: %+v, %d tiles, %v", c, cut, seen, err)
		}
	}
	stop := errors.New("stop")
	if _, err := CutTiles(data, 16, models.Tiles{}, Options{}, nil, func(i int, _ []byte) error { return stop }); err != stop {
		t.Errorf("the callee's error became %v", err)
	}
	var wide bytes.Buffer
	if err := png.Encode(&wide, image.NewGray(image.Rect(0, 0, 60000, 64))); err != nil {
		t.Fatal(err)
	}
	if _, err := CutTiles(wide.Bytes(), 64, models.Tiles{Overlap: 32}, Options{}, nil, func(int, []byte) error { return nil }); err != nil {
		t.Errorf("1874 tiles: %v", err)
	}
	if _, err := CutTiles(wide.Bytes(), 16, models.Tiles{Overlap: 8}, Options{}, nil, func(int, []byte) error { return nil }); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many tiles: %v", err)
	}
}

func TestCutTiles_RejectsDamagedAndLargeImagesThatAreScaled(t *testing.T) {
	// A PNG whose chunks are sound, with fewer pixels than it states.
	var short bytes.Buffer
	z := zlib.NewWriter(&short)
	if _, err := z.Write(make([]byte, 300)); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	chunk := func(id string, body []byte) []byte {
		out := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
		out = append(append(out, id...), body...)
		return binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(out[4:]))
	}
	damaged := slices.Concat([]byte("\x89PNG\r\n\x1a\n"), chunk("IHDR", []byte{0, 0, 0, 100, 0, 0, 0, 100, 8, 0, 0, 0, 0}), chunk("IDAT", short.Bytes()), chunk("IEND", nil))
	for name, c := range map[string]struct {
		data   []byte
		limits Limits
		want   error
	}{
		"too few pixels":         {damaged, Limits{}, ErrImage},
		"scaled above the limit": {encoded(t)["opaque png"], Limits{MaxPixels: 200*141 - 1}, ErrTooLarge},
	} {
		_, err := CutTiles(c.data, 64, models.Tiles{Overlap: 8, LongestSide: 200}, Options{Limits: c.limits}, nil, func(_ int, pix []byte) error {
			ReleaseTile(pix)
			return nil
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
	}
}

// An image that is read row by row has the pixels of Decode, or an error where Decode has
// one, for any bytes.
func FuzzOpenRows(f *testing.F) {
	for _, data := range encoded(f) {
		f.Add(data, false)
		f.Add(data[:len(data)/2], true)
	}
	f.Fuzz(func(t *testing.T, data []byte, upright bool) {
		o := Options{Limits: Limits{MaxBytes: 1 << 20, MaxPixels: 1 << 18}, Upright: upright}
		want, wantErr := Decode(data, o)
		got, err := rowsOf(data, o)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v, Decode's is %v", err, wantErr)
		}
		if err == nil && (got.W != want.W || got.H != want.H || !bytes.Equal(got.Pix, want.Pix)) {
			t.Fatal("other pixels than Decode's")
		}
		if err != nil && !errors.Is(err, ErrImage) && !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
	})
}
