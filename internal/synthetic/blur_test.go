package synthetic

import (
	"image"
	"math"
	"testing"
)

// A blurred point has the shape of a Gaussian and keeps its total brightness.
func TestBlur_IsNearlyGaussian(t *testing.T) {
	const side, centre = 101, 50
	point := make([]byte, side*side*3)
	point[(centre*side+centre)*3+1] = 255
	for _, deviation := range []float64{0.8, 1.5, 3, 6} {
		var b blur
		at := b.of(point, side, side, image.Rect(0, 0, side, side), deviation)
		sum, across, down := 0.0, 0.0, 0.0
		for y := range side {
			for x := range side {
				p := at(x, y)
				if p[0] != 0 || p[2] != 0 {
					t.Fatal("a channel changed another one")
				}
				v := float64(p[1]) / 255
				sum += v
				across += v * float64((x-centre)*(x-centre))
				down += v * float64((y-centre)*(y-centre))
			}
		}
		if math.Abs(sum-1) > 1e-3 {
			t.Errorf("deviation %v: the total brightness is %v, expected 1", deviation, sum)
		}
		for _, variance := range []float64{across, down} {
			if got := math.Sqrt(variance); math.Abs(got-deviation) > 0.01*deviation {
				t.Errorf("deviation %v: it is %v", deviation, got)
			}
		}
		if peak, want := float64(at(centre, centre)[1])/255, 1/(2*math.Pi*deviation*deviation); math.Abs(peak-want) > 0.2*want {
			t.Errorf("deviation %v: the peak is %v, expected %v", deviation, peak, want)
		}
	}
}

func TestBlur_OfPartEqualsPartOfWhole(t *testing.T) {
	const side = 64
	img := uniformImage(3, side)
	var whole, part blur
	box := image.Rect(0, 20, 31, 64)
	a, b := whole.of(img, side, side, image.Rect(0, 0, side, side), 2.5), part.of(img, side, side, box, 2.5)
	for y := box.Min.Y; y < box.Max.Y; y++ {
		for x := box.Min.X; x < box.Max.X; x++ {
			for c := range 3 {
				if p, q := a(x, y)[c], b(x, y)[c]; math.Abs(float64(p-q)) > 1e-2 {
					t.Fatalf("pixel %d, %d is %v, expected %v", x, y, q, p)
				}
			}
		}
	}
}
