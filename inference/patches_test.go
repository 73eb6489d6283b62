package inference

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// patchModel returns a small model of 32×32 pixels with
// models.MeasurePatchMahalanobis and random weights and statistics.
func patchModel(heads bool) *models.Model { return patchModelOf(heads, models.Square(32), nil) }

// patchModelOf is patchModel for another size and preprocessing.
func patchModelOf(heads bool, size models.Size, p *models.Preprocessing) *models.Model {
	arch := models.Architecture{Channels: []int{3, 4, 6}}
	m := &models.Model{Architecture: arch, ImageSize: size.Side(), Metadata: models.Metadata{Threshold: 1, ImageSize: size.Side(), Preprocessing: p,
		Decision: &models.Decision{Measure: models.MeasurePatchMahalanobis, Threshold: 1.5, Backbone: models.EmbeddedBackbone()}}}
	r := rand.New(rand.NewPCG(2, 2))
	draw := func(ps []models.Parameter, bounds func(name string, axes int) (low, high float64)) (sd models.StateDict) {
		for _, p := range ps {
			low, high := bounds(p.Name[strings.LastIndexByte(p.Name, '.')+1:], len(p.Shape))
			data := make([]float32, p.Size())
			for i := range data {
				data[i] = float32(low + (high-low)*r.Float64())
			}
			sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
		}
		return sd
	}
	m.Weights = draw(arch.Parameters(), func(string, int) (float64, float64) { return -0.5, 0.5 })
	ps := models.PatchParameters(size, heads, 4)
	if p != nil && p.Tiles != nil {
		m.Metadata.Decision.Measure = models.MeasureTiledPatchMahalanobis
		m.Metadata.Decision.Tiles = &models.TileCalibration{Count: 6, Fewest: 6, Most: 6, Tail: 0.1}
		ps = slices.Concat(models.PlaceParameters(size, p.Tiles.Places()), ps)
	}
	m.Reference = draw(ps, func(name string, axes int) (float64, float64) {
		switch {
		case name == "whitening":
			return -0.2, 0.2
		case name == "directions":
			return -0.02, 0.02
		case name == "precision" || name == "scale" || name == "slope":
			return 0.5, 1
		case name == "weight" && axes == 3:
			return 0.05, 0.2
		case name == "weight":
			return -0.1, 0.1
		case name == "offset":
			return 5, 7
		}
		return -1, 1
	})
	return m
}

// someTiles returns the names and the content of n test images.
func someTiles(t *testing.T, n int) (files []string, data [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "tiles", "test", "*", "*.jpg"))
	if err != nil || len(files) < n {
		t.Fatal(len(files), err)
	}
	for _, f := range files[:n] {
		image, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		data = append(data, image)
	}
	return files[:n], data
}

