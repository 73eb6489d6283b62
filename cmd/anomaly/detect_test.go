package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// entry is an entry of `detect --json`, read by the names that clients use.
type entry struct {
	File       string   `json:"file"`
	Value      *float64 `json:"reconstruction_error"`
	MSE        *float64 `json:"mse"`
	Threshold  *float64 `json:"threshold"`
	IsAnomaly  *bool    `json:"is_anomaly"`
	ClassNames []string `json:"class_names"`
	Error      *string  `json:"error"`
}

func entries(t testing.TB, r ran) []entry {
	t.Helper()
	var list []entry
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("not a JSON array: %v: %q, stderr %q", err, r.stdout, r.stderr)
	}
	return list
}

func TestDetect_ExitStatusIsTheVerdict(t *testing.T) {
	dir := t.TempDir()
	lax := write(t, dir, "lax.json", []byte(`{"threshold": 1000}`))
	strict := write(t, dir, "strict.json", []byte(`{"threshold": 1e-12, "class_names": ["fine", "cracked"]}`))
	model, images := smallModel(t), filepath.Join(tiles, "test/crack")
	for _, c := range []struct {
		metadata string
		status   int
		anomaly  bool
		classes  []string
		word     string
		summary  string
	}{
		{lax, exitNormal, false, []string{"normal", "anomaly"}, "normal", "10 images: 10 normal, 0 anomalous, 0 not judged"},
		{strict, exitAnomaly, true, []string{"fine", "cracked"}, "ANOMALY", "10 images: 0 normal, 10 anomalous, 0 not judged"},
	} {
		r := run(t, "detect", "--model", model, "--metadata", c.metadata, "--json", images)
		list := entries(t, r)
		if r.status != c.status || r.stderr != "" || len(list) != 10 {
			t.Errorf("exit %d, %d entries, stderr %q", r.status, len(list), r.stderr)
		}
		for _, e := range list {
			if e.Error != nil || e.Value == nil || e.Threshold == nil || e.IsAnomaly == nil || *e.IsAnomaly != c.anomaly ||
				*e.IsAnomaly != (*e.Value > *e.Threshold) || !slices.Equal(e.ClassNames, c.classes) || filepath.Dir(e.File) != images {
				t.Errorf("entry %+v", e)
			}
		}
		r = run(t, "detect", "--model", model, "--metadata", c.metadata, images)
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
		if r.status != c.status || r.stderr != "" || len(lines) != 12 || lines[11] != c.summary ||
			!slices.Equal(strings.Fields(lines[0]), []string{"IMAGE", "ERROR", "THRESHOLD", "VERDICT"}) {
			t.Fatalf("exit %d, stderr %q, table\n%s", r.status, r.stderr, r.stdout)
		}
		for i, line := range lines[1:11] {
			want := []string{list[i].File, fmt.Sprintf("%.6f", *list[i].Value), fmt.Sprintf("%.6f", *list[i].Threshold), c.word}
			if !slices.Equal(strings.Fields(line), want) {
				t.Errorf("the table has %q, the JSON %q", line, want)
			}
		}
	}
}

func TestDetect_NamesImagesThatCannotBeJudged(t *testing.T) {
	prose := write(t, t.TempDir(), "prose.jpg", []byte("not an image"))
	good := tileFiles(t, "test/good", 1)[0]
	args := []string{"detect", "--model", smallModel(t), prose, good, "nowhere.png"}
	r := run(t, append(args, "--json")...)
	list := entries(t, r)
	if r.status != exitError || len(list) != 3 {
		t.Fatalf("exit %d, %d entries: %s", r.status, len(list), r.stderr)
	}
	var bare []map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &bare); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2} {
		if len(bare[i]) != 2 || bare[i]["file"] != args[3+i] || bare[i]["error"] == "" {
			t.Errorf("an unreadable image is %v", bare[i])
		}
	}
	if list[1].Error != nil || list[1].Value == nil || list[1].File != good {
		t.Errorf("the readable image is %+v", list[1])
	}
	r = run(t, args...)
	if r.status != exitError || strings.Count(r.stdout, "cannot be judged") != 2 || !strings.Contains(r.stdout, "2 not judged") {
		t.Errorf("exit %d: %s", r.status, r.stdout)
	}
}

