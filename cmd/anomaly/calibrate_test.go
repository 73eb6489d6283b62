package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "image/jpeg"

	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

// underAnotherLight returns an image as under a lamp with a specular reflection:
// brighter everywhere, and most in one spot.
func underAnotherLight(t testing.TB, data []byte) []byte {
	t.Helper()
	img, _, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	b := img.Bounds()
	out := image.NewGray(b)
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			v := float64(color.GrayModel.Convert(img.At(x, y)).(color.Gray).Y)
			dx, dy := float64(x-b.Min.X)/float64(b.Dx())-0.6, float64(y-b.Min.Y)/float64(b.Dy())-0.4
			v += 20 + 90*math.Exp(-(dx*dx+dy*dy)/0.005)
			out.SetGray(x, y, color.Gray{uint8(math.Min(255, v))})
		}
	}
	var w bytes.Buffer
	if err := png.Encode(&w, out); err != nil {
		t.Fatal(err)
	}
	return w.Bytes()
}

// splitTiles divides the normal tiles into folders of dir: train, and calibration and
// test as they are and under another light. Tiles of one piece have neighbouring
// names, so every third tile goes into the same folder and each folder has all pieces.
func splitTiles(t testing.TB, dir string) {
	t.Helper()
	for i, f := range tileFiles(t, "train/good", 60) {
		data := read(t, f)
		if i%3 == 0 {
			writeInto(t, dir, "train", i, data)
			continue
		}
		name := []string{"", "calibration", "test"}[i%3]
		writeInto(t, dir, name, i, data)
		writeInto(t, dir, "shifted-"+name, i, underAnotherLight(t, data))
	}
}

func writeInto(t testing.TB, dir, folder string, i int, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, folder), fmt.Sprintf("%03d.png", i), data)
}

// alarms returns the share of a folder's images that are judged anomalous, and the
// standard error of the command.
func alarms(t testing.TB, model, folder string) (share float64, said string) {
	t.Helper()
	r := run(t, "detect", "--json", "--model", model, folder)
	n, list := 0, entries(t, r)
	for _, e := range list {
		if e.Error != nil {
			t.Fatal(*e.Error)
		}
		if *e.IsAnomaly {
			n++
		}
	}
	return float64(n) / float64(len(list)), r.stderr
}