// servedAndExported returns detectors of a model, the second with the operators of the exported
// model.
func servedAndExported(t *testing.T, m *models.Model) (served, exported *Detector) {
	t.Helper()
	open := func(create func(*Engine, *models.Model, int) (*Detector, error)) *Detector {
		d, err := create(orttest.Open(t), m, 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	return open(NewDetector), open(NewExportDetector)
}

func TestPatchModel_HasTheSameScoresInEveryFormat(t *testing.T) {
	for name, heads := range map[string]bool{"heads": true, "no heads": false} {
		t.Run(name, func(t *testing.T) {
			m := patchModel(heads)
			served, exported := servedAndExported(t, m)
			image := newImageModel(t, m)
			files, data := someTiles(t, 4)
			for i, file := range files {
				want, err := served.Detect(t.Context(), data[i], nil, imagefile.DefaultLimits())
				if err != nil {
					t.Fatal(err)
				}
				got, err := exported.Detect(t.Context(), data[i], nil, imagefile.DefaultLimits())
				if err != nil || relativeDifference(got.ReconstructionError, want.ReconstructionError) > 1e-5 || relativeDifference(got.MSE, want.MSE) > 1e-5 {
					t.Errorf("%s: %+v, exported %+v, %v", file, want, got, err)
				}
				decoded, err := imagefile.Decode(data[i], imagefile.Options{})
				if err != nil {
					t.Fatal(err)
				}
				score, anomaly, perPixel := image.run(t, decoded)
				if relativeDifference(score, want.ReconstructionError) > resizeTolerance || anomaly != (score > 1.5) {
					t.Errorf("%s: %v and %v of the image model, %v of Detect", file, score, anomaly, want.ReconstructionError)
				}
				pixels, err := imagefile.Prepare(data[i], models.Square(m.ImageSize), imagefile.Options{})
				if err != nil {
					t.Fatal(err)
				}
				values, of, err := served.Map(t.Context(), pixels)
				if err != nil || of != want.ReconstructionError || len(values) != len(perPixel) {
					t.Fatalf("%s: a map of %d values with score %v, %v", file, len(values), of, err)
				}
				for k, v := range values {
					if math.Abs(float64(v-perPixel[k])) > 1e-2*max(1, math.Abs(float64(v))) {
						t.Fatalf("%s: pixel %d is %v in the map, %v in the image model's", file, k, v, perPixel[k])
					}
				}
			}
		})
	}
}

// Concurrent calls must not change a bit of the results.
func TestMembers_CombineToTheScore(t *testing.T) {
	m := patchModel(true)
	d, err := NewDetector(orttest.Open(t), m, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !d.HasMembers() {
		t.Fatal("HasMembers is false")
	}
	join := m.Reference[len(m.Reference)-3:]
	sum := float32(0)
	for _, w := range join[2].Data {
		sum += w
	}
	c := calibration.Calibration{Offsets: join[0].Data, Slopes: join[1].Data, Weights: slices.Clone(join[2].Data)}
	for i := range c.Weights {
		c.Weights[i] /= sum // the model normalizes them to a sum of 1
	}
	_, data := someTiles(t, 3)
	var group sync.WaitGroup
	for _, file := range data {
		pixels, err := imagefile.Prepare(file, models.Square(m.ImageSize), imagefile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			group.Go(func() {
				members, score, mse, err := d.Members(t.Context(), pixels)
				if err != nil {
					t.Error(err)
					return
				}
				if len(members) != len(models.Members(true)) || math.Abs(c.Join(members)-score) > 1e-5*max(1, score) {
					t.Errorf("%v combine to %v, the score is %v", members, c.Join(members), score)
				}
				alone, err := d.Score(t.Context(), pixels)
				if err != nil || alone != score {
					t.Errorf("Score returns %v, Members %v; %v", alone, score, err)
				}
				if plain, err := d.MSE(t.Context(), pixels); err != nil || plain != mse {
					t.Errorf("MSE returns %v, Members %v; %v", plain, mse, err)
				}
			})
		}
	}
	group.Wait()
	if _, _, _, err := d.Members(t.Context(), make([]byte, 5)); err == nil {
		t.Error("an image of another size is accepted")
	}
	d.Close()
	if _, _, _, err := d.Members(t.Context(), make([]byte, 3*32*32)); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestDetect_RefusesModelsWhoseMemberWeightsAddUpToZero(t *testing.T) {
	m := patchModel(false)
	clear(m.Reference[len(m.Reference)-1].Data)
	d, err := NewDetector(orttest.Open(t), m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, data := someTiles(t, 1)
	if v, err := d.Detect(t.Context(), data[0], nil, imagefile.DefaultLimits()); !errors.Is(err, ErrNotFinite) {
		t.Errorf("%+v, %v", v, err)
	}
	pixels, err := imagefile.Prepare(data[0], models.Square(m.ImageSize), imagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := d.Members(t.Context(), pixels); !errors.Is(err, ErrNotFinite) {
		t.Errorf("members: %v", err)
	}
}
