package dataset

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// dicomFile returns a file of testdata/dicom.
func dicomFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../../testdata/dicom", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLoad_HasEachFrameOfADICOMFile(t *testing.T) {
	frames, single := dicomFile(t, "explicit_frames.dcm"), dicomFile(t, "explicit_mono2_12.dcm")
	enhanced := dicomFile(t, "explicit_enhanced.dcm") // of 2 frames with a window each
	files := map[string][]byte{"b/a.dcm": frames, "a.dcm": single, "b/b": enhanced, "c.dcm": single}
	var want [][]byte
	for _, data := range [][]byte{single, frames, enhanced, single} {
		f, err := imagefile.OpenFrames(data, imagefile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range f.Len() {
			pix, err := imagefile.Prepare(data, models.Square(16), f.Options(i))
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, pix)
		}
	}
	for _, memory := range []int64{0, 3 * 16 * 16 * 3, 1 << 20} {
		src, err := openZipOf(t, files, DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		o := at16
		o.Limits.MemoryBytes = memory
		d, err := Load(t.Context(), src, o)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		got := images(t, d)
		if len(got) != len(want) || len(want) != 7 {
			t.Fatalf("%d images, expected %d", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("with %d bytes of memory, image %d is not that of its file and frame", memory, i)
			}
		}
	}
}

func TestLoad_SkipsAFrameThatCannotBeRead(t *testing.T) {
	data := dicomFile(t, "rle_frames.dcm")
	data[bytes.LastIndex(data, []byte("\x02\x00\x00\x00\x40\x00\x00\x00"))] = 9 // segments
	src, err := openZipOf(t, map[string][]byte{"a.dcm": data, "b.png": dicomFile(t, "rle_frames.dcm")}, DefaultLimits())
	d := loaded(t, src, err)
	if d.Len() != 2 || len(d.Skipped) != 2 || d.Skipped[0].Name != "a.dcm#3" || !strings.Contains(d.Skipped[0].Reason, "frame 3 of 3") ||
		d.Skipped[1].Name != "b.png" || !strings.Contains(d.Skipped[1].Reason, "DICOM file of 3 frames with the name of another kind of file") {
		t.Errorf("%d images, skipped %+v", d.Len(), d.Skipped)
	}
}

func TestLoad_BoundsTheFramesOfAllFiles(t *testing.T) {
	files := map[string][]byte{}
	for i := range 4 {
		files[fmt.Sprintf("%d.dcm", i)] = dicomFile(t, "explicit_frames.dcm")
	}
	for name, change := range map[string]func(*Limits){
		"12 images with all frames of the DICOM files, at most 11": func(l *Limits) { l.Entries = 11 },
		"12 images at 16 px take 9216 bytes, at most 9215":         func(l *Limits) { l.PreparedBytes = 12*16*16*3 - 1 },
	} {
		src, err := openZipOf(t, files, DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		o := at16
		change(&o.Limits)
		if _, err := Load(t.Context(), src, o); !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, expected %q", err, name)
		}
	}
}
