package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// mixedFolder returns a folder with two tiles and files of all kinds that are passed
// over, and its images that cannot be judged.
func mixedFolder(t *testing.T) (dir string, unread []string) {
	t.Helper()
	dir = t.TempDir()
	tile := read(t, tileFiles(t, "test/good", 1)[0])
	heic := read(t, "../../internal/dataset/testdata/photo.heic")
	for name, data := range map[string][]byte{
		"a.jfif": tile, "b\n\x1b[2J.jpg": tile, "._a.jpg": []byte("\x00\x05\x16\x07"), "Thumbs.db": {0xd0}, "notes.txt": nil, "metadata.json": []byte("{}"),
		"IMG_1.HEIC": heic, "IMG_2.HEIC": heic, "z.zip": []byte("PK\x03\x04"),
	} {
		write(t, dir, name, data)
	}
	for _, name := range []string{"pipe", "camera.png"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir, []string{"IMG_1.HEIC", "IMG_2.HEIC", "camera.png"}
}

func TestDetect_CountsAndNamesImagesThatAreNotRead(t *testing.T) {
	dir, unread := mixedFolder(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	r := run(t, "detect", "--model", smallModel(t), link)
	if r.status != exitError || !strings.Contains(r.stdout, "5 images: ") || !strings.Contains(r.stdout, "3 not judged") ||
		!strings.Contains(r.stdout, "z.zip: it is an archive") || !strings.Contains(r.stdout, "pipe: it is a named pipe") || strings.Contains(r.stdout, "\x1b") {
		t.Errorf("exit %d: %s", r.status, r.stdout)
	}
	r = run(t, "detect", "--model", smallModel(t), "--json", link)
	var failed []string
	list := entries(t, r)
	for _, e := range list {
		if e.Error != nil {
			failed = append(failed, filepath.Base(e.File))
		}
	}
	slices.Sort(failed)
	if r.status != exitError || len(list) != 5 || !slices.Equal(failed, unread) || !strings.Contains(r.stderr, "z.zip: it is an archive") {
		t.Errorf("exit %d, %q failed, stderr %q", r.status, failed, r.stderr)
	}
}

func TestTrain_NamesWhatItPassesOver(t *testing.T) {
	dir, unread := mixedFolder(t)
	out := filepath.Join(t.TempDir(), "model.zip")
	r := run(t, "train", dir, "--level", "1", "--image-size", "16", "--quiet", "--out", out)
	if r.status != exitNormal || !strings.Contains(r.stderr, "trained on 2 images") || !strings.Contains(r.stderr, "IMG_1.HEIC and 1 more: HEIC images are not read") {
		t.Errorf("exit %d: %s", r.status, r.stderr)
	}
	for _, name := range unread {
		if !strings.Contains(r.stderr, "skipped "+name) {
			t.Errorf("%s is not named: %s", name, r.stderr)
		}
	}
}

func TestEvaluate_ChecksBeforeTheTraining(t *testing.T) {
	dir := t.TempDir()
	prose := write(t, dir, "prose", nil)
	for _, c := range []struct{ name, dataset, report, want string }{
		{"a report in a file", tiles, filepath.Join(prose, "r.html"), "is not a folder"},
		{"no test images", dir, filepath.Join(dir, "r.html"), "not a data set to evaluate on"},
	} {
		r := run(t, "evaluate", c.dataset, "--level", "5", "--image-size", "512", "--report", c.report)
		if r.status != exitError || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: exit %d: %s", c.name, r.status, r.stderr)
		}
	}
	if n := len(names(t, dir)); n != 1 {
		t.Errorf("%d files are left", n)
	}
}

func TestCalibrate_RefusesTheTrainingImagesOfAnEvaluation(t *testing.T) {
	run(t, "calibrate", smallModel(t), tiles).refused(t, "more than normal images", "test/good")
	run(t, "train", filepath.Join(tiles, "test"), "--out", filepath.Join(t.TempDir(), "m.zip")).refused(t, "more than normal images", "good")
}