func TestDetect_RejectsInOneSentence(t *testing.T) {
	model, good := smallModel(t), tileFiles(t, "test/good", 1)[0]
	dir := t.TempDir()
	prose := write(t, dir, "prose.txt", []byte("not a model"))
	cut := write(t, dir, "cut.zip", read(t, model)[:1000])
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		args  []string
		wants []string
	}{
		{"no model", []string{good}, []string{"model"}},
		{"no image", []string{"--model", model}, []string{"arg"}},
		{"a model that is not there", []string{"--model", "nowhere.zip", good}, []string{"nowhere.zip"}},
		{"prose as model", []string{"--model", prose, good}, []string{"prose.txt", "not a readable model file"}},
		{"a model cut off", []string{"--model", cut, good}, []string{"cut.zip"}},
		{"a model without end", []string{"--model", "/dev/zero", good}, []string{"/dev/zero", "too large", "at most 67108864"}},
		{"metadata without end", []string{"--model", model, "--metadata", "/dev/zero", good}, []string{"/dev/zero", "at most 8388608"}},
		{"an image as model", []string{"--model", good, good}, []string{"not a readable model file"}},
		{"prose as metadata", []string{"--model", model, "--metadata", prose, good}, []string{"prose.txt", "unusable metadata"}},
		{"a folder without images", []string{"--model", model, filepath.Join(dir, "empty")}, []string{"no images"}},
		{"a library that is not there", []string{"--model", model, "--onnxruntime", "/nowhere/lib.so", good}, []string{"--onnxruntime names /nowhere/lib.so", "make runtime"}},
		{"a folder without the library", []string{"--model", model, "--onnxruntime", dir, good}, []string{"--onnxruntime names the folder " + dir}},
		{"prose as library", []string{"--model", model, "--onnxruntime", prose, good}, []string{"library cannot be used", "prose.txt", "make runtime"}},
		{"an unknown provider", []string{"--model", model, "--provider", "abacus", good}, []string{"abacus", "auto, cpu or cuda"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, append([]string{"detect"}, c.args...)...).refused(t, c.wants...)
		})
	}
}

func TestDetect_JudgesEqualByEveryFormatOfAModel(t *testing.T) {
	model := smallModel(t)
	dir := unpacked(t, model)
	images := append(tileFiles(t, "test/good", 3), tileFiles(t, "test/blowhole", 3)...)
	whole := entries(t, run(t, append([]string{"detect", "--json", "--model", model}, images...)...))
	for _, form := range []string{"autoencoder.pt", "autoencoder.onnx", "autoencoder_image.onnx"} {
		for i, e := range entries(t, run(t, append([]string{"detect", "--json", "--threads", "1", "--model", filepath.Join(dir, form)}, images...)...)) {
			if *e.Value != *whole[i].Value || *e.Threshold != *whole[i].Threshold || !slices.Equal(e.ClassNames, whole[i].ClassNames) {
				t.Errorf("%s: %+v, the zip: %+v", form, e, whole[i])
			}
		}
	}
}

func TestDetect_WritesPictures(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pictures")
	image := tileFiles(t, "test/crack", 1)[0]
	r := run(t, "detect", "--model", smallModel(t), "--pictures", dir, image)
	if r.status == exitError {
		t.Fatalf("exit %d: %s", r.status, r.stdout)
	}
	want := "0001-" + filepath.Base(image) + ".png"
	if got := names(t, dir); !slices.Equal(got, []string{want}) {
		t.Fatalf("the folder holds %v", got)
	}
	if data := read(t, filepath.Join(dir, want)); !bytes.HasPrefix(data, []byte("\x89PNG")) {
		t.Errorf("it begins with %q", data[:min(len(data), 8)])
	}
}
