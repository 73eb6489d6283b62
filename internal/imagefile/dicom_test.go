package imagefile

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// dicomDir has DICOM files, and in expected.zip the pixels that pydicom reads from them.
const dicomDir = "../../testdata/dicom"

func readDICOMFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dicomDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecode_ReadsDICOMAsPydicom(t *testing.T) {
	var all []struct {
		File, Kind            string
		Width, Height, Frames int
		Tolerance             int
	}
	if err := json.Unmarshal(readDICOMFile(t, "index.json"), &all); err != nil || len(all) < 100 {
		t.Fatalf("%d files: %v", len(all), err)
	}
	z, err := zip.OpenReader(filepath.Join(dicomDir, "expected.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	for _, g := range all {
		t.Run(g.File, func(t *testing.T) {
			suffix := map[string]string{"rgb": ".rgb", "grey": ".grey"}[g.Kind]
			f, err := z.Open(strings.TrimSuffix(g.File, ".dcm") + suffix)
			if err != nil {
				t.Fatal(err)
			}
			want, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			data := readDICOMFile(t, g.File)
			if f, ok := Sniff(data[:min(len(data), SniffBytes)]); f != DICOM || !ok {
				t.Errorf("its format is %v, expected DICOM", f)
			}
			// A scale of 16-bit samples does not apply to the values within a window.
			img, err := Decode(data, Options{MaxValue: 4095})
			if err != nil {
				t.Fatal(err)
			}
			if img.W != g.Width || img.H != g.Height || img.largest != 0 {
				t.Fatalf("%d×%d pixels, largest %d", img.W, img.H, img.largest)
			}
			tolerance := g.Tolerance
			if g.Kind == "grey" && tolerance > 0 {
				tolerance = windowed[strings.TrimSuffix(strings.TrimPrefix(g.File, "jpeg2000_lossy_"), ".dcm")] + tolerance
			}
			for i, v := range img.Pix {
				var w int
				if g.Kind == "rgb" {
					w = int(want[i])
				} else {
					w = int(binary.LittleEndian.Uint16(want[i/3*2:]) >> 8)
				}
				if d := int(v) - w; d > tolerance || -d > tolerance {
					t.Fatalf("value %d is %d, expected %d ± %d", i, v, w, tolerance)
				}
			}
		})
	}
}

// windowed are files whose windows stretch 8-bit values that differ by a lossy codec's
// rounding.
var windowed = map[string]int{"mono1_8": 4}

func TestDecode_RefusesDICOMWithASentence(t *testing.T) {
	whole := readDICOMFile(t, "explicit_mono2_12.dcm")
	for name, c := range map[string]struct {
		data []byte
		lim  Limits
		want error
		text string
	}{
		"truncated":             {whole[:len(whole)-1], Limits{}, ErrImage, "truncated"},
		"no content":            {append(make([]byte, 128), "DICM"...), Limits{}, ErrImage, "no image"},
		"too many pixels":       {whole, Limits{MaxPixels: 100}, ErrTooLarge, "24×18 pixels"},
		"too many bytes":        {whole, Limits{MaxBytes: 100}, ErrTooLarge, "more than 100 bytes"},
		"a damaged JPEG inside": {bytes.Replace(readDICOMFile(t, "jpeg_baseline_rgb.dcm"), []byte("\xff\xc0"), []byte("\xff\xcf"), 1), Limits{}, ErrImage, "the JPEG baseline image of the DICOM file"},
		"a JPEG of 12 bits":     {bytes.Replace(readDICOMFile(t, "jpeg_extended_monochrome2.dcm"), []byte("\xff\xc1\x00\x0b\x08"), []byte("\xff\xc1\x00\x0b\x0c"), 1), Limits{}, ErrImage, "states 8 bits allocated and its JPEG has 12"},
		"no rows":               {bytes.Replace(whole, []byte("\x28\x00\x10\x00US\x02\x00\x12"), []byte("\x28\x00\x10\x00US\x02\x00\x00"), 1), Limits{}, ErrImage, "24×0 pixels"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(c.data, Options{Limits: c.lim})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || strings.Contains(strings.ToUpper(err.Error()), "PLANTED") ||
				!strings.HasPrefix(err.Error(), c.want.Error()+": ") || strings.Count(err.Error(), c.want.Error()) != 1 {
				t.Errorf("%v, expected %v with %q", err, c.want, c.text)
			}
		})
	}
}

