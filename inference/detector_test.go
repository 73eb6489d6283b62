package inference

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// tile returns an image of a tile with a crack.
func tile(t testing.TB) []byte {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "tiles", "test", "crack", "*.jpg"))
	if err != nil || len(list) == 0 {
		t.Fatal("no tiles", err)
	}
	data, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// modelFiles returns n different checkpoints.
func modelFiles(t testing.TB, n int) [][]byte {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "golden", "checkpoints", "*.pt"))
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for _, f := range list {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := models.Read(data, models.DefaultLimits()); err == nil && len(out) < n {
			out = append(out, data)
		}
	}
	if len(out) < n {
		t.Fatalf("%d readable checkpoints, wanted %d", len(out), n)
	}
	return out
}

func TestDetect_ReturnsTheSameFromConcurrentGoroutines(t *testing.T) {
	d, image := goldenDetector(t), tile(t)
	want, err := d.Detect(t.Context(), image, nil, imagefile.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 5 {
				got, err := d.Detect(t.Context(), image, nil, imagefile.DefaultLimits())
				if err != nil || got.MSE != want.MSE {
					t.Errorf("MSE %v, %v; expected %v", got.MSE, err, want.MSE)
				}
			}
		})
	}
	group.Wait()
}

// Finite weights can have a result that is not finite, which must not count as normal.
func TestDetect_RefusesResultsThatAreNotFinite(t *testing.T) {
	m := *gaborDetector(t).Model()
	for name, sd := range map[string]*models.StateDict{"the network": &m.Weights, "the reference statistics": &m.Reference} {
		was := *sd
		*sd = slices.Clone(was)
		for i := range *sd {
			data := slices.Clone((*sd)[i].Data)
			for k := range data {
				data[k] = 3e38 * float32(1-2*(k%2))
			}
			(*sd)[i].Data = data
		}
		d, err := NewDetector(orttest.Open(t), &m, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if v, err := d.Detect(t.Context(), tile(t), nil, imagefile.DefaultLimits()); !errors.Is(err, ErrNotFinite) {
			t.Errorf("very large values of %s: %+v, %v", name, v, err)
		}
		if x, err := d.Explain(t.Context(), tile(t), nil, imagefile.DefaultLimits()); !errors.Is(err, ErrNotFinite) {
			t.Errorf("very large values of %s, explained: %+v, %v", name, x, err)
		}
		*sd = was
	}
}

func TestDetector_ReturnsErrClosedAfterClose(t *testing.T) {
	d := goldenDetector(t)
	d.Close()
	d.Close()
	if _, err := d.Detect(t.Context(), tile(t), nil, imagefile.DefaultLimits()); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if _, err := d.Picture(t.Context(), opened(t, d, tile(t)), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestDetect_ReturnsTheCauseOfItsContext(t *testing.T) {
	cause := errors.New("cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := goldenDetector(t).Detect(ctx, tile(t), nil, imagefile.DefaultLimits()); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
}

func TestPicture_ShowsInputReconstructionAndDifference(t *testing.T) {
	d := goldenDetector(t)
	data, err := d.Picture(t.Context(), opened(t, d, tile(t)), 0)
	if err != nil {
		t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if b := img.Bounds(); b.Dx() != 3*d.Size().W || b.Dy() != d.Size().W {
		t.Errorf("the picture is %v", b)
	}
	// The first third is the input.
	pixels, err := imagefile.Prepare(tile(t), d.Size(), imagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, g, b, _ := img.At(5, 7).RGBA()
	i := 3 * (7*d.Size().W + 5)
	if byte(r>>8) != pixels[i] || byte(g>>8) != pixels[i+1] || byte(b>>8) != pixels[i+2] {
		t.Errorf("pixel %d %d %d of the picture, %v of the image", r>>8, g>>8, b>>8, pixels[i:i+3])
	}
}

func BenchmarkDetect(b *testing.B) {
	d, image := goldenDetector(b), tile(b)
	for b.Loop() {
		if _, err := d.Detect(b.Context(), image, nil, imagefile.DefaultLimits()); err != nil {
			b.Fatal(err)
		}
	}
}

// opened returns the images in a file.
func opened(t testing.TB, d *Detector, file []byte) *imagefile.Frames {
	t.Helper()
	f, err := d.Open(file, imagefile.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return f
}
