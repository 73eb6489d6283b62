package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/verification"
	"github.com/deepmed/anomaly/models"
)

// verified is the output of `verify --json`, read by the documented names.
type verified struct {
	SHA256    string   `json:"model_sha256"`
	SameGraph *bool    `json:"same_graph"`
	Largest   *float64 `json:"largest_relative_difference"`
	Tolerance float64  `json:"tolerance"`
	Agrees    *bool    `json:"agrees"`
	Images    []struct {
		File        string   `json:"file"`
		ONNXRuntime *float64 `json:"reconstruction_error"`
		Gorgonia    *float64 `json:"gorgonia_error"`
		Error       *string  `json:"error"`
	} `json:"images"`
}

func readVerification(t *testing.T, r ran) verified {
	t.Helper()
	var v verified
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil || v.SameGraph == nil || v.Agrees == nil || v.Largest == nil {
		t.Fatalf("not the documented JSON: %v: %q, stderr %q", err, r.stdout, r.stderr)
	}
	return v
}

func TestVerify_AgreesWithEveryFormatOfAModel(t *testing.T) {
	model := smallModel(t)
	dir := unpacked(t, model)
	for _, path := range []string{model, filepath.Join(dir, "autoencoder.pt"), filepath.Join(dir, "autoencoder.onnx"), pythonCheckpoint} {
		r := run(t, "verify", path, "--json")
		v := readVerification(t, r)
		if r.status != exitNormal || r.stderr != "" || !*v.SameGraph || !*v.Agrees || v.SHA256 != models.Identity(read(t, path)) {
			t.Errorf("%s: exit %d: %s%s", path, r.status, r.stdout, r.stderr)
		}
		if len(v.Images) != 1 || v.Images[0].File != "(pattern)" || *v.Images[0].ONNXRuntime <= 0 || *v.Images[0].Gorgonia <= 0 {
			t.Errorf("%s: without images: %s", path, r.stdout)
		}
	}
	r := run(t, "verify", model)
	if r.status != exitNormal || r.stderr != "" || !strings.Contains(r.stdout, "the bytes are the same") || !strings.HasSuffix(r.stdout, ": agrees\n") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestVerify_ComparesTheScoresOfDetect(t *testing.T) {
	model, images := smallModel(t), filepath.Join(tiles, "test/crack")
	v := readVerification(t, run(t, "verify", model, "--json", images))
	list := entries(t, run(t, "detect", "--model", model, "--json", images))
	if len(v.Images) != len(list) || len(list) != 10 {
		t.Fatalf("%d images, detect has %d", len(v.Images), len(list))
	}
	largest := 0.0
	for i, c := range v.Images {
		d := math.Abs(*c.ONNXRuntime-*c.Gorgonia) / max(*c.ONNXRuntime, *c.Gorgonia)
		largest = max(largest, d)
		if c.File != list[i].File || math.Abs(*c.ONNXRuntime-*list[i].Value) > 1e-5**list[i].Value || !(d <= 1e-5) {
			t.Errorf("%s: %v and %v, detect has %v", c.File, *c.ONNXRuntime, *c.Gorgonia, *list[i].Value)
		}
	}
	// Two engines that add in a different order do not round equally ten times. One
	// engine asked twice would.
	if largest == 0 || largest != *v.Largest || v.Tolerance != 1e-5 {
		t.Errorf("the largest difference is %v, reported are %v and the tolerance %v", largest, *v.Largest, v.Tolerance)
	}
}

// saturated writes a model that reconstructs every image as nearly black. Its score of
// a black image is so small that the sigmoids of the two engines differ in it.
func saturated(t *testing.T, dir string) string {
	t.Helper()
	arch := models.Architecture{Channels: []int{models.InputChannels, 2}}
	m := &models.Model{Architecture: arch, ImageSize: 16, Metadata: models.Metadata{ModelType: models.ModelType, ImageSize: 16, Threshold: 1}}
	for _, p := range arch.Parameters() {
		m.Weights = append(m.Weights, models.Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())})
	}
	for i := range m.Weights[3].Data {
		m.Weights[3].Data[i] = -15
	}
	var b bytes.Buffer
	if err := exporter.WriteCheckpoint(&b, m); err != nil {
		t.Fatal(err)
	}
	return write(t, dir, "saturated.pt", b.Bytes())
}

