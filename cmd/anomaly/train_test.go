package main

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/models"
)

func TestTrain_WritesTheSameModelFromAFolderAndItsZip(t *testing.T) {
	dir := t.TempDir()
	zipped := write(t, dir, "normal.zip", normals(t, 6))
	folder := filepath.Join(dir, "images")
	if err := os.MkdirAll(filepath.Join(folder, "normal"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range tileFiles(t, "train/good", 6) {
		write(t, filepath.Join(folder, "normal"), filepath.Base(f), read(t, f))
	}
	var made [][]byte
	for i, source := range []string{zipped, folder} {
		out := filepath.Join(dir, fmt.Sprint("new/", i, ".zip"))
		r := run(t, "train", source, "--level", "1", "--image-size", "32", "--seed", "7", "--out", out)
		if r.status != exitNormal || r.stdout != "" {
			t.Fatalf("exit %d, stdout %q, stderr %q; expected 0 and nothing on standard output", r.status, r.stdout, r.stderr)
		}
		for _, words := range []string{"level 1: 5 epochs, batch 16", "reading images\n", "training the autoencoder\n", "calibrating\n", "epoch 1/5 loss 0.", "epoch 5/5 loss 0.", "trained on 6 images"} {
			if !strings.Contains(r.stderr, words) {
				t.Errorf("standard error does not contain %q: %s", words, r.stderr)
			}
		}
		made = append(made, read(t, out))
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("the zip and the folder make different models")
	}
	if left := names(t, filepath.Join(dir, "new")); len(left) != 2 {
		t.Errorf("the folder holds %v", left)
	}
}

func TestTrain_ContinuesFromAModel(t *testing.T) {
	dir := t.TempDir()
	zipped := write(t, dir, "normal.zip", normals(t, 4))
	first, second := filepath.Join(dir, "first.zip"), filepath.Join(dir, "second.zip")
	if r := run(t, "train", zipped, "--level", "1", "--image-size", "32", "--out", first); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	if r := run(t, "train", zipped, "--level", "1", "--from", first, "--out", second); r.status != exitNormal || !strings.Contains(r.stderr, "32×32") {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	r := run(t, "train", zipped, "--image-size", "64", "--from", first, "--out", filepath.Join(dir, "third.zip"))
	if r.status != exitError || !strings.Contains(r.stderr, "32×32") {
		t.Errorf("another image size: exit %d: %s", r.status, r.stderr)
	}
	if left := names(t, dir); len(left) != 3 {
		t.Errorf("the folder holds %v", left)
	}
}

func TestTrain_ReplacesAFileOnlyWithForce(t *testing.T) {
	dir := t.TempDir()
	out := write(t, dir, "model.zip", []byte("mine"))
	args := []string{"train", filepath.Join(tiles, "test/good"), "--level", "1", "--image-size", "16", "--out", out}
	run(t, args...).refused(t, out+" exists", "--force")
	if got := read(t, out); string(got) != "mine" {
		t.Errorf("the file was changed to %.20q", got)
	}
	if r := run(t, append(args, "--force", "--quiet")...); r.status != exitNormal {
		t.Fatalf("with --force: exit %d: %s", r.status, r.stderr)
	} else if strings.Contains(r.stderr, "epoch") || strings.Contains(r.stderr, "reading") {
		t.Errorf("--quiet prints progress: %s", r.stderr)
	}
	if got := read(t, out); !bytes.HasPrefix(got, []byte("PK")) {
		t.Errorf("with --force the file is %.20q", got)
	}
	if left := names(t, dir); !slices.Equal(left, []string{"model.zip"}) {
		t.Errorf("the folder holds %v", left)
	}
}

func TestTrain_RejectsBeforeAnythingIsWritten(t *testing.T) {
	good := filepath.Join(tiles, "train/good")
	prose := write(t, t.TempDir(), "prose.zip", []byte("not a zip"))
	empty := t.TempDir()
	for _, c := range []struct {
		name  string
		args  []string
		wants []string
	}{
		{"level 0", []string{good, "--level", "0"}, []string{"Level must be between 1 and 5", "got 0"}},
		{"level 6", []string{good, "--level", "6"}, []string{"Level must be between 1 and 5", "got 6"}},
		{"level abc", []string{good, "--level", "abc"}, []string{"abc", "--level"}},
		{"size 0", []string{good, "--image-size", "0"}, []string{`image size: "0"`, "multiples of 16 from 16 to 1024"}},
		{"size 17", []string{good, "--image-size", "17"}, []string{"image size: 17", "multiple of 16 from 16 to 1024"}},
		{"size abc", []string{good, "--image-size", "abc"}, []string{"abc", "image size"}},
		{"no source", nil, []string{"arg"}},
		{"a source that is not there", []string{"nowhere.zip"}, []string{"nowhere.zip"}},
		{"prose", []string{prose}, []string{"prose.zip", "not a readable ZIP"}},
		{"an unknown flag", []string{good, "--epochs", "9"}, []string{"--epochs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			out := filepath.Join(dir, "folder", "model.zip")
			run(t, append(append([]string{"train"}, c.args...), "--out", out)...).refused(t, c.wants...)
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("the folder holds %v", left)
			}
		})
	}
	for _, name := range []string{"model", "model.tar", "model.pth", "model.zip.bak", ""} {
		t.Run("a file named "+name, func(t *testing.T) {
			run(t, "train", good, "--out", name).refused(t, "--out "+name+": the extension must be .pt, .onnx or .zip")
		})
	}
	t.Run("a folder to write to", func(t *testing.T) {
		folder := filepath.Join(empty, "model.zip")
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(folder)
		run(t, "train", good, "--force", "--out", folder).refused(t, "--out is the folder "+folder)
	})
	t.Run("a folder without images", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "model.zip")
		run(t, "train", empty, "--quiet", "--out", out).refused(t, "No image files found in the uploaded dataset")
	})
}

