package extractor

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// noise returns a prepared image of random bytes.
func noise(side int) []byte {
	r := rand.New(rand.NewPCG(uint64(side), 1))
	out := make([]byte, side*side*models.InputChannels)
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}

func TestObserver_ReturnsFeatureMapsOfGraph(t *testing.T) {
	engine := orttest.Open(t)
	for _, side := range []int{16, 48, 144} {
		e, err := New(engine, imagefile.Layout{Size: models.Square(side)})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		if !slices.Equal(e.Maps(), MapsOf(models.Square(side))) || len(e.Maps()) != len(models.HeadTaps()) {
			t.Fatalf("%d px: maps %v", side, e.Maps())
		}
		o, err := e.Observer()
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		image := noise(side)
		maps, err := o.See(t.Context(), image, 0)
		if err != nil {
			t.Fatal(err)
		}
		// Compare with ONNX's operators.
		m, err := exporter.PatchFeaturesModel(models.Square(side), false, exporter.Portable)
		if err != nil {
			t.Fatal(err)
		}
		s, err := engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		in := orttest.Tensor(t, nil, 1, models.InputChannels, side, side)
		imagefile.Normalize(in.Data(), image)
		var out []*ort.Tensor
		for _, f := range e.Maps() {
			out = append(out, orttest.Tensor(t, nil, 1, f.Channels, f.H, f.W))
		}
		if err := s.Run(t.Context(), []*ort.Tensor{in}, out); err != nil {
			t.Fatal(err)
		}
		for i, f := range e.Maps() {
			if len(maps[i]) != f.Floats() {
				t.Fatalf("%d px: map %d has %d elements", side, i, len(maps[i]))
			}
			difference, norm := 0.0, 0.0
			for k, v := range out[i].Data() {
				d := float64(maps[i][k]) - float64(v)
				difference += d * d
				norm += float64(v) * float64(v)
			}
			if !(difference < 1e-10*norm) {
				t.Errorf("%d px, block %d: differs by %.2g of %.2g", side, f.Block, difference, norm)
			}
		}
		// Maps below first are nil, and another call does not change returned maps.
		kept := slices.Clone(maps[1])
		again, err := o.See(t.Context(), noise(side + 1)[:len(image)], 1)
		if err != nil {
			t.Fatal(err)
		}
		if again[0] != nil || slices.Equal(again[1], kept) || !slices.Equal(maps[1], kept) {
			t.Errorf("%d px: the maps of another image have %d, %d and %d elements", side, len(again[0]), len(again[1]), len(again[2]))
		}
	}
}

func TestObserver_IsSafeBesideOthers(t *testing.T) {
	const side = 32
	e, err := New(orttest.Open(t), imagefile.Layout{Size: models.Square(side)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var group sync.WaitGroup
	maps := make([][][]float32, 4)
	for i := range maps {
		group.Go(func() {
			o, err := e.Observer()
			if err != nil {
				t.Error(err)
				return
			}
			defer o.Close()
			for range 2 {
				if maps[i], err = o.See(t.Context(), noise(side), 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for i := range maps {
		if !slices.EqualFunc(maps[i], maps[0], slices.Equal) {
			t.Errorf("observer %d returns other maps", i)
		}
	}
}

func TestPatchOf_CountsFromBackboneInput(t *testing.T) {
	for _, c := range []struct{ side, block, x, want int }{
		// Images of 16 pixels are enlarged 8 times: a patch of 8 pixels is one pixel.
		{16, 4, 0, 0}, {16, 4, 1, 1}, {16, 4, 15, 15}, {16, 10, 1, 0}, {16, 10, 2, 1}, {16, 12, 15, 3},
		// Images of 144 pixels get a border of 8 pixels.
		{144, 4, 0, 1}, {144, 4, 7, 1}, {144, 4, 8, 2}, {144, 4, 143, 18}, {144, 10, 7, 0}, {144, 10, 8, 1}, {144, 12, 143, 4},
		{256, 4, 255, 31}, {256, 12, 31, 0}, {256, 12, 32, 1},
	} {
		i := slices.IndexFunc(MapsOf(models.Square(c.side)), func(m Map) bool { return m.Block == c.block })
		m, size := MapsOf(models.Square(c.side))[i], models.Square(c.side)
		if got := PatchOf(m, size, c.x, 0) % m.W; got != c.want {
			t.Errorf("%d px, block %d: pixel %d is in patch %d, want %d", c.side, c.block, c.x, got, c.want)
		}
		if got := PatchOf(m, size, 0, c.x) / m.W; got != c.want {
			t.Errorf("%d px, block %d: pixel %d is in row %d, want %d", c.side, c.block, c.x, got, c.want)
		}
	}
}
