package dataset

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
)

func testdataZip(t testing.TB, name string) (*Source, error) {
	t.Helper()
	data := readTestdata(t, name)
	return OpenZip(bytes.NewReader(data), int64(len(data)), DefaultLimits())
}

// loaded loads a source and closes it with the test.
func loaded(t *testing.T, src *Source, err error) *Dataset {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	d, err := Load(t.Context(), src, at16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// folderOf writes files to a new folder.
func folderOf(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpen_TrainsOnTheTrainingImagesOfAnEvaluation(t *testing.T) {
	p := dot(t, color.White)
	for _, c := range []struct {
		name  string
		files []string
		want  int
	}{
		{"at the top", []string{"train/good/1.png", "train/good/2.png", "test/good/3.png", "test/crack/4.png", "ground_truth/crack/4_mask.png"}, 2},
		{"in a folder", []string{"a/train/good/1.png", "a/test/crack/4.png", "a/preview.png"}, 1},
		{"in two folders", []string{"a/b/train/good/1.png", "a/b/ground_truth/crack/4.png"}, 1},
		{"without good", []string{"train/1.png", "train/2/3.png", "test/4.png"}, 2},
		{"in other letters", []string{"Train/OK/1.PNG", "Test/ko/2.png", "Test/ok/3.png"}, 1},
		{"good beside others", []string{"train/good/1.png", "train/bad/2.png", "test/3.png"}, 1},
		{"MVTec AD 2", []string{"train/good/1.png", "validation/good/2.png", "test_public/bad/3.png"}, 1},
		{"YOLO", []string{"train/images/1.png", "valid/images/2.png", "test/images/3.png"}, 1},
		{"MVTec LOCO", []string{"train/good/1.png", "validation/good/2.png", "test/logical_anomalies/3.png"}, 1},
	} {
		files := map[string][]byte{"data.yaml": []byte("names: [x]"), "test/scan.zip": []byte("PK\x03\x04")}
		for _, name := range c.files {
			files[name] = p
		}
		zipped, zipErr := openZipOf(t, files, DefaultLimits())
		folder, folderErr := OpenFolder(folderOf(t, files), DefaultLimits())
		for _, d := range []*Dataset{loaded(t, zipped, zipErr), loaded(t, folder, folderErr)} {
			if d.Len() != c.want || len(d.Skipped) != 0 || len(d.ClassNames) != 1 {
				t.Errorf("%s: %d images, skipped %v, classes %q", c.name, d.Len(), d.Skipped, d.ClassNames)
			}
			if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], fmt.Sprintf("only the %d images in", c.want)) {
				t.Errorf("%s: %q", c.name, d.Warnings)
			}
		}
		if err := zipped.CheckHeldOut(); !errors.Is(err, ErrLayout) {
			t.Errorf("%s: calibrating: %v", c.name, err)
		}
	}
	src, err := testdataZip(t, "evaluation_layout.zip")
	if d := loaded(t, src, err); d.Len() != 10 || !strings.Contains(d.Warnings[0], "tile/train/good") {
		t.Errorf("%d images, %q", d.Len(), d.Warnings)
	}
}

func TestOpen_RefusesImagesOfDefects(t *testing.T) {
	p := dot(t, color.White)
	for name, paths := range map[string][]string{
		"side by side":      {"good/1.png", "crack/2.png", "scratch/3.png"},
		"in a folder":       {"a/normal/1.png", "a/tumor/2.png"},
		"in capitals":       {"OK/1.png", "NOK/2.png"},
		"numbered":          {"Images/Normal_1/1.png", "Images/Anomaly/2.png"},
		"masks":             {"1.png", "ground_truth/1_mask.png"},
		"test alone":        {"test/good/1.png", "test/crack/2.png"},
		"several data sets": {"a/train/1.png", "a/test/2.png", "b/train/1.png", "b/test/1.png"},
	} {
		files := map[string][]byte{}
		for _, path := range paths {
			files[path] = p
		}
		_, err := openZipOf(t, files, DefaultLimits())
		if !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), "give ") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := OpenFolder(folderOf(t, files), DefaultLimits()); !errors.Is(err, ErrLayout) {
			t.Errorf("%s in a folder: %v", name, err)
		}
	}
	for name, paths := range map[string][]string{
		"only good":       {"good/1.png", "readme.txt"},
		"two of them":     {"normal/1.png", "normal_2/2.png", "good/3.png"},
		"other names":     {"left/1.png", "right/2.png", "train/3.png"},
		"images above it": {"1.png", "good/2.png"},
	} {
		files := map[string][]byte{}
		for _, path := range paths {
			files[path] = p
		}
		if _, err := openZipOf(t, files, DefaultLimits()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestImages_DecidesByNameAndContent(t *testing.T) {
	p := dot(t, color.White)
	heic := readTestdata(t, "photo.heic")
	dicom, err := os.ReadFile("../../testdata/dicom/explicit_frames.dcm")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"a.png": p, "b.jfif": p, "c.jpe": p, "d.dib": p, "e": p, "f.1": p, "g.heic": p,
		"IMG.HEIC": heic, "i": heic, "j.avif": readTestdata(t, "photo.avif"), "k.dcm": dicom, "l.0001": dicom, "DICOMDIR": dicom, "m.jxl": []byte("\xff\x0a\x00\x01"), "n.jp2": nil,
		"o.nef": []byte("II*\x00\x08\x00\x00\x00"), "p.npz": []byte("PK\x03\x04"), "q.nii.gz": []byte("\x1f\x8b\x08"), "r.tga": {0, 0, 2},
		"s.zip": []byte("PK\x03\x04"), "t.mp4": []byte("\x00\x00\x00\x10ftypisom\x00\x00\x00\x00"), "u.pdf": []byte("%PDF-1.7"), "v.xyz": {0, 1, 2, 3},
		"w.txt": p, "x.json": []byte("{}"), "LICENSE": []byte("prose"), "empty": nil, "README": []byte("Gr\xfc\xdfe"), "y.docx": []byte("PK\x03\x04"),
		"Thumbs.db": {0xd0, 0xcf}, "desktop.ini": {0xff, 0xfe}, "._a.png": p, ".DS_Store": {0, 0, 0, 1}, "__MACOSX/._a.png": p, ".thumbnails/z.png": p,
		"@eaDir/a.png": p, "$RECYCLE.BIN/a.png": p, "data.yaml": []byte("names: [x]"), "a.png~": p,
	}
	all, err := Images(folderOf(t, files))
	if err != nil {
		t.Fatal(err)
	}
	var read, unread, other []string
	for _, f := range all {
		switch {
		case f.Reason == "":
			read = append(read, f.name)
		case f.Image:
			unread = append(unread, f.name)
			if format := map[string]string{"IMG.HEIC": "HEIC", "i": "HEIC", "j.avif": "AVIF", "m.jxl": "JPEG XL",
				"n.jp2": "JPEG 2000", "o.nef": "camera raw", "p.npz": "NumPy", "q.nii.gz": "NIfTI", "r.tga": "TGA"}[f.name]; !strings.HasPrefix(f.Reason, format+" images are not read: ") && f.name != "q.nii.gz" {
				t.Errorf("%s: %s", f.name, f.Reason)
			}
		default:
			other = append(other, f.name)
		}
	}
	for _, c := range []struct{ got, want []string }{
		{read, []string{"a.png", "b.jfif", "c.jpe", "d.dib", "e", "f.1", "g.heic", "k.dcm", "l.0001"}},
		{unread, []string{"IMG.HEIC", "i", "j.avif", "m.jxl", "n.jp2", "o.nef", "p.npz", "r.tga"}},
		{other, []string{"q.nii.gz", "s.zip", "t.mp4", "u.pdf", "v.xyz"}},
	} {
		slices.Sort(c.got)
		slices.Sort(c.want)
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%q, expected %q", c.got, c.want)
		}
	}
	src, err := openZipOf(t, files, DefaultLimits())
	d := loaded(t, src, err)
	if d.Len() != len(read)+2*2 || len(d.Skipped) != len(unread) || src.Refused() != len(unread) {
		t.Errorf("a zip of them: %d images, skipped %v", d.Len(), d.Skipped)
	}
	if text := strings.Join(d.Warnings, "\n"); strings.Count(text, "\n")+1 != 4+2 || !strings.Contains(text, "IMG.HEIC and 1 more: HEIC images are not read") ||
		!strings.Contains(text, "6 of the 13 images are frames of 2 DICOM files") {
		t.Errorf("%s", text)
	}
}

