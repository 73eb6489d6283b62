package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// script is the predict.py of an unpacked model.
type script struct {
	interpreter, dir string
	env              []string
}

func newScript(t testing.TB) script {
	t.Helper()
	return script{interpreter: python(t), dir: unpacked(t, smallModel(t))}
}

func (s script) run(t testing.TB, args ...string) ran {
	t.Helper()
	c := exec.Command(s.interpreter, append([]string{filepath.Join(s.dir, "predict.py")}, args...)...)
	c.Env = append(os.Environ(), s.env...)
	return finish(t, c)
}

// python returns a command that runs a Python text.
func (s script) python(t testing.TB, text string) *exec.Cmd {
	t.Helper()
	return exec.Command(s.interpreter, "-c", text)
}

// refused checks that predict.py exited with status 2, and printed nothing on standard
// output and the words without a stack trace on standard error.
func (s script) refused(t testing.TB, words string, args ...string) {
	t.Helper()
	r := s.run(t, args...)
	if r.status != exitError || r.stdout != "" || !strings.Contains(r.stderr, words) || strings.Contains(r.stderr, "Traceback") {
		t.Errorf("%v: exit %d, stdout %q, stderr %q; expected 2 and %q", args, r.status, r.stdout, r.stderr, words)
	}
}

// mixedTiles returns twelve tiles, four of each kind.
func mixedTiles(t testing.TB) []string {
	t.Helper()
	var list []string
	for _, folder := range []string{"test/good", "test/blowhole", "test/crack"} {
		for _, f := range tileFiles(t, folder, 4) {
			abs, err := filepath.Abs(f)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, abs)
		}
	}
	return list
}

// agree compares the verdicts of another program with those of detect: the same files
// in the same order, scores within a relative tolerance, and the same decision unless
// the score is within the tolerance of the threshold.
func agree(t testing.TB, ours, theirs []entry, tolerance float64) {
	t.Helper()
	if len(ours) == 0 || len(ours) != len(theirs) {
		t.Fatalf("detect has %d entries, the other %d", len(ours), len(theirs))
	}
	near := func(a, b float64) bool { return math.Abs(a-b) <= tolerance*max(a, b) }
	for i, x := range ours {
		y := theirs[i]
		if (x.Error == nil) != (y.Error == nil) || x.File != y.File {
			t.Errorf("detect has %+v, the other %+v", x, y)
			continue
		}
		if x.Error != nil {
			if y.Value != nil || y.IsAnomaly != nil || *y.Error == "" {
				t.Errorf("%s: an error and a verdict: %+v", y.File, y)
			}
			continue
		}
		if *x.Threshold != *y.Threshold || !slices.Equal(x.ClassNames, y.ClassNames) || !near(*x.Value, *y.Value) || math.Abs(*x.MSE-*y.MSE) > min(tolerance, jpegToleranceMSE)**x.MSE {
			t.Errorf("detect has %+v with score %v, the other %+v with score %v", x, *x.Value, y, *y.Value)
		}
		if *y.IsAnomaly != (*y.Value > *y.Threshold) || *x.IsAnomaly != *y.IsAnomaly && !near(*x.Value, *x.Threshold) {
			t.Errorf("%s: detect has %t, the other %t", x.File, *x.IsAnomaly, *y.IsAnomaly)
		}
	}
}

// samePredictions compares the results of predict.py with the results of detect, and returns the
// latter. The images are lossless, so that mean squared errors differ by rounding only. Scores
// may differ by a relative tolerance.
func samePredictions(t *testing.T, model string, images []string, tolerance float64) []entry {
	t.Helper()
	s := script{interpreter: python(t), dir: unpacked(t, model)}
	theirs := entries(t, s.run(t, append([]string{"--json"}, images...)...))
	ours := entries(t, run(t, append([]string{"detect", "--json", "--model", model}, images...)...))
	if len(ours) != len(images) || len(theirs) != len(images) {
		t.Fatalf("%d images, %d results of detect, %d of predict.py", len(images), len(ours), len(theirs))
	}
	for i := range images {
		a, b := ours[i], theirs[i]
		if a.Error != nil || b.Error != nil {
			t.Fatalf("%v, %v", a.Error, b.Error)
		}
		if math.Abs(*a.MSE-*b.MSE) > samePixels*10**a.MSE || math.Abs(*a.Value-*b.Value) > tolerance**a.Value {
			t.Errorf("image %d: detect has %v and %v, predict.py %v and %v", i, *a.Value, *a.MSE, *b.Value, *b.MSE)
		}
	}
	return ours
}

