//go:build browser

package browsertest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/testkit"
)

// mixed writes one file of each kind that people have between their images, and some
// images, into a folder, and returns it.
func mixed(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte("text"))
	_ = z.Close()
	box := func(brand string) string { return "\x00\x00\x00\x18ftyp" + brand + "\x00\x00\x00\x00" + brand + "mif1" }
	contents := map[string]string{
		"notes.txt":    "a text",
		"list.csv":     "a,b\n1,2\n",
		"page.html":    "<html></html>",
		"script":       "#!/bin/sh\nexit 0\n",
		"doc.pdf":      "%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
		"photo.heic":   box("heic"),
		"photo.avif":   box("avif"),
		"renamed.jpg":  box("heic"),
		"movie.mp4":    "\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2",
		"movie.mkv":    "\x1a\x45\xdf\xa3\x01\x00\x00\x00",
		"scan.dcm":     strings.Repeat("\x00", 128) + "DICM\x02\x00\x00\x00UL\x04\x00",
		"bare.dcm":     "\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00",
		"group8":       "\x08\x00\x05\x00CS\x02\x00AB\x08\x00\x08\x00CS\x02\x00AB\x08\x00\x16\x00UI\x02\x001\x00\x08\x00\x60\x00CS\x02\x00CT",
		"raw.nef":      "MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00",
		"photo.jxl":    "\xff\x0a\xfa\x1f",
		"photo.jp2":    "\x00\x00\x00\x0cjP  \r\n\x87\n",
		"drawing.psd":  "8BPS\x00\x01\x00\x00",
		"grey.pgm":     "P5\n2 2\n255\n\x00\x01\x02\x03",
		"values.npy":   "\x93NUMPY\x01\x00v\x00",
		"brain.nii.gz": packed.String(),
		"more.tar.gz":  packed.String(),
		"more.7z":      "7z\xbc\xaf\x27\x1c\x00\x04",
		"empty.png":    "",
		"damaged.png":  "not a picture",
		"unknown.bin":  "\x00\x01\x02\x03\x04\x05\x06\x07",
		"model.pt":     "PK\x03\x04\x00\x00\x00\x00",
		"vector.svg":   "<svg xmlns=\"x\"></svg>",
		"classes.yaml": "names: [a, b]\n",
		".hidden.jpg":  "\xff\xd8\xff\xe0",
		"Thumbs.db":    "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
	}
	for i, tile := range files(t, "train/good", 3) {
		content, err := os.ReadFile(tile)
		if err != nil {
			t.Fatal(err)
		}
		contents[[]string{"no-ending-image", "tile.jpg", "tile.tmp"}[i]] = string(content)
	}
	for name, content := range contents {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPreview_SkipsWhatTheServiceSkips(t *testing.T) {
	dir := mixed(t)
	contents := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		paths = append(paths, path)
		if contents[e.Name()], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(t.TempDir(), "mixed.zip")
	if err := os.WriteFile(archive, testkit.Zip(t, contents), 0o644); err != nil {
		t.Fatal(err)
	}
	// What the service does: the images that it reads, and the files that it names. A file
	// with the ending of an image is opened, and named if its content is none.
	list, err := dataset.Images(dir)
	if err != nil {
		t.Fatal(err)
	}
	var used, named []string
	for _, f := range list {
		name := filepath.Base(f.Path)
		if _, readable := imagefile.Sniff(contents[name][:min(len(contents[name]), imagefile.SniffBytes)]); readable && f.Reason == "" {
			used = append(used, name)
		} else {
			named = append(named, name)
		}
	}
	if len(used) != 6 || len(named) < 15 {
		t.Fatalf("the service uses %q and names %q", used, named)
	}
	slices.Sort(used)
	slices.Sort(named)
	s := serve(t)
	b := openTab(t)
	for kind, chosen := range map[string][]string{"files": paths, "a zip": {archive}} {
		b.open(s.url, "#/train")
		b.choose("input[data-files]", chosen...)
		b.shows("will be skipped", 20*time.Second)
		shown := func(selector string) []string {
			names := []string{}
			text := value[string](b, "JSON.stringify([...document.querySelectorAll("+selector+")].map(e => (e.title || e.textContent).split('/').pop()))")
			if err := json.Unmarshal([]byte(text), &names); err != nil {
				t.Fatal(err)
			}
			slices.Sort(names)
			return names
		}
		if got := shown("'.thumbnails li:not(.more)'"); !slices.Equal(got, used) {
			t.Errorf("%s: the page uses %q, the service %q", kind, got, used)
		}
		if got := shown("'.skipped .path'"); !slices.Equal(got, named) {
			t.Errorf("%s: the page skips %q, the service %q", kind, got, named)
		}
		b.click("Choose others")
	}

	// A folder that is dropped, with the images in it.
	b.shows("Drop images of normal parts here", 10*time.Second)
	at := value[[]float64](b, "(() => { const r = document.querySelector('.dropzone').getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()")
	drag := &input.DragData{Items: []*input.DragDataItem{}, Files: []string{filepath.Dir(files(t, "train/good", 1)[0])}, DragOperationsMask: 1}
	for _, kind := range []input.DispatchDragEventType{input.DragEnter, input.DragOver, input.Drop} {
		b.run(input.DispatchDragEvent(kind, at[0], at[1], drag))
	}
	b.shows("60 images", 20*time.Second)
	if title := value[string](b, "document.querySelector('.thumbnails li').title"); !strings.HasPrefix(title, "good/") {
		t.Errorf("the first image is %q, want its path in the folder", title)
	}
	b.forgive("404")
}