func TestLoad_NamesWhatAZipHasInsteadOfImages(t *testing.T) {
	src, err := testdataZip(t, "nested.zip")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = Load(t.Context(), src, at16); !errors.Is(err, ErrNoImages) || !strings.Contains(err.Error(), "dataset/normal.zip: it is an archive") {
		t.Errorf("%v", err)
	}
	src = zipSource(t, map[string][]byte{"IMG_1.HEIC": readTestdata(t, "photo.heic"), "notes.txt": nil})
	if _, err = Load(t.Context(), src, at16); !errors.Is(err, ErrNoImages) || !strings.Contains(err.Error(), "HEIC images are not read") {
		t.Errorf("%v", err)
	}
	src = zipSource(t, map[string][]byte{"notes.txt": []byte("x")})
	if _, err = Load(t.Context(), src, at16); err == nil || err.Error() != "No image files found in the uploaded dataset" {
		t.Errorf("%v", err)
	}
}

func TestOpenZip_ReadsTheCases(t *testing.T) {
	for name, want := range map[string]int{"deflate64.zip": 20, "jfif.zip": 20, "yaml_alias.zip": 9, "control_names.zip": 10} {
		src, err := testdataZip(t, name)
		d := loaded(t, src, err)
		if d.Len() != want {
			t.Errorf("%s: %d images, skipped %v", name, d.Len(), d.Skipped)
		}
		if name == "yaml_alias.zip" && !slices.Equal(d.ClassNames, []string{"good", "crack"}) {
			t.Errorf("classes %q, %q", d.ClassNames, d.Warnings)
		}
		for _, s := range d.Skipped {
			if strings.ContainsAny(s.Name, "\n\x1b") || len(s.Name) > 300 {
				t.Errorf("the name %q", s.Name)
			}
		}
	}
}