// trainUntilRunning starts a training into dir whose epochs take seconds each, and
// waits for the first epoch. The statistics that the model decides by are ready then.
func trainUntilRunning(t *testing.T, dir string) (*exec.Cmd, *lockedBuffer) {
	t.Helper()
	c := command(t, "train", filepath.Join(tiles, "train/good"), "--level", "1", "--image-size", "384", "--out", filepath.Join(dir, "model.zip"))
	stderr := &lockedBuffer{}
	c.Stderr = stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the training runs", func() bool { return strings.Contains(stderr.String(), "epoch 1/") })
	return c, stderr
}

func TestTrain_WritesTheModelSoFarWhenInterruptedOnce(t *testing.T) {
	dir := t.TempDir()
	c, stderr := trainUntilRunning(t, dir)
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || !strings.Contains(stderr.String(), "ended early (stopped)") {
		t.Errorf("%v: %s", err, stderr)
	}
	m, _, err := readModel(filepath.Join(dir, "model.zip"), "")
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Metadata.Training; s.Ended != models.EndedByCaller || s.Steps == 0 || s.Steps >= s.PlannedSteps {
		t.Errorf("%+v", s)
	}
}

func TestTrain_WritesNothingWhenInterruptedTwiceOrTerminated(t *testing.T) {
	for name, signals := range map[string][]syscall.Signal{
		"interrupted twice": {syscall.SIGINT, syscall.SIGINT}, "terminated": {syscall.SIGTERM},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c, stderr := trainUntilRunning(t, dir)
			for i, signal := range signals {
				if i > 0 {
					eventually(t, "the first interrupt is handled", func() bool { return strings.Contains(stderr.String(), "interrupt again") })
				}
				if err := c.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
			}
			_ = c.Wait() // its status is checked below
			if got := c.ProcessState.ExitCode(); got != exitError || !strings.HasSuffix(stderr.String(), "anomaly: interrupted; nothing was written\n") {
				t.Errorf("exit %d: %s", got, stderr)
			}
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("the folder holds %v", left)
			}
		})
	}
}

func TestTrain_WritesTheFormatOfTheExtension(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(tiles, "test/good")
	written := map[string][]byte{}
	for _, name := range []string{"m.zip", "m.pt", "m.ONNX"} {
		out := filepath.Join(dir, name)
		if r := run(t, "train", good, "--level", "1", "--image-size", "16", "--out", out); r.status != exitNormal {
			t.Fatalf("%s: exit %d: %s", name, r.status, r.stderr)
		}
		written[name] = read(t, out)
	}
	bundle := unpacked(t, filepath.Join(dir, "m.zip"))
	for name, same := range map[string]string{"m.pt": models.CheckpointFile, "m.ONNX": models.ONNXFile} {
		if !bytes.Equal(written[name], read(t, filepath.Join(bundle, same))) {
			t.Errorf("%s differs from %s in the zip", name, same)
		}
	}
}

func TestTrain_WritesNothingWhenInterruptedBeforeItLearned(t *testing.T) {
	dir, images := t.TempDir(), t.TempDir()
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 7000, 7000))); err != nil { // slow to decode
		t.Fatal(err)
	}
	for i := range 40 {
		write(t, images, fmt.Sprint(i, ".png"), b.Bytes())
	}
	c := command(t, "train", images, "--level", "1", "--image-size", "16", "--out", filepath.Join(dir, "model.zip"))
	stderr := &lockedBuffer{}
	c.Stderr = stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the images are read", func() bool { return strings.Contains(stderr.String(), "reading images") })
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // its status is checked below
	_, last, _ := strings.Cut(stderr.String(), "reading images\n")
	if got := c.ProcessState.ExitCode(); got != exitError || last != "anomaly: interrupted before the training had learned anything; nothing was written\n" {
		t.Errorf("exit %d: %s", got, stderr)
	}
	if left := names(t, dir); len(left) > 0 {
		t.Errorf("the folder holds %v", left)
	}
}