func TestSniff_RecognizesDICOMWithoutPreambleOnlyIfSafe(t *testing.T) {
	element := func(element byte, vr string, length byte) string {
		return "\x08\x00" + string([]byte{element, 0}) + vr + string([]byte{length, 0}) + strings.Repeat("A", int(length))
	}
	long := element(5, "CS", 4) + element(8, "CS", 2) + element(0x16, "UI", 4) + element(0x18, "UI", 4)
	for name, c := range map[string]struct {
		head string
		want Format
	}{
		"explicit elements":          {long, DICOM},
		"implicit elements":          {"\x08\x00\x05\x00\x02\x00\x00\x00AA\x08\x00\x08\x00\x02\x00\x00\x00AA\x08\x00\x16\x00\x02\x00\x00\x00AA\x08\x00\x18\x00\x02\x00\x00\x00AA", DICOM},
		"meta information":           {"\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00", DICOM},
		"two elements":               {element(5, "CS", 4) + element(8, "CS", 2), Unknown},
		"descending elements":        {element(8, "CS", 4) + element(5, "CS", 2) + element(0x16, "UI", 4) + element(0x18, "UI", 4), Unknown},
		"an odd length":              {element(5, "CS", 3) + element(8, "CS", 2) + element(0x16, "UI", 4) + element(0x18, "UI", 4), Unknown},
		"zeros after the first byte": {"\x08" + strings.Repeat("\x00", 200), Unknown},
	} {
		if f, _ := Sniff([]byte(c.head)); f != c.want {
			t.Errorf("%s: %v, expected %v", name, f, c.want)
		}
	}
}

func TestOpenFrames_DecodesEachFrameFromOneOpening(t *testing.T) {
	data := readDICOMFile(t, "explicit_frames.dcm")
	f, err := OpenFrames(data, Options{})
	if err != nil || f.Len() != 3 {
		t.Fatalf("%v, expected 3 frames", err)
	}
	var all [][]byte
	for i := range f.Len() {
		pix, err := Prepare(f.Data(), models.Square(16), f.Options(i))
		if err != nil {
			t.Fatal(err)
		}
		for k, other := range all {
			if bytes.Equal(other, pix) {
				t.Errorf("frame %d equals frame %d", i, k)
			}
		}
		all = append(all, pix)
	}
	if first, err := Prepare(data, models.Square(16), Options{}); err != nil || !bytes.Equal(first, all[0]) {
		t.Errorf("without a frame, the pixels are not those of the first: %v", err)
	}
}

func TestOpenFrames_RefusesTooManyFramesAndPixels(t *testing.T) {
	data := readDICOMFile(t, "explicit_frames.dcm")
	for _, c := range []struct {
		frames string
		lim    Limits
		want   string
	}{
		{"2001", Limits{}, "2001 frames, at most 2000"},
		{"20  ", Limits{MaxPixels: 24 * 18}, "20 frames of 24×18 pixels, at most 6912 pixels"},
	} {
		changed := bytes.Replace(data, []byte("\x28\x00\x08\x00IS\x02\x003 "), []byte("\x28\x00\x08\x00IS\x04\x00"+c.frames), 1)
		if _, err := OpenFrames(changed, Options{Limits: c.lim}); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, expected %q", err, c.want)
		}
		if _, err := Decode(changed, Options{Limits: c.lim}); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v, expected that it is too large", err)
		}
	}
}

func TestDecode_NamesTheFrameThatIsDamaged(t *testing.T) {
	data := readDICOMFile(t, "rle_frames.dcm")
	last := bytes.LastIndex(data, []byte("\x02\x00\x00\x00\x40\x00\x00\x00"))
	if last < 0 {
		t.Fatal("no run-length header")
	}
	data[last] = 9
	f, err := OpenFrames(data, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data, f.Options(1)); err != nil {
		t.Error(err)
	}
	_, err = Decode(data, f.Options(2))
	if !errors.Is(err, ErrImage) || !strings.Contains(err.Error(), "frame 3 of 3: the run-length") {
		t.Errorf("%v, expected the frame's number", err)
	}
}

func TestOpenFrames_CountsOneImageInOtherFiles(t *testing.T) {
	for _, data := range [][]byte{nil, []byte("no image"), []byte("\x89PNG\r\n\x1a\n")} {
		if f, err := OpenFrames(data, Options{}); err != nil || f.Len() != 1 {
			t.Errorf("%q: %v", data, err)
		}
	}
}
