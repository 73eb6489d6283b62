package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The files have 3 GB and take no room on the disk.
func TestCommands_DoNotReadHugeFilesWhole(t *testing.T) {
	const most = 600 << 20 // bytes of the whole process, ONNX Runtime included
	model, dir := smallModel(t), t.TempDir()
	grow := func(path string) string {
		if err := os.Truncate(path, 3<<30); err != nil {
			t.Skip(err)
		}
		return path
	}
	tiff := []byte("II*\x00\x08\x00\x00\x00")
	huge := grow(write(t, dir, "huge.tif", tiff))
	hugeModel := grow(write(t, dir, "huge.onnx", []byte("\x08\x07")))
	hugeMetadata := grow(write(t, dir, "metadata.json", []byte("{")))
	set := filepath.Join(dir, "set")
	for _, folder := range []string{"train/good", "test/good", "test/crack"} {
		for i, f := range tileFiles(t, folder, 8) {
			writeInto(t, set, folder, i, read(t, f))
		}
		if err := os.Link(huge, filepath.Join(set, folder, "huge.tif")); err != nil {
			t.Skip(err)
		}
	}
	normal := filepath.Join(set, "train", "good")
	for _, test := range []struct {
		name string
		args []string
		exit int
		want string
	}{
		{"detect", []string{"detect", "--model", model, "--json", huge}, exitError, "too large"},
		{"detect, model", []string{"detect", "--model", hugeModel, huge}, exitError, "too large"},
		{"detect, metadata", []string{"detect", "--model", model, "--metadata", hugeMetadata, huge}, exitError, "at most 8388608 are read"},
		{"verify", []string{"verify", model, "--json", huge}, exitError, "too large"},
		{"train", []string{"train", normal, "--level", "1", "--image-size", "32", "--out", filepath.Join(dir, "out.zip")}, exitNormal, "it is larger than"},
		{"calibrate", []string{"calibrate", model, normal, "--check"}, exitNormal, "it is larger than"},
		{"evaluate", []string{"evaluate", set, "--model", model}, exitNormal, "too large"},
		{"inspect", []string{"inspect", hugeModel}, exitError, "too large"},
		{"convert", []string{"convert", hugeModel, "--to", filepath.Join(dir, "out.pt")}, exitError, "too large"},
		{"export", []string{"export", hugeModel, "--triton", filepath.Join(dir, "triton")}, exitError, "too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := command(t, test.args...)
			var out bytes.Buffer
			c.Stdout, c.Stderr = &out, &out
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			peak := peakMemory(c.Process.Pid)
			var exit *exec.ExitError
			if err := c.Wait(); err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if c.ProcessState.ExitCode() != test.exit || !strings.Contains(out.String(), test.want) {
				t.Errorf("exit %d, expected %d and %q: %s", c.ProcessState.ExitCode(), test.exit, test.want, out.String())
			}
			switch took := <-peak; {
			case took == 0:
				t.Log("the memory is not known here")
			case took > most:
				t.Errorf("took %d MiB, expected at most %d", took>>20, most>>20)
			default:
				t.Logf("took %d MiB", took>>20)
			}
		})
	}
}

// peakMemory sends the largest resident memory of a process in bytes once the process has
// ended, 0 where /proc does not have it. Rusage.Maxrss is not used: it is at least the
// memory of the process that started this one.
func peakMemory(pid int) <-chan int64 {
	done := make(chan int64, 1)
	go func() {
		var peak int64
		for {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			_, rest, found := strings.Cut(string(data), "VmHWM:")
			if err != nil || !found { // it ended
				done <- peak
				return
			}
			var kib int64
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				peak = max(peak, kib<<10)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	return done
}

// A training on images of 12 bits that are reduced to 8 records their scale, and what follows
// uses it.
func TestTrain_RecordsOrientationAndScale(t *testing.T) {
	cases := "../../internal/imagefile/testdata/cases/"
	dir := t.TempDir()
	set := dir + "/set"
	if err := os.Mkdir(set, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(cases + "mono12.png")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a.png", "b.png", "c.png", "d.png", "e.png", "f.png"} {
		write(t, set, n, data)
	}
	out := dir + "/model.zip"
	if r := run(t, "train", set, "--level", "1", "--image-size", "32", "--window", "off", "--out", out); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	folder := unpacked(t, out)
	text, err := os.ReadFile(folder + "/metadata.json")
	if err != nil {
		t.Fatal(err)
	}
	var md struct {
		Preprocessing struct {
			Orientation string `json:"orientation"`
			MaxValue    int    `json:"max_value"`
		} `json:"preprocessing"`
	}
	if err := json.Unmarshal(text, &md); err != nil || md.Preprocessing.Orientation != "exif" || md.Preprocessing.MaxValue != 4095 {
		t.Errorf("%+v, %v", md, err)
	}
	score := func(args ...string) float64 {
		r := run(t, append([]string{"detect", "--json"}, args...)...)
		var v []struct {
			Score float64 `json:"reconstruction_error"`
			Error string  `json:"error"`
		}
		if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || len(v) != 1 || v[0].Error != "" {
			t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
		}
		return v[0].Score
	}
	// The same pixels in 8 bits have the same score.
	want := score("--model", out, write(t, dir, "eight.png", eightBits(t, data)))
	for _, model := range []string{out, folder + "/autoencoder.pt", folder + "/autoencoder.onnx"} {
		if got := score("--model", model, cases+"mono12.png"); got != want {
			t.Errorf("%s: %v, expected %v", model, got, want)
		}
	}
}

// eightBits returns a PNG of 12 bits in 16 as one of 8 bits.
func eightBits(t *testing.T, data []byte) []byte {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	deep := img.(*image.Gray16)
	grey := image.NewGray(deep.Rect)
	for y := range deep.Rect.Dy() {
		for x := range deep.Rect.Dx() {
			grey.SetGray(x, y, color.Gray{Y: uint8(min(deep.Gray16At(x, y).Y>>4, 255))})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, grey); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
