package decision

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// layouts returns a data set of n images of 3×2 tiles of 64 pixels, with dark squares at the
// same places of all images or, if they move, at random ones.
func layouts(t *testing.T, n int, move bool) *dataset.Dataset { return layoutsIn(t, n, move, nil) }

// layoutsIn is layouts with a region.
func layoutsIn(t *testing.T, n int, move bool, region *models.Region) *dataset.Dataset {
	t.Helper()
	files := map[string][]byte{}
	for i := range n {
		r := rand.New(rand.NewPCG(uint64(i), 4))
		shift := 0
		if move {
			shift = r.IntN(1000)
		}
		m := image.NewGray(image.Rect(0, 0, 150, 110))
		for k := range m.Pix {
			x, y := k%150+shift, k/150+shift/7
			v := 130 + 10*r.NormFloat64()
			if (x/21)%3 == 1 && (y/19)%2 == 0 {
				v -= 60
			}
			m.Pix[k] = byte(v)
		}
		var b bytes.Buffer
		if err := png.Encode(&b, m); err != nil {
			t.Fatal(err)
		}
		files[fmt.Sprintf("%02d.png", i)] = b.Bytes()
	}
	data := testkit.Zip(t, files)
	src, err := dataset.OpenZip(bytes.NewReader(data), int64(len(data)), dataset.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	d, err := dataset.Load(t.Context(), src, dataset.Options{Size: models.Square(64), Limits: dataset.DefaultLimits(), Tiles: &models.Tiles{Overlap: 8},
		Images: imagefile.Options{}.WithRegion(region)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// Statistics are by place where the place explains the features of held-out images.
func TestChoosePlaces_ByTheHeldOutGain(t *testing.T) {
	engine := orttest.Open(t)
	for _, c := range []struct {
		move   bool
		asked  models.TileStatistics
		want   models.TileStatistics
		lowest float64
		most   float64
	}{
		{false, "", models.TilesByPlace, 0.2, 1},
		{true, "", models.TilesAlike, -0.3, 0.1},
		{true, models.TilesByPlace, models.TilesByPlace, -0.3, 0.1},
	} {
		o := Options{Tiles: &models.Tiles{Overlap: 8, Statistics: c.asked}, FalseAlarmRate: 0.1, Workers: workers.Pool{Threads: 2}}
		data := layouts(t, 12, c.move)
		learned, err := Learn(t.Context(), engine, data, o)
		if err != nil {
			t.Fatal(err)
		}
		tiles := learned.Tiles
		if tiles.Statistics != c.want || tiles.Gain == nil || *tiles.Gain < c.lowest || *tiles.Gain > c.most {
			t.Errorf("%+v: %+v, gain %v", c, tiles, tiles.Gain)
		}
		if places := models.PlaceCount(learned.Tensors); places != tiles.Places() || (places == 6) != (c.want == models.TilesByPlace) {
			t.Errorf("%+v: statistics of %d places", c, places)
		}
		if d := learned.Decision; d.CalibrationImages != 12 || d.Tiles.Count != 6 {
			t.Errorf("%+v: calibrated on %d images, %+v", c, d.CalibrationImages, d.Tiles)
		}
		membersMatch(t, data, learned)
	}
}

// Tiles outside of a region are not learned from, by place or not, and the model computes the
// members of the others by the patches inside, as the training does.
func TestLearn_OfTilesInARegion(t *testing.T) {
	region := models.NewRegion(models.Size{W: 15, H: 1}, append([]bool{true, true, true, true, true, true, true}, make([]bool, 8)...)) // the left 70 of 150 pixels
	for _, asked := range []models.TileStatistics{models.TilesAlike, models.TilesByPlace, ""} {
		o := Options{Tiles: &models.Tiles{Overlap: 8, Statistics: asked}, FalseAlarmRate: 0.1, Workers: workers.Pool{Threads: 2}}
		data := layoutsIn(t, 10, false, region)
		if data.Len() != 40 { // 2 of 3 columns
			t.Fatalf("%d tiles", data.Len())
		}
		learned, err := Learn(t.Context(), orttest.Open(t), data, o)
		if err != nil {
			t.Fatal(err)
		}
		if d := learned.Decision; d.CalibrationImages != 10 || d.Tiles.Count != 4 {
			t.Errorf("%q: calibrated on %d images, %+v", asked, d.CalibrationImages, d.Tiles)
		}
		if asked != models.TilesAlike && (learned.Tiles.Statistics != models.TilesByPlace || learned.Tiles.Places() != 6 || *learned.Tiles.Gain < 0.1 || *learned.Tiles.Gain > 1) {
			t.Errorf("%q: %+v", asked, learned.Tiles)
		}
		membersMatch(t, data, learned)
	}
}

// membersMatch checks that the model computes the member scores of tiles that the training
// does, by the statistics of all images.
func membersMatch(t *testing.T, data *dataset.Dataset, learned Learned) {
	t.Helper()
	m := modelOf(t, learned, 64)
	m.Metadata.Preprocessing.Region = data.Region
	m.Metadata.Preprocessing.Settle()
	engine := orttest.Open(t)
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e, err := extractor.New(engine, data.Layout)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	o := Options{Tiles: learned.Tiles, FalseAlarmRate: 0.1, Workers: workers.Pool{Threads: 2}}
	x := drawTiles(data, e.Maps(), o)
	if err := x.extractSample(t.Context(), e, o, time.Time{}); err != nil {
		t.Fatal(err)
	}
	again := *learned.Tiles
	if err := x.choosePlaces(t.Context(), e, &again, o, 0); err != nil {
		t.Fatal(err)
	}
	s, err := x.described(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for k := range 4 {
		pixels, err := x.image(k, new([]byte))
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.ScoreTile(t.Context(), pixels, x.placed[k])
		if err != nil {
			t.Fatal(err)
		}
		want := s.members(x.folds, x.deviations(k, x.folds, x.features[k]), x.insideOf(k))
		for i, v := range got.Members {
			if math.Abs(v-want[i]) > 1e-3*max(1, math.Abs(want[i])) {
				t.Errorf("tile %d, member %d: %v, the training has %v", k, i, v, want[i])
			}
		}
	}
}

// Tiles of an image are all in the fold of their image, and of the half that a head does not
// learn from.
func TestDrawTiles_KeepsTheTilesOfAnImageInOneFold(t *testing.T) {
	for _, n := range []int{8, 9, 13, 21} {
		data := layouts(t, n, false)
		x := drawTiles(data, extractor.MapsOf(models.Square(64)), Options{Seed: 5})
		if x.folds%2 != 0 || x.folds > n || len(x.images) != n {
			t.Fatalf("%d images in %d folds", len(x.images), x.folds)
		}
		fold := map[int]int{} // by the first tile of an image
		for k, image := range x.images {
			fold[image.First] = k % x.folds
		}
		seen := map[int]bool{}
		for k, at := range x.order {
			first := at - x.placed[k]
			if f, ok := fold[first]; !ok || f != k%x.folds || seen[at] {
				t.Errorf("%d images: tile %d of the sample is in fold %d, its image in %d; drawn before: %v", n, k, k%x.folds, f, seen[at])
			}
			seen[at] = true
		}
		if len(x.order) < 4*x.folds {
			t.Errorf("%d images: a sample of %d tiles", n, len(x.order))
		}
	}
}
