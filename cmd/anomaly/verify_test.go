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
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/models"
)

// verified is what `verify --json` prints, read with the documented names.
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
		t.Fatalf("not as documented: %v: %q, stderr %q", err, r.stdout, r.stderr)
	}
	return v
}

func TestVerifyAgreesWithEveryFormOfAModel(t *testing.T) {
	model := smallModel(t)
	dir := unpacked(t, model)
	for _, path := range []string{model, filepath.Join(dir, "autoencoder.pt"), filepath.Join(dir, "autoencoder.onnx"), pythons} {
		r := run(t, "verify", path, "--json")
		v := readVerification(t, r)
		if r.status != exitNormal || r.stderr != "" || !*v.SameGraph || !*v.Agrees || v.SHA256 != models.Identity(read(t, path)) {
			t.Errorf("%s: exit %d: %s%s", path, r.status, r.stdout, r.stderr)
		}
		if len(v.Images) != 1 || v.Images[0].File != "(pattern)" || *v.Images[0].ONNXRuntime <= 0 || *v.Images[0].Gorgonia <= 0 {
			t.Errorf("%s: without images it compares %s", path, r.stdout)
		}
	}
	r := run(t, "verify", model)
	if r.status != exitNormal || r.stderr != "" || !strings.Contains(r.stdout, "the bytes are the same") || !strings.HasSuffix(r.stdout, ": agrees\n") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestVerifyComparesTheErrorsThatDetectGives(t *testing.T) {
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
			t.Errorf("%s: %v and %v, detect says %v", c.File, *c.ONNXRuntime, *c.Gorgonia, *list[i].Value)
		}
	}
	// Two machines that add up in another order are never the same to the last
	// bit ten times; one machine asked twice would be.
	if largest == 0 || largest != *v.Largest || v.Tolerance != 1e-5 {
		t.Errorf("the largest difference is %v, it says %v of at most %v", largest, *v.Largest, v.Tolerance)
	}
}

// saturated is a model that makes every image as good as black. Its error of a
// black image is so small that the engines' sigmoids differ in it.
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

func TestVerifyTellsByTheExitStatusThatEnginesDisagree(t *testing.T) {
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

func TestVerifyNamesTheImagesItCannotCompare(t *testing.T) {
	prose := write(t, t.TempDir(), "prose.jpg", []byte("I am no picture."))
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

func TestVerifyRefusesInOneSentence(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		says []string
	}{
		{"no model", nil, []string{"arg"}},
		{"a model that is not there", []string{"nowhere.zip"}, []string{"nowhere.zip"}},
		{"prose as model", []string{"../../testdata/README.md"}, []string{"README.md", "not a readable model file"}},
		{"a folder without images", []string{smallModel(t), empty}, []string{"no images"}},
		{"a library that is not there", []string{smallModel(t), "--onnxruntime", "/nowhere"}, []string{"--onnxruntime names /nowhere", "make runtime"}},
		{"an unknown provider", []string{smallModel(t), "--provider", "abacus"}, []string{"abacus", "auto, cpu or cuda"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, append([]string{"verify"}, c.args...)...).refused(t, c.says...)
		})
	}
}

func TestVerifyDoesNotWaitWhenItIsInterrupted(t *testing.T) {
	if v, err := uninterrupted(t.Context(), func() (int, error) { return 7, errors.ErrUnsupported }); v != 7 || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without an interrupt it gives %d, %v", v, err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	never := make(chan struct{})
	defer close(never)
	_, err := uninterrupted(ctx, func() (int, error) {
		interrupt()
		<-never
		return 0, nil
	})
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("interrupted it gives %v", err)
	}
}

func TestVerificationIsWhatItsPartsSay(t *testing.T) {
	near, far := comparison{File: "near", measured: &measured{1, 1.000001, 0.999999}}, comparison{File: "far", measured: &measured{1, 1, 1.1}}
	unread := comparison{File: "unread", Error: "no picture"}
	for _, c := range []struct {
		name   string
		v      verification
		status error
		says   string
	}{
		{"all agree", verification{SameGraph: true, Images: []comparison{near}}, nil, ": agrees"},
		{"another graph", verification{Images: []comparison{near}}, exitStatus(exitAnomaly), "THE BYTES DIFFER"},
		{"another error", verification{SameGraph: true, Images: []comparison{near, far}}, exitStatus(exitAnomaly), ": DOES NOT AGREE"},
		{"an image without errors", verification{SameGraph: true, Images: []comparison{near, unread}}, exitStatus(exitError), "cannot be compared: no picture"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.v.Tolerance = allowed(32)
			c.v.conclude()
			var b bytes.Buffer
			if err := c.v.print(&b); err != nil {
				t.Fatal(err)
			}
			if got := c.v.status(); got != c.status || c.v.Agrees != (c.status == nil) || !strings.Contains(b.String(), c.says) {
				t.Errorf("status %v, agrees %t: %s", got, c.v.Agrees, b.String())
			}
			if far := slices.Contains(c.v.Images, far); far != (c.v.Largest > 0.01) {
				t.Errorf("the largest difference is %v", c.v.Largest)
			}
		})
	}
}
