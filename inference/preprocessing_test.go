package inference

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// The model's preprocessing decides whether an image is turned upright and how its
// 16-bit samples are scaled.
func TestDetect_PreparesImagesAsTheModelLearned(t *testing.T) {
	d := goldenDetector(t)
	cases := filepath.Join(testkit.Root(t), "internal", "imagefile", "testdata", "cases")
	for _, name := range []string{"exif6.jpg", "mono12.png"} {
		data, err := os.ReadFile(filepath.Join(cases, name))
		if err != nil {
			t.Fatal(err)
		}
		scores := map[float64]bool{}
		for _, p := range []*models.Preprocessing{nil, {Orientation: models.OrientationEXIF, MaxValue: 4095}} {
			d.model.Metadata.Preprocessing = p
			pixels, err := imagefile.Prepare(data, d.Size(), imagefile.Options{Upright: p != nil, MaxValue: map[bool]int{true: 4095}[p != nil]})
			if err != nil {
				t.Fatal(err)
			}
			want, err := d.MSE(t.Context(), pixels)
			if err != nil {
				t.Fatal(err)
			}
			v, err := d.Detect(t.Context(), data, nil, imagefile.DefaultLimits())
			if err != nil || v.ReconstructionError != want {
				t.Errorf("%s, %+v: %v, %v, expected %v", name, p, v.ReconstructionError, err, want)
			}
			s, err := NewScheduler(d.engine, BatchOptions{})
			if err != nil {
				t.Fatal(err)
			}
			v, err = s.Detect(t.Context(), d, Task{Image: data})
			if err != nil || v.ReconstructionError != want {
				t.Errorf("%s, %+v: %v, %v in the scheduler, expected %v", name, p, v.ReconstructionError, err, want)
			}
			scores[want] = true
		}
		if len(scores) != 2 {
			t.Errorf("%s: the same score with and without", name)
		}
	}
}