func TestOpenZip_SaysHowToPackUnreadableFiles(t *testing.T) {
	p := dot(t, color.White)
	for want, e := range map[string]hostile.Entry{
		"LZMA":          {Name: "a.png", Data: p, Method: 14},
		"method 77":     {Name: "a.png", Data: p, Method: 77},
		"encrypted":     {Name: "a.png", Data: p, Flags: 1},
		"link":          {Name: "a.png", Data: []byte("b.png"), Mode: os.ModeSymlink | 0o777},
		"named pipe":    {Name: "a.png", Mode: os.ModeNamedPipe | 0o666},
		"not read: exp": {Name: "a.heic", Data: p, Method: 14},
	} {
		data := hostile.Pack(hostile.Entry{Name: "good.png", Data: p}, e)
		src, err := OpenZip(bytes.NewReader(data), int64(len(data)), DefaultLimits())
		d := loaded(t, src, err)
		if d.Len() != 1 || len(d.Skipped) != 1 || e.Name == "a.png" && !strings.Contains(d.Skipped[0].Reason, want) {
			t.Errorf("%s: %d images, skipped %v", want, d.Len(), d.Skipped)
		}
	}
}

func TestOpenFolder_PassesOverWhatIsNoRegularFile(t *testing.T) {
	p := dot(t, color.White)
	dir := folderOf(t, map[string][]byte{"a.png": p, "sub/b.png": p})
	for _, name := range []string{"pipe.png", "pipe"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s.jpg"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, to := range map[string]string{"c.png": "a.png", "d.png": "nowhere", "e": ".", "f.png": "pipe", "g.png": os.DevNull} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Symlink(dir, root); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{dir, root} {
		src, err := OpenFolder(folder, DefaultLimits())
		d := loaded(t, src, err)
		var skipped []string
		for _, s := range d.Skipped {
			skipped = append(skipped, s.Name)
		}
		if d.Len() != 3 || !slices.Equal(skipped, []string{"d.png", "f.png", "g.png", "pipe.png", "s.jpg"}) {
			t.Errorf("%d images, skipped %v", d.Len(), d.Skipped)
		}
		if text := strings.Join(d.Warnings, "\n"); !strings.Contains(text, "passed over pipe: it is a named pipe") || !strings.Contains(text, "passed over e: it is a link to a folder") {
			t.Errorf("%s", text)
		}
	}
	src, err := OpenFiles([]string{filepath.Join(dir, "pipe.png"), filepath.Join(dir, "a.png")}, DefaultLimits())
	if d := loaded(t, src, err); d.Len() != 1 || len(d.Skipped) != 1 {
		t.Errorf("named files: %d images, skipped %v", d.Len(), d.Skipped)
	}
}

func TestPrintable_QuotesControlCharacters(t *testing.T) {
	for name, want := range map[string]string{
		"a b.png": "a b.png", "Größe 腫瘍.png": "Größe 腫瘍.png", "a\nb": `"a\nb"`, "\x1b[31m": `"\x1b[31m"`, "\xff.png": `"\xff.png"`, "a\u202eb": `"a\u202eb"`,
	} {
		if got := Printable(name); got != want {
			t.Errorf("%q: %s", name, got)
		}
	}
}