func TestCalibrate_RestoresTheFalseAlarmRateUnderAnotherLight(t *testing.T) {
	dir := t.TempDir()
	splitTiles(t, dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	if r := run(t, "train", in("train"), "--level", "1", "--image-size", "64", "--false-alarm-rate", "0.1", "--quiet", "--out", in("model.zip")); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	// The rate also holds on new images of the same kind as the training images.
	if r := run(t, "calibrate", in("model.zip"), in("calibration"), "--out", in("same.zip")); r.status != exitNormal {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	if share, said := alarms(t, in("same.zip"), in("test")); share > 0.25 || said != "" {
		t.Errorf("share of false alarms on images of the same kind: %v; stderr %q", share, said)
	}
	before, said := alarms(t, in("same.zip"), in("shifted-test"))
	if before < 0.5 {
		t.Fatalf("the other light raises the share of false alarms only to %v", before)
	}
	for _, words := range []string{"standard deviations above", "calibrate MODEL"} {
		if !strings.Contains(said, words) || strings.Count(said, "\n") != 1 {
			t.Errorf("the warning is %q", said)
		}
	}
	r := run(t, "detect", "--model", in("same.zip"), in("shifted-test"))
	if !strings.Contains(r.stdout, "20 images: ") || !strings.HasSuffix(r.stdout, said) || r.stderr != "" {
		t.Errorf("stdout %q, stderr %q", r.stdout, r.stderr)
	}
	r = run(t, "calibrate", in("same.zip"), in("shifted-calibration"), "--out", in("calibrated.zip"), "--json")
	if r.status != exitNormal {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	var report trainer.Recalibration
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatal(err)
	}
	if report.Images != 20 || report.FalseAlarmRate != 0.1 || report.After == report.Before || report.AboveBefore.Share < 0.5 ||
		report.Shift == nil || !report.Shift.Significant() || report.Shift.CalibrationImages != 20 {
		t.Errorf("report %+v", report)
	}
	after, said := alarms(t, in("calibrated.zip"), in("shifted-test"))
	if after > 0.25 || said != "" {
		t.Errorf("share of false alarms: %v after the calibration, %v before, expected 0.1; stderr %q", after, before, said)
	}
	// Every file of the zip holds the new threshold.
	m, _, err := readModel(in("calibrated.zip"), "")
	if err != nil {
		t.Fatal(err)
	}
	if on := m.Metadata.Decision.CalibratedOn; on == nil || on.Images != 20 || on.Model != models.Identity(read(t, in("same.zip"))) || m.Metadata.Training == nil || m.Metadata.Training.Images != 20 {
		t.Errorf("%+v", m.Metadata.Decision)
	}
	if r := run(t, "inspect", in("calibrated.zip")); !strings.Contains(r.stdout, "20 other images, 0 skipped") {
		t.Errorf("inspect prints %s", r.stdout)
	}
	forms := unpacked(t, in("calibrated.zip"))
	want := []string{"LICENSE-backbone.txt", "README.md", "autoencoder.onnx", "autoencoder.pt", "autoencoder_image.onnx", "metadata.json", "predict.py", "requirements.txt"}
	if got := names(t, forms); !slices.Equal(got, want) {
		t.Errorf("the zip holds %v", got)
	}
	for _, form := range want[2:5] {
		if again, _, err := readModel(filepath.Join(forms, form), ""); err != nil || again.Metadata.Decision.Threshold != report.After {
			t.Errorf("%s: %v", form, err)
		}
	}
}

func TestCalibrate_OnlyReportsWithoutOut(t *testing.T) {
	dir := t.TempDir()
	images := tileFiles(t, "test/good", 12)
	zipped := write(t, dir, "normal.zip", normals(t, 9))
	prose := write(t, dir, "prose.png", []byte("prose"))
	args := append([]string{"calibrate", smallModel(t), zipped, prose}, images...)
	var said []string
	for _, more := range [][]string{nil, {"--check"}, {"--threads", "1"}} {
		r := run(t, append(slices.Clone(args), more...)...)
		if r.status != exitNormal || !strings.Contains(r.stderr, "skipped "+filepath.ToSlash(prose)) {
			t.Fatalf("exit %d: %s", r.status, r.stderr)
		}
		for _, words := range []string{"21 normal images, 1 skipped", "threshold before: ", "threshold now: ", "nothing was written", "95 % interval"} {
			if !strings.Contains(r.stdout, words) {
				t.Errorf("%q is missing: %s", words, r.stdout)
			}
		}
		said = append(said, r.stdout)
	}
	if said[0] != said[1] || said[0] != said[2] {
		t.Errorf("the reports are %q", said)
	}
	if left := names(t, dir); len(left) != 2 {
		t.Errorf("the folder holds %v", left)
	}
}

func TestCalibrate_TakesEveryFormatOfAModel(t *testing.T) {
	dir, forms := t.TempDir(), unpacked(t, smallModel(t))
	var metadata []models.Metadata
	for i, form := range []string{"autoencoder.pt", "autoencoder.onnx", "autoencoder_image.onnx", "autoencoder.pt"} {
		out := filepath.Join(dir, fmt.Sprint(i, ".zip"))
		if r := run(t, "calibrate", filepath.Join(forms, form), filepath.Join(tiles, "test/good"), "--out", out, "--false-alarm-rate", "0.2"); r.status != exitNormal {
			t.Fatalf("%s: exit %d: %s", form, r.status, r.stderr)
		}
		m, _, err := readModel(out, "")
		if err != nil {
			t.Fatal(err)
		}
		metadata = append(metadata, m.Metadata)
		if d := m.Metadata.Decision; d.Threshold != metadata[0].Decision.Threshold || d.FalseAlarmRate != 0.2 || d.CalibrationImages != 20 {
			t.Errorf("%s: %+v", form, d)
		}
	}
	if !bytes.Equal(read(t, filepath.Join(dir, "0.zip")), read(t, filepath.Join(dir, "3.zip"))) {
		t.Error("the same images make other bytes the second time")
	}
}

func TestCalibrate_RejectsInOneSentenceAndWritesNothing(t *testing.T) {
	model, good := smallModel(t), filepath.Join(tiles, "test/good")
	dir := t.TempDir()
	mine := write(t, dir, "mine.zip", []byte("mine"))
	prose := write(t, dir, "prose.txt", []byte("prose"))
	empty := t.TempDir()
	for _, c := range []struct {
		name  string
		args  []string
		wants []string
	}{
		{"no images", []string{model}, []string{"arg"}},
		{"a model that is not there", []string{"nowhere.zip", good}, []string{"nowhere.zip"}},
		{"prose as model", []string{prose, good}, []string{"not a readable model file"}},
		{"images that are not there", []string{model, "nowhere"}, []string{"nowhere"}},
		{"prose as images", []string{model, prose}, []string{"prose.txt", "not a readable ZIP"}},
		{"an empty folder", []string{model, empty}, []string{"No image files found"}},
		{"too few", append([]string{model}, tileFiles(t, "test/good", 7)...), []string{"too few normal images to calibrate on: got 7, expected at least 8"}},
		{"a rate of 0", []string{model, good, "--false-alarm-rate", "0"}, []string{"false alarm rate: 0"}},
		{"a rate of 2", []string{model, good, "--false-alarm-rate", "2"}, []string{"false alarm rate: 2"}},
		{"a file that is there", []string{model, good, "--out", mine}, []string{mine + " exists", "--force"}},
		{"a file of no format", []string{model, good, "--out", filepath.Join(dir, "x.json")}, []string{"x.json: the extension must be .pt, .onnx or .zip"}},
		{"a file without a name", []string{model, good, "--out", ""}, []string{"the extension must be .pt, .onnx or .zip"}},
		{"a check that writes", []string{model, good, "--check", "--out", filepath.Join(dir, "x.zip")}, []string{"check", "out"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, append([]string{"calibrate"}, c.args...)...).refused(t, c.wants...)
		})
	}
	if left := names(t, dir); len(left) != 2 || string(read(t, mine)) != "mine" {
		t.Errorf("the folder holds %v", left)
	}
}

func TestCalibrate_WritesTheFormatOfTheExtension(t *testing.T) {
	dir, model := t.TempDir(), smallModel(t)
	written := map[string][]byte{}
	for _, name := range []string{"c.zip", "c.pt", "c.onnx"} {
		out := filepath.Join(dir, name)
		if r := run(t, "calibrate", model, filepath.Join(tiles, "test/good"), "--out", out); r.status != exitNormal || !strings.Contains(r.stdout, "written to "+out) {
			t.Fatalf("%s: exit %d: %s%s", name, r.status, r.stdout, r.stderr)
		}
		written[name] = read(t, out)
	}
	bundle := unpacked(t, filepath.Join(dir, "c.zip"))
	for name, same := range map[string]string{"c.pt": models.CheckpointFile, "c.onnx": models.ONNXFile} {
		if !bytes.Equal(written[name], read(t, filepath.Join(bundle, same))) {
			t.Errorf("%s differs from %s in the zip", name, same)
		}
	}
}

func TestShiftWarning_NeedsEnoughImagesThatDiffer(t *testing.T) {
	scores := func(n int, from float64) []float64 {
		out := make([]float64, n)
		for i := range out {
			out[i] = from + float64(i)/float64(n)
		}
		return out
	}
	known := &models.Decision{Measure: models.MeasureMSE, Threshold: 1.9, CalibrationImages: 60, Scores: scores(60, 1)}
	for name, c := range map[string]struct {
		decision *models.Decision
		batch    []float64
		want     string
	}{
		"alike":            {known, scores(40, 1), ""},
		"higher":           {known, scores(40, 2), "these 40 images are 3."},
		"lower":            {known, scores(40, 0), "standard deviations below the scores of the 60 images"},
		"higher and few":   {known, scores(minShiftImages-1, 2), ""},
		"without scores":   {&models.Decision{Measure: models.MeasureMSE, Threshold: 1}, scores(40, 2), ""},
		"without decision": {nil, scores(40, 2), ""},
	} {
		got := shiftWarning(&models.Metadata{Decision: c.decision}, c.batch)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: %q", name, got)
		}
	}
}
