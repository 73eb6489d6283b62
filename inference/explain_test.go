package inference

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"image"
	"image/color"
	"image/png"
	"reflect"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// colourImage returns a PNG of w×h pixels in colour.
func colourImage(t *testing.T, w, h int) []byte {
	t.Helper()
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			img.Set(x, y, color.NRGBA{uint8(3 * x), uint8(5 * y), uint8(x * y), 255})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The expected explanation is put together from Decode, Resize, Map and Detect.
func TestExplain_ReturnsTheVerdictOfDetectAndRegionsInTheImagesPixels(t *testing.T) {
	patches, err := NewDetector(orttest.Open(t), patchModel(true), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer patches.Close()
	_, files := someTiles(t, 2)
	files = append(files, colourImage(t, 90, 37), colourImage(t, 32, 32))
	for name, d := range map[string]*Detector{"patches": patches, "gabor": gaborDetector(t)} {
		meta := d.Model().Metadata
		low := *meta.Decision
		low.Threshold /= 4 // for regions in every image
		meta.Decision = &low
		var want []*Explanation
		for _, file := range files {
			want = append(want, expectedExplanation(t, d, file, &meta))
		}
		for _, o := range []BatchOptions{{}, {Size: 4, Delay: MaxBatchDelay}} {
			s := scheduler(t, 2, o)
			var group sync.WaitGroup
			for i := range 12 {
				group.Go(func() {
					file, want := files[i%len(files)], want[i%len(files)]
					decoded := 0
					got, err := s.Explain(t.Context(), d, Task{Image: file, Metadata: &meta, Decoded: func() { decoded++ }})
					if err != nil || !reflect.DeepEqual(got, want) {
						t.Errorf("%s, %+v, image %d: not the expected explanation, %v", name, o, i, err)
					}
					if decoded != 1 {
						t.Errorf("Decoded was called %d times", decoded)
					}
				})
			}
			group.Wait()
			if n := s.inFlight.Load(); n != 0 {
				t.Errorf("%d images are still in flight", n)
			}
		}
		for i, file := range files {
			got, err := d.Explain(t.Context(), file, &meta, DefaultImageLimits())
			if err != nil || !reflect.DeepEqual(got, want[i]) {
				t.Errorf("%s, image %d: not the expected explanation of the detector, %v", name, i, err)
			}
		}
	}
}

func expectedExplanation(t *testing.T, d *Detector, file []byte, meta *models.Metadata) *Explanation {
	t.Helper()
	v, err := d.Detect(t.Context(), file, meta, DefaultImageLimits())
	if err != nil {
		t.Fatal(err)
	}
	img, err := imagefile.Decode(file, imagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pixels := img.Resize(d.Size().W, d.Size().W).Pix
	values, _, err := d.Map(t.Context(), pixels)
	if err != nil {
		t.Fatal(err)
	}
	x := &Explanation{Verdict: v, Evidence: Evidence{Regions: regions(values, models.FrameOf(d.Size(), "", img.W, img.H), v.Threshold)}}
	if len(x.Regions) == 0 {
		t.Fatal("no regions to compare")
	}
	if x.Heatmap, err = heatmap(pixels, values, d.Size(), v.Threshold); err != nil {
		t.Fatal(err)
	}
	return x
}

func TestSchedulerExplain_ReturnsTheErrorsOfTheDetector(t *testing.T) {
	s, d := scheduler(t, 1, BatchOptions{}), gaborDetector(t)
	cause := errors.New("cause")
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	plain := &models.Metadata{Threshold: 1}
	for name, c := range map[string]struct {
		ctx  context.Context
		d    *Detector
		task Task
		want error
	}{
		"text":                 {t.Context(), d, Task{Image: []byte("prose")}, ErrImage},
		"too large":            {t.Context(), d, Task{Image: tile(t), Limits: ImageLimits{MaxPixels: 5}}, ErrImageTooLarge},
		"a model without maps": {t.Context(), goldenDetector(t), Task{Image: tile(t)}, ErrNoMap},
		"text, without maps":   {t.Context(), goldenDetector(t), Task{Image: []byte("prose")}, ErrImage},
		"metadata without map": {t.Context(), d, Task{Image: tile(t), Metadata: plain}, ErrNoMap},
		"cancelled":            {cancelled, d, Task{Image: tile(t)}, cause},
	} {
		if x, err := s.Explain(c.ctx, c.d, c.task); x != nil || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
		c.d.queues[mapSession].mu.Lock()
		if n := c.d.queues[mapSession].reserved; n != 0 || s.inFlight.Load() != 0 {
			t.Errorf("%s: %d jobs are still reserved, %d in flight", name, n, s.inFlight.Load())
		}
		c.d.queues[mapSession].mu.Unlock()
	}
}

func TestVerdict_EncodesTheScoreUnderBothKeys(t *testing.T) {
	v, err := goldenDetector(t).Detect(t.Context(), tile(t), nil, DefaultImageLimits())
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]any
	if err := json.Unmarshal(data, &keys); err != nil {
		t.Fatal(err)
	}
	if keys["anomaly_score"] != v.ReconstructionError || keys["reconstruction_error"] != v.ReconstructionError {
		t.Errorf("%s", data)
	}
}