func TestVerify_ExitStatusIsOneWhenEnginesDisagree(t *testing.T) {
	dir := t.TempDir()
	model := saturated(t, dir)
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 16, 16))); err != nil {
		t.Fatal(err)
	}
	black := write(t, dir, "black.png", b.Bytes())
	r := run(t, "verify", model, "--json", black, tileFiles(t, "test/good", 1)[0])
	v := readVerification(t, r)
	if r.status != exitAnomaly || !*v.SameGraph || *v.Agrees || *v.Largest <= v.Tolerance || len(v.Images) != 2 {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	r = run(t, "verify", model, black)
	if r.status != exitAnomaly || !strings.HasSuffix(r.stdout, ": DOES NOT AGREE\n") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	if r := run(t, "verify", model); r.status != exitNormal {
		t.Errorf("the pattern: exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestVerify_NamesImagesThatCannotBeCompared(t *testing.T) {
	prose := write(t, t.TempDir(), "prose.jpg", []byte("not an image"))
	args := []string{"verify", smallModel(t), prose, tileFiles(t, "test/good", 1)[0], "nowhere.png"}
	r := run(t, append(args, "--json")...)
	v := readVerification(t, r)
	if r.status != exitError || len(v.Images) != 3 || *v.Agrees {
		t.Fatalf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	for i, c := range v.Images {
		readable := i == 1
		if c.File != args[2+i] || (c.Error == nil) != readable || (c.Gorgonia != nil) != readable || (c.ONNXRuntime != nil) != readable {
			t.Errorf("image %d is %+v", i, c)
		}
	}
	if r := run(t, args...); r.status != exitError || strings.Count(r.stdout, "cannot be compared") != 2 {
		t.Errorf("exit %d: %s", r.status, r.stdout)
	}
}

func TestVerify_RejectsInOneSentence(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		args  []string
		wants []string
	}{
		{"no model", nil, []string{"arg"}},
		{"a model that is not there", []string{"nowhere.zip"}, []string{"nowhere.zip"}},
		{"prose as model", []string{"../../testdata/README.md"}, []string{"README.md", "not a readable model file"}},
		{"a folder without images", []string{smallModel(t), empty}, []string{"no images"}},
		{"a library that is not there", []string{smallModel(t), "--onnxruntime", "/nowhere"}, []string{"--onnxruntime names /nowhere", "make runtime"}},
		{"an unknown provider", []string{smallModel(t), "--provider", "abacus"}, []string{"abacus", "auto, cpu or cuda"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, append([]string{"verify"}, c.args...)...).refused(t, c.wants...)
		})
	}
}

func TestAbandonable_ReturnsWhenInterrupted(t *testing.T) {
	if v, err := abandonable(t.Context(), func() (int, error) { return 7, errors.ErrUnsupported }); v != 7 || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without an interrupt: %d, %v", v, err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	never := make(chan struct{})
	defer close(never)
	_, err := abandonable(ctx, func() (int, error) {
		interrupt()
		<-never
		return 0, nil
	})
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("interrupted: %v", err)
	}
}

func TestPrintVerification_ReportsEveryDisagreement(t *testing.T) {
	near := verification.Image{File: "near", Scores: &verification.Scores{ONNXRuntime: 1, Gorgonia: 1.000001, Served: 0.999999}}
	unread := verification.Image{File: "unread", Error: "not an image"}
	for _, c := range []struct {
		name   string
		r      verification.Result
		status error
		want   string
	}{
		{"all agree", verification.Result{SameGraph: true, Agrees: true, Images: []verification.Image{near}}, nil, ": agrees"},
		{"another graph", verification.Result{Images: []verification.Image{near}}, exitStatus(exitAnomaly), "THE BYTES DIFFER"},
		{"another score", verification.Result{SameGraph: true, Images: []verification.Image{near}}, exitStatus(exitAnomaly), ": DOES NOT AGREE"},
		{"an image without scores", verification.Result{SameGraph: true, Images: []verification.Image{near, unread}}, exitStatus(exitError), "cannot be compared: not an image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := printVerification(&b, &c.r); err != nil {
				t.Fatal(err)
			}
			if got := verificationStatus(&c.r); got != c.status || !strings.Contains(b.String(), c.want) {
				t.Errorf("status %v: %s", got, b.String())
			}
		})
	}
}
