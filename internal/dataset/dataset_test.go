package dataset

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

var imageLimits imagefile.Options

// tileFolder returns all normal tiles.
func tileFolder(t *testing.T) *Source {
	t.Helper()
	src, err := OpenFolder(testkit.NormalTiles(t), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func zipSource(t testing.TB, files map[string][]byte) *Source {
	t.Helper()
	src, err := openZipOf(t, files, DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func openZipOf(t testing.TB, files map[string][]byte, lim Limits) (*Source, error) {
	t.Helper()
	data := testkit.Zip(t, files)
	return OpenZip(bytes.NewReader(data), int64(len(data)), lim)
}

// dot returns a PNG of one colour.
func dot(t testing.TB, c color.Color) []byte {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, 4, 4))
	for i := range 16 {
		img.Set(i%4, i/4, c)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// at16 are options for images of 16×16 pixels.
var at16 = Options{Size: models.Square(16), Limits: DefaultLimits(), Images: imageLimits}

// images returns copies of all images of a data set.
func images(t testing.TB, d *Dataset) [][]byte {
	t.Helper()
	var out [][]byte
	var buffer []byte
	for i := range d.Len() {
		image, err := d.Image(i, &buffer)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, bytes.Clone(image))
	}
	return out
}

func TestOpenZip_FindsImagesInAnyFolderAndCase(t *testing.T) {
	p := dot(t, color.White)
	src := zipSource(t, map[string][]byte{
		"a.png": p, "b/c.PNG": p, "b/d/e.JpEg": p, `win\dows.tiff`: p, "../../climbs.gif": p, "/abs.webp": p, "f.bmp": p, "g.tif": p,
		"__MACOSX/._a.png": p, ".hidden.png": p, "b/.git/x.png": p, "readme.txt": p, "png": p, "h.png.txt": p,
	})
	d, err := Load(t.Context(), src, at16)
	if err != nil {
		t.Fatal(err)
	}
	if d.Len() != 9 || len(d.Skipped) != 0 {
		t.Errorf("%d images, skipped %v", d.Len(), d.Skipped)
	}
	for _, px := range images(t, d) {
		if !bytes.Equal(px, bytes.Repeat([]byte{255}, 16*16*3)) {
			t.Error("an image has wrong pixels")
		}
	}
}

func TestLoad_SkipsAndNamesUnreadableImages(t *testing.T) {
	p := dot(t, color.Black)
	d, err := Load(t.Context(), zipSource(t, map[string][]byte{"good.png": p, "bad.jpg": []byte("prose"), "cut.png": p[:40]}), at16)
	if err != nil {
		t.Fatal(err)
	}
	if d.Len() != 1 || len(d.Skipped) != 2 || d.Skipped[0].Name != "bad.jpg" || d.Skipped[1].Name != "cut.png" || d.Skipped[0].Reason == "" {
		t.Errorf("%d images, skipped %+v", d.Len(), d.Skipped)
	}
	_, err = Load(t.Context(), zipSource(t, map[string][]byte{"bad.jpg": []byte("prose")}), at16)
	if !errors.Is(err, ErrNoImages) || !strings.Contains(err.Error(), "bad.jpg") {
		t.Errorf("none readable: %v", err)
	}
}

func TestParseClassNames_ReadsListsAndMappings(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		want       []string
	}{
		{"a list", "names: [normal, tumor, polyp]", []string{"normal", "tumor", "polyp"}},
		{"a list by lines", "nc: 2\nclasses:\n  - a b\n  - \"c: d\"\n", []string{"a b", "c: d"}},
		{"YOLO's mapping", "names:\n  1: tumor\n  0: normal\n  10: late\n", []string{"normal", "tumor", "late"}},
		{"labels", "labels: [x]", []string{"x"}},
		{"numbers as names", "names: [1, 2.5, true]", []string{"1", "2.5", "true"}},
		{"names win over labels", "labels: [x]\nnames: [y]", []string{"y"}},
		{"an empty list, then another key", "names: []\nclasses: [z]", []string{"z"}},
		{"an alias", "base: &b [good, crack]\nnames: *b\n", []string{"good", "crack"}},
		{"aliases of names", "a: &a good\nnames: [*a, crack]", []string{"good", "crack"}},
		{"an alias of a mapping", "a: &a {0: good, 1: crack}\nnames: *a", []string{"good", "crack"}},
		{"numbers in quotes", "names: {\"1\": crack, '0': good, 10: late}", []string{"good", "crack", "late"}},
		{"a merged mapping", "a: &a {0: good}\nnames: {<<: *a, 1: crack}", []string{"good", "crack"}},
		{"letters beyond ASCII", "names: [Ä, 腫瘍]", []string{"Ä", "腫瘍"}},
	} {
		if got, err := parseClassNames([]byte(c.yaml)); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	for name, bad := range map[string]string{
		"malformed": "names: [a", "another type": "names: 7", "a nested list": "names: [[a]]", "a mapping of words": "names: {a: b}", "a number twice": "names: {0: a, '00': b}",
		"no names": "train: x", "a list at the top": "- a", "empty": "", "aliases that grow": "a: &a [x,x]\nnames: [*a, *a]",
		"too long": "names: [" + strings.Repeat("x", 2000) + "]",
	} {
		if got, err := parseClassNames([]byte(bad)); err == nil {
			t.Errorf("%s: parsed as %q", name, got)
		}
	}
}

func TestLoad_WarnsOfMalformedYAMLAndPrefersDataYAML(t *testing.T) {
	p := dot(t, color.Black)
	for _, c := range []struct {
		name     string
		files    map[string][]byte
		want     []string
		warnings int
	}{
		{"none", nil, nil, 0},
		{"malformed", map[string][]byte{"data.yaml": []byte("names: [a")}, nil, 1},
		{"malformed, then another", map[string][]byte{"data.yaml": []byte("names: ["), "z.yml": []byte("names: [b]")}, []string{"b"}, 1},
		{"data.yaml before others", map[string][]byte{"a.yaml": []byte("names: [x]"), "sub/DATA.YAML": []byte("names: [y]")}, []string{"y"}, 0},
		{"classes.yaml before others", map[string][]byte{"a.yaml": []byte("names: [x]"), "classes.yml": []byte("classes: [y]")}, []string{"y"}, 0},
		{"another file without names", map[string][]byte{"compose.yaml": []byte("services: {}")}, nil, 0},
	} {
		files := map[string][]byte{"a.png": p}
		for n, d := range c.files {
			files[n] = d
		}
		d, err := Load(t.Context(), zipSource(t, files), at16)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(d.ClassNames, c.want) || len(d.Warnings) != c.warnings {
			t.Errorf("%s: names %q, warnings %q", c.name, d.ClassNames, d.Warnings)
		}
	}
}

func TestLoad_RejectsDataSetsBeyondTheLimits(t *testing.T) {
	p := dot(t, color.Black)
	files := map[string][]byte{"a.png": p, "b.png": p}
	lim := DefaultLimits()
	lim.Entries = 1
	if _, err := openZipOf(t, files, lim); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many files: %v", err)
	}
	lim = DefaultLimits()
	lim.UnpackedBytes = 10
	if _, err := openZipOf(t, files, lim); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many bytes: %v", err)
	}
	lim = DefaultLimits()
	lim.PreparedBytes = 16*16*3*2 - 1
	if _, err := Load(t.Context(), zipSource(t, files), Options{Size: models.Square(16), Limits: lim, Images: imageLimits}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too much memory: %v", err)
	}
	// 288 MiB of zeros compress to a few hundred kilobytes.
	bomb := hostile.Bomb(9)
	if _, err := OpenZip(bytes.NewReader(bomb), int64(len(bomb)), DefaultLimits()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a zip of %d bytes that unpacks to 288 MiB: %v", len(bomb), err)
	}
}

// A zip may consist of its directory only, which takes several times its size in memory
// when it is listed.
func TestOpenZip_DoesNotListHugeDirectories(t *testing.T) {
	for name, nameBytes := range map[string]int{"many files": 0, "long names": 1<<16 - 1} {
		data, records := hostile.Directory(16<<20, nameBytes)
		if z, err := zip.NewReader(bytes.NewReader(data), int64(len(data))); err != nil || len(z.File) != records {
			t.Fatalf("%s: the test file is not a zip: %v", name, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		lim := DefaultLimits()
		lim.Entries = 100
		_, err := OpenZip(bytes.NewReader(data), int64(len(data)), lim)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > uint64(len(data)) {
			t.Errorf("%s: %d bytes were allocated for a zip of %d", name, n, len(data))
		}
	}
}

func TestLoad_LimitsTheYAMLFilesRead(t *testing.T) {
	files := map[string][]byte{"a.png": dot(t, color.Black), strings.Repeat("n", 1000) + ".png": []byte("prose")}
	for i := range 10 * maxYAMLFiles {
		files[fmt.Sprintf("%s%04d/data.yaml", strings.Repeat("long/", 100), i)] = []byte("other: 1")
	}
	d, err := Load(t.Context(), zipSource(t, files), at16)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n := len(d.Warnings); n != maxYAMLFiles+1 {
		t.Errorf("%d warnings of %d files", n, maxYAMLFiles)
	}
	texts := []string{d.Skipped[0].Name}
	for _, w := range append(texts, d.Warnings...) {
		if len(w) > 300 {
			t.Errorf("%d bytes: %.80s", len(w), w)
		}
	}
}

func TestLoad_StopsWithItsContext(t *testing.T) {
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err := Load(ctx, zipSource(t, map[string][]byte{"a.png": dot(t, color.Black)}), at16)
	if !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
}

func FuzzOpenZip(f *testing.F) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, _ := z.Create("a.png")
	_, _ = w.Write(dot(f, color.White))
	_ = z.Close()
	f.Add(b.Bytes())
	f.Add([]byte("PK\x05\x06"))
	f.Add(hostile.Pack(hostile.Entry{Name: "a", Data: readTestdata(f, "far.deflate64"), Method: deflate64}, hostile.Entry{Name: "train/ok/b", Data: dot(f, color.White)},
		hostile.Entry{Name: "test/c.jfif", Data: dot(f, color.White)}, hostile.Entry{Name: "d.heic", Data: []byte("\x00\x00\x00\x18ftypheic")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		lim := Limits{Entries: 100, UnpackedBytes: 1 << 24, Ratio: 200, PreparedBytes: 1 << 20, MemoryBytes: 1 << 20}
		src, err := OpenZip(bytes.NewReader(data), int64(len(data)), lim)
		if err != nil {
			return
		}
		_, _ = Load(t.Context(), src, Options{Size: models.Square(16), Limits: lim, Images: imagefile.Options{Limits: imagefile.Limits{MaxBytes: 1 << 20, MaxPixels: 1 << 20}}})
	})
}

func FuzzClassNames(f *testing.F) {
	f.Add([]byte("names: [a, b]"))
	f.Add([]byte("classes: {0: a}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if names, err := parseClassNames(data); err == nil && len(names) == 0 {
			t.Error("no names and no error")
		}
	})
}
