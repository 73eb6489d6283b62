package dicom

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	stdjpeg "image/jpeg"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// goldenDir has files made by bench/dicom/make.py, with the pixels that pydicom reads.
var goldenDir = filepath.Join("..", "..", "testdata", "dicom")

// golden is an entry of index.json.
type golden struct {
	File                  string
	Kind                  string
	Width, Height, Frames int
	Tolerance             int
}

func goldens(t testing.TB) []golden {
	t.Helper()
	var all []golden
	if err := json.Unmarshal(read(t, "index.json"), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) < 100 {
		t.Fatalf("%d golden files, expected at least 100", len(all))
	}
	return all
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(goldenDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// expected returns a file in expected.zip.
func expected(t testing.TB, name string) []byte {
	t.Helper()
	z, err := zip.OpenReader(filepath.Join(goldenDir, "expected.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	f, err := z.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// testLimits are small enough for tests of memory.
func testLimits() Limits { return limits(1<<20, 1<<20) }

func limits(bytes int64, pixels int) Limits {
	return Limits{Bytes: bytes, Size: func(w, h int) error {
		if w < 1 || h < 1 || w*h > pixels {
			return fmt.Errorf("it is %d×%d pixels, at most %d are read", w, h, pixels)
		}
		return nil
	}, Frames: func(frames, w, h int) error {
		const most = 2000
		if frames > most || frames > 16*pixels/(w*h) {
			return fmt.Errorf("it has %d frames of %d×%d pixels, at most %d are read", frames, w, h, most)
		}
		return nil
	}}
}

// testJPEG decodes a baseline JPEG with repeated chroma; internal/imagefile has the
// decoder of the service.
func testJPEG(data []byte, convert bool) (w, h, components int, samples []byte, err error) {
	c, err := stdjpeg.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return 0, 0, 0, nil, err
	}
	if c.Width*c.Height > 1<<20 {
		return 0, 0, 0, nil, errors.New("too large")
	}
	m, err := stdjpeg.Decode(bytes.NewReader(data))
	if err != nil {
		return 0, 0, 0, nil, err
	}
	switch m := m.(type) {
	case *image.Gray:
		for y := range c.Height {
			samples = append(samples, m.Pix[y*m.Stride:y*m.Stride+c.Width]...)
		}
		return c.Width, c.Height, 1, samples, nil
	case *image.YCbCr:
		for y := range c.Height {
			for x := range c.Width {
				i := m.COffset(x, y)
				samples = append(samples, m.Y[m.YOffset(x, y)], m.Cb[i], m.Cr[i])
			}
		}
	case *image.RGBA:
		for i := 0; i < len(m.Pix); i += 4 {
			samples = append(samples, m.Pix[i:i+3]...)
		}
	default:
		return 0, 0, 0, nil, errors.New("four components")
	}
	if convert {
		ybrToRGB(samples)
	}
	return c.Width, c.Height, 3, samples, nil
}

// decodeFrame is Open and File.Decode.
func decodeFrame(data []byte, frame int, lim Limits, jpeg JPEG) (*Image, error) {
	f, err := Open(data, lim)
	if err != nil {
		return nil, err
	}
	return f.Decode(frame, jpeg)
}

func TestDecode_EqualsPydicom(t *testing.T) {
	for _, g := range goldens(t) {
		if strings.Contains(g.File, "ybr_full_422") && strings.HasPrefix(g.File, "jpeg_") {
			continue // internal/imagefile interpolates chroma
		}
		t.Run(g.File, func(t *testing.T) {
			f, err := Open(read(t, g.File), testLimits())
			if err != nil {
				t.Fatal(err)
			}
			if f.Frames() != g.Frames {
				t.Fatalf("%d frames, expected %d", f.Frames(), g.Frames)
			}
			for i := range g.Frames {
				base := strings.TrimSuffix(g.File, ".dcm")
				if i > 0 {
					base = fmt.Sprintf("%s#%d", base, i+1)
				}
				compareFrame(t, g, f, i, base)
			}
		})
	}
}

// compareFrame compares a frame with what is expected under a name.
func compareFrame(t *testing.T, g golden, f *File, frame int, base string) {
	t.Helper()
	img, err := f.Decode(frame, testJPEG)
	if err != nil {
		t.Fatal(err)
	}
	if img.W != g.Width || img.H != g.Height {
		t.Fatalf("%d×%d pixels, expected %d×%d", img.W, img.H, g.Width, g.Height)
	}
	if g.Kind != "rgb" {
		compareGrey(t, g, f, frame, base, img)
		return
	}
	want := expected(t, base+".rgb")
	if len(want) != len(img.RGB) {
		t.Fatalf("%d bytes of colours, expected %d", len(img.RGB), len(want))
	}
	for i, v := range want {
		if d := int(v) - int(img.RGB[i]); d > g.Tolerance || -d > g.Tolerance {
			t.Fatalf("%s: byte %d is %d, expected %d ± %d", base, i, img.RGB[i], v, g.Tolerance)
		}
	}
}

// compareGrey compares stored values exactly or within the tolerance, and the window's
// exactly where the stored values are exact.
func compareGrey(t *testing.T, g golden, opened *File, frame int, base string, img *Image) {
	t.Helper()
	f, err := opened.f.frame(frame)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := f.encoded(frame)
	if err != nil {
		t.Fatal(err)
	}
	f.chooseCodec(encoded)
	samples, err := f.unpack(frame, encoded, testJPEG)
	if err != nil {
		t.Fatal(err)
	}
	want := expected(t, base+".values")
	if len(want) != 4*len(samples) {
		t.Fatalf(base+": %d values, expected %d", len(samples), len(want)/4)
	}
	for i, v := range samples {
		w := int(int32(binary.LittleEndian.Uint32(want[4*i:])))
		if d := f.number(v) - w; d > g.Tolerance || -d > g.Tolerance {
			t.Fatalf(base+": stored value %d is %d, expected %d ± %d", i, f.number(v), w, g.Tolerance)
		}
	}
	if g.Tolerance > 0 {
		return
	}
	want = expected(t, base+".grey")
	for i, v := range img.Grey {
		if w := binary.LittleEndian.Uint16(want[2*i:]); v != w {
			t.Fatalf(base+": grey value %d is %d, expected %d", i, v, w)
		}
	}
}

func TestDecode_ReadsJPEGOf12BitsAsDCMTK(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(goldenDir, "jpeg_12_*.dcm"))
	if err != nil || len(names) < 10 {
		t.Fatalf("%d files, %v", len(names), err)
	}
	for _, name := range names {
		name = filepath.Base(name)
		opened, err := Open(read(t, name), testLimits())
		if err != nil {
			t.Fatal(name, err)
		}
		want := expected(t, strings.TrimSuffix(name, ".dcm")+".dcmtk")
		for frame := range opened.Frames() {
			f, err := opened.f.frame(frame)
			if err != nil {
				t.Fatal(name, err)
			}
			encoded, err := f.encoded(frame)
			if err != nil {
				t.Fatal(name, err)
			}
			f.chooseCodec(encoded)
			samples, err := f.unpack(frame, encoded, testJPEG)
			if err != nil || len(want) < 4*len(samples) {
				t.Fatalf("%s: %d samples, %v", name, len(samples), err)
			}
			for i, v := range samples {
				if d := int(v) - int(int32(binary.LittleEndian.Uint32(want[4*i:]))); d < -1 || d > 1 {
					t.Fatalf("%s, frame %d: sample %d differs by %d", name, frame, i, d)
				}
			}
			want = want[4*len(samples):]
		}
		if len(want) > 0 {
			t.Errorf("%s: %d bytes of samples too few", name, len(want))
		}
	}
}