// expected returns the exit status for verdicts.
func expected(list []entry) int {
	status := exitNormal
	for _, e := range list {
		if e.Error != nil {
			return exitError
		}
		if *e.IsAnomaly {
			status = exitAnomaly
		}
	}
	return status
}

func TestPredict_JudgesAsDetect(t *testing.T) {
	s := newScript(t)
	images := mixedTiles(t)
	middle := write(t, t.TempDir(), "prose.png", []byte("not an image"))
	metadata := func(name, text string) string { return write(t, s.dir, name, []byte(text)) }
	for _, c := range []struct {
		name string
		args []string
	}{
		{"the model's own decision", images},
		{"one image", images[:1]},
		{"more than a batch, one of them unreadable", append(append(slices.Clone(images[:3]), middle, "nowhere.png"), images[3:]...)},
		{"another threshold, without class names", append([]string{"--metadata", metadata("strict.json", `{"threshold": 1e-9}`)}, images...)},
		{"another decision, with class names", append([]string{"--metadata",
			metadata("lax.json", `{"threshold": 1e-9, "class_names": ["a", "b"], "decision": {"measure": "mse", "threshold": 9}}`)}, images...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			theirs := s.run(t, append([]string{"--json"}, c.args...)...)
			list := entries(t, theirs)
			agree(t, entries(t, run(t, append([]string{"detect", "--json", "--model", filepath.Join(s.dir, "autoencoder.onnx")}, c.args...)...)), list, jpegTolerance)
			if theirs.stderr != "" || theirs.status != expected(list) {
				t.Errorf("exit %d, expected %d: %s", theirs.status, expected(list), theirs.stderr)
			}
		})
	}
	// As a table.
	if r := s.run(t, images[0], middle); r.status != exitError || strings.Count(r.stdout, "\n") != 2 || !strings.Contains(r.stdout, "prose.png: cannot be judged") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestPredict_PrintsTheKeysOfDetect(t *testing.T) {
	s, images := newScript(t), []string{mixedTiles(t)[0], "nowhere.png"}
	var keys [2][]map[string]any
	for i, r := range []ran{run(t, append([]string{"detect", "--json", "--model", smallModel(t)}, images...)...), s.run(t, append([]string{"--json"}, images...)...)} {
		if err := json.Unmarshal([]byte(r.stdout), &keys[i]); err != nil || len(keys[i]) != 2 {
			t.Fatalf("%v: %s", err, r.stdout)
		}
	}
	delete(keys[0][0], "model_sha256") // predict.py does not read the zip
	for i := range images {
		for key := range keys[0][i] {
			if _, ok := keys[1][i][key]; !ok {
				t.Errorf("%s: no %q", images[i], key)
			}
		}
		if len(keys[0][i]) != len(keys[1][i]) {
			t.Errorf("%s: detect prints %v, predict.py %v", images[i], keys[0][i], keys[1][i])
		}
	}
}

func TestPredict_JudgesEqualAloneAndInABatch(t *testing.T) {
	s := newScript(t)
	images := mixedTiles(t)
	all := entries(t, s.run(t, append([]string{"--json"}, images...)...))
	var together, alone []entry
	for _, i := range []int{0, 7, 11} { // the first, the last of a full batch, the last of a partial batch
		together = append(together, all[i])
		alone = append(alone, entries(t, s.run(t, "--json", images[i]))...)
	}
	const rounding = 1e-6 // float32 sums of a batch are in another order
	agree(t, together, alone, rounding)
}

func TestPredict_TakesFoldersAndPatterns(t *testing.T) {
	s := newScript(t)
	root := t.TempDir()
	tile := read(t, tileFiles(t, "test/good", 1)[0])
	for _, name := range []string{"b.jpg", "a/one.JPG", "a/deep/two.jpg", "a/three[1].jpg", "a/notes.txt"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, root, name, tile)
	}
	for _, c := range []struct {
		argument string
		want     []string
	}{
		{"", []string{"a/deep/two.jpg", "a/one.JPG", "a/three[1].jpg", "b.jpg"}},
		{"**", []string{"a/deep/two.jpg", "a/one.JPG", "a/three[1].jpg", "b.jpg"}},
		{"**/*.jpg", []string{"a/deep/two.jpg", "a/three[1].jpg", "b.jpg"}},
		{"*", []string{"a/deep/two.jpg", "a/one.JPG", "a/three[1].jpg", "b.jpg"}},
		{"*/*.???", []string{"a/one.JPG", "a/three[1].jpg"}},
		{"a/[a-o]*", []string{"a/deep/two.jpg", "a/one.JPG"}},
		{"a/three[1].jpg", []string{"a/three[1].jpg"}},
		{"*.png", []string{"*.png"}},
	} {
		t.Run(c.argument, func(t *testing.T) {
			r := s.run(t, "--json", filepath.Join(root, c.argument))
			var got []string
			for _, e := range entries(t, r) {
				name, err := filepath.Rel(root, e.File)
				if err != nil || (e.Error != nil) != (c.argument == "*.png") {
					t.Errorf("%+v, %v", e, err)
				}
				got = append(got, filepath.ToSlash(name))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("it judges %q, expected %q", got, c.want)
			}
		})
	}
	// The order within a folder is that of detect.
	agree(t, entries(t, run(t, "detect", "--json", "--model", smallModel(t), root)), entries(t, s.run(t, "--json", root)), jpegTolerance)
	if r := s.run(t, "--json", t.TempDir()); r.status != exitError || strings.TrimSpace(r.stdout) != "[]" || !strings.Contains(r.stderr, "no images") {
		t.Errorf("an empty folder: exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestPredict_RejectsInOneSentence(t *testing.T) {
	s, image := newScript(t), mixedTiles(t)[0]
	metadata := func(text string) string { return write(t, t.TempDir(), "metadata.json", []byte(text)) }
	for words, args := range map[string][]string{
		"does not give":            {"--metadata", metadata(`{"threshold": 1, "decision": {"measure": "ssim", "threshold": 1}}`)},
		"the threshold is None":    {"--metadata", metadata(`{"decision": {"measure": "mse", "threshold": 1}}`)},
		"the threshold is -1":      {"--metadata", metadata(`{"threshold": -1}`)},
		"the threshold is inf":     {"--metadata", metadata(`{"threshold": Infinity}`)},
		"metadata of a classifier": {"--metadata", metadata(`{"threshold": 1, "model_type": "classifier"}`)},
		"not a metadata.json":      {"--metadata", metadata(`[1]`)},
		"metadata.json: Expecting": {"--metadata", metadata(`prose`)},
		"nowhere.onnx":             {"--model", "nowhere.onnx"},
		"README.md: ":              {"--model", filepath.Join(s.dir, "README.md")},
		"use that file":            {"--model", filepath.Join(s.dir, "autoencoder_image.onnx")},
	} {
		s.refused(t, words, append(args, "--json", image)...)
		if args[0] == "--metadata" { // detect must reject it too
			if r := run(t, append([]string{"detect", "--model", smallModel(t), image}, args...)...); r.status != exitError {
				t.Errorf("detect takes %v", args)
			}
		}
	}
}

func TestPredict_NamesThePackageWithoutPyTorch(t *testing.T) {
	s := newScript(t)
	// A torch module that cannot be imported hides an installed one.
	hidden := t.TempDir()
	write(t, hidden, "torch.py", []byte("raise ImportError"))
	s.env = []string{"PYTHONPATH=" + hidden}
	image := mixedTiles(t)[0]
	s.refused(t, "autoencoder.pt: PyTorch is not installed: pip install torch", "--model", filepath.Join(s.dir, "autoencoder.pt"), image)
	if r := s.run(t, image); r.status == exitError {
		t.Errorf("autoencoder.onnx needs PyTorch too: %s", r.stderr)
	}
}

func TestPredict_JudgesAsDetectWithPyTorch(t *testing.T) {
	s := newScript(t)
	if err := exec.Command(s.interpreter, "-c", "import torch").Run(); err != nil {
		t.Skip("this Python has no PyTorch")
	}
	images := mixedTiles(t)
	r := s.run(t, append([]string{"--json", "--model", pythonCheckpoint}, images...)...)
	agree(t, entries(t, run(t, append([]string{"detect", "--json", "--model", pythonCheckpoint}, images...)...)), entries(t, r), jpegToleranceMSE)
	// A checkpoint does not hold the whole decision of a training, in any version.
	for measure, model := range map[string]string{
		models.MeasurePatchMahalanobis: filepath.Join(s.dir, "autoencoder.pt"),
		models.MeasureBandMahalanobis:  "../../models/testdata/earlier/markers.pt",
	} {
		s.refused(t, "decides by "+measure+", which this file does not give; use the autoencoder.onnx of the same training", "--model", model, images[0])
	}
	prose := write(t, s.dir, "prose.pt", []byte("not a checkpoint"))
	s.refused(t, fmt.Sprint(prose, ": it is not the autoencoder.pt of a training"), "--model", prose, images[0])
}
