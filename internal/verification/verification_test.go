package verification

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// saturated returns a model that reconstructs every image as nearly black. Its score
// of a black image is so small that the sigmoids of the two engines differ in it.
func saturated() *models.Model {
	arch := models.Architecture{Channels: []int{models.InputChannels, 2}}
	m := &models.Model{Architecture: arch, ImageSize: 16, SHA256: "0123", Metadata: models.Metadata{ModelType: models.ModelType, ImageSize: 16, Threshold: 1}}
	for _, p := range arch.Parameters() {
		m.Weights = append(m.Weights, models.Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())})
	}
	for i := range m.Weights[3].Data {
		m.Weights[3].Data[i] = -15
	}
	return m
}

func writeFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func blackImage(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 16, 16))); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, "black.png", b.Bytes())
}

func TestVerify_ComparesThePatternWithoutFiles(t *testing.T) {
	steps := 0
	r, err := Verify(t.Context(), orttest.Open(t), saturated(), nil, func() { steps++ })
	if err != nil {
		t.Fatal(err)
	}
	if !r.SameGraph || !r.Agrees || r.ModelSHA256 != "0123" || r.Tolerance != BaseTolerance || steps != 0 {
		t.Errorf("%+v after %d steps", r, steps)
	}
	if len(r.Images) != 1 || r.Images[0].File != PatternName || r.Images[0].Scores == nil || r.Images[0].Gorgonia <= 0 {
		t.Errorf("images %+v", r.Images)
	}
}

func TestVerify_DisagreesWhenEnginesRoundDifferently(t *testing.T) {
	files := []string{blackImage(t), writeFile(t, "prose.jpg", []byte("not an image")), "nowhere.png"}
	steps := 0
	r, err := Verify(t.Context(), orttest.Open(t), saturated(), files, func() { steps++ })
	if err != nil {
		t.Fatal(err)
	}
	if !r.SameGraph || r.Agrees || r.Largest <= r.Tolerance || steps != len(files) {
		t.Errorf("%+v after %d steps", r, steps)
	}
	for n, i := range r.Images {
		if i.File != files[n] || (i.Scores != nil) != (n == 0) || (i.Error == "") != (n == 0) {
			t.Errorf("image %d is %+v", n, i)
		}
	}
}

func TestVerify_ReadsNoMoreThanTheLimitOfAnImage(t *testing.T) {
	r, err := Verify(t.Context(), orttest.Open(t), saturated(), []string{"/dev/zero"}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if r.Compared != 0 || r.Agrees || r.Images[0].Error == "" {
		t.Errorf("%+v", r)
	}
}

func TestVerify_StopsBetweenFilesWhenCancelled(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	black := blackImage(t)
	steps := 0
	_, err := Verify(ctx, orttest.Open(t), saturated(), []string{black, black}, func() { steps++; cancel(reason) })
	if !errors.Is(err, reason) || steps != 1 {
		t.Errorf("%v after %d steps", err, steps)
	}
}

func TestResult_AgreesOnlyWhenEverythingDoes(t *testing.T) {
	near, far := Image{File: "near", Scores: &Scores{1, 1.000001, 0.999999}}, Image{File: "far", Scores: &Scores{1, 1, 1.1}}
	unread := Image{File: "unread", Error: "not an image"}
	for _, c := range []struct {
		name   string
		r      Result
		agrees bool
	}{
		{"all agree", Result{SameGraph: true, Images: []Image{near}}, true},
		{"another graph", Result{Images: []Image{near}}, false},
		{"another score", Result{SameGraph: true, Images: []Image{near, far}}, false},
		{"an image without scores", Result{SameGraph: true, Images: []Image{near, unread}}, false},
		{"no image with scores", Result{SameGraph: true, Images: []Image{unread}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.r.Tolerance = Tolerance(models.Square(32))
			c.r.conclude()
			if c.r.Agrees != c.agrees {
				t.Errorf("agrees: %t", c.r.Agrees)
			}
			if n := slices.Index(append(c.r.Images, unread), unread); c.r.Compared != n {
				t.Errorf("%d were compared, want %d", c.r.Compared, n)
			}
			if far := slices.Contains(c.r.Images, far); far != (c.r.Largest > 0.01) {
				t.Errorf("the largest difference is %v", c.r.Largest)
			}
		})
	}
}

func TestTolerance_GrowsWithTheNumberOfPixels(t *testing.T) {
	for side, want := range map[int]float64{16: 1e-5, 256: 1e-5, 512: 4e-5, 1024: 16e-5} {
		if got := Tolerance(models.Square(side)); got != want {
			t.Errorf("%d×%d pixels: %v, want %v", side, side, got, want)
		}
	}
}
