package tiling

import (
	"math"
	"testing"
)

func TestNew_CoversTheImageWithEvenlySpacedTiles(t *testing.T) {
	for _, c := range []struct{ w, h, side, overlap, columns, rows int }{
		{2000, 1500, 256, 32, 9, 7},
		{256, 256, 256, 32, 1, 1},
		{257, 255, 256, 32, 2, 1},
		{100, 3000, 256, 0, 1, 12},
		{480, 704, 256, 32, 2, 3},
		{5472, 3648, 256, 32, 25, 17},
		{1, 1, 64, 32, 1, 1},
		{97, 64, 64, 32, 3, 1},
	} {
		g := New(c.w, c.h, c.side, c.overlap)
		if len(g.Xs) != c.columns || len(g.Ys) != c.rows || g.Len() != c.columns*c.rows {
			t.Errorf("%+v: %d×%d tiles", c, len(g.Xs), len(g.Ys))
		}
		if n := Count(c.w, c.h, c.side, c.overlap); n != g.Len() {
			t.Errorf("%+v: counted %d tiles, planned %d", c, n, g.Len())
		}
		for _, axis := range []struct {
			starts []int
			n      int
		}{{g.Xs, c.w}, {g.Ys, c.h}} {
			if axis.starts[0] != 0 || axis.n > c.side && axis.starts[len(axis.starts)-1] != axis.n-c.side {
				t.Errorf("%+v: tiles begin at %v", c, axis.starts)
			}
			least, most := c.side, 0
			for i, s := range axis.starts[1:] {
				step := s - axis.starts[i]
				least, most = min(least, step), max(most, step)
			}
			if len(axis.starts) > 1 && (most > c.side-c.overlap || most-least > 1) {
				t.Errorf("%+v: steps from %d to %d", c, least, most)
			}
		}
		if x, y := g.At(g.Len() - 1); x != g.Xs[len(g.Xs)-1] || y != g.Ys[len(g.Ys)-1] {
			t.Errorf("%+v: the last tile is at %d, %d", c, x, y)
		}
	}
}

func TestScaled_SetsTheLongestSide(t *testing.T) {
	for _, c := range []struct{ w, h, longest, wantW, wantH int }{
		{2000, 1500, 0, 2000, 1500}, {2000, 1500, 1000, 1000, 750}, {1500, 2000, 1000, 750, 1000},
		{5000, 1, 100, 100, 1}, {3, 2, 100, 100, 67}, {64, 64, 512, 512, 512},
	} {
		if w, h := Scaled(c.w, c.h, c.longest); w != c.wantW || h != c.wantH {
			t.Errorf("%+v: %d×%d", c, w, h)
		}
	}
}

// A plane of tiles that are cut from one smooth image is that image: there is no seam, at
// any size of the plane.
func TestPlane_OfTilesOfAnImageIsTheImage(t *testing.T) {
	for _, c := range []struct{ w, h, side, overlap, pw, ph int }{
		{300, 200, 64, 8, 300, 200}, {300, 200, 64, 0, 300, 200}, {301, 199, 64, 32, 100, 66},
		{40, 30, 64, 8, 40, 30}, {100, 70, 64, 8, 250, 175},
	} {
		g := New(c.w, c.h, c.side, c.overlap)
		image := func(x, y int) float64 { return 3 + math.Sin(float64(x)/40) + float64(y)/100 }
		p := NewPlane(g, c.pw, c.ph)
		for i := range g.Len() {
			left, top := g.At(i)
			p.AddFunc(i, func(at int) float32 { return float32(image(left+at%c.side, top+at/c.side)) })
		}
		for i, v := range p.Values {
			x, y := (2*(i%c.pw)+1)*c.w/(2*c.pw), (2*(i/c.pw)+1)*c.h/(2*c.ph)
			if want := image(x, y); math.Abs(float64(v)-want) > 1e-4 {
				t.Fatalf("%+v: value %v at %d, expected %v", c, v, i, want)
			}
		}
	}
}

// Tiles of different values join continuously: neighbouring values never differ by more
// than the slope over the overlap.
func TestPlane_ChangesGraduallyBetweenTiles(t *testing.T) {
	const overlap = 32
	g := New(500, 300, 128, overlap)
	p := NewPlane(g, g.W, g.H)
	for i := range g.Len() {
		p.AddFunc(i, func(int) float32 { return float32((i*7)%5) * 10 })
	}
	const steepest = 2 * 40.0 / overlap // 40 is the largest difference, between four tiles at a corner
	for i, v := range p.Values {
		if x := i % g.W; x > 0 && math.Abs(float64(v-p.Values[i-1])) > steepest {
			t.Fatalf("from %v to %v at column %d", p.Values[i-1], v, x)
		}
		if i >= g.W && math.Abs(float64(v-p.Values[i-g.W])) > steepest {
			t.Fatalf("from %v to %v at row %d", p.Values[i-g.W], v, i/g.W)
		}
	}
}
