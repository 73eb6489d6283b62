package main

import (
	"image"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

func TestFramedSets_AreDeterministicAndDeep(t *testing.T) {
	for _, s := range framedSets {
		var first []byte
		for range 2 {
			dir := t.TempDir()
			if err := s.generate(t.Context(), dir, drawing{train: 1, good: 1, defects: 1, seed: 3}); err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(filepath.Join(dir, "test", s.defect, "000.png"))
			if err != nil {
				t.Fatal(err)
			}
			if first != nil && string(first) != string(data) {
				t.Errorf("%s: two different images of one seed", s.name)
			}
			first = data
		}
		p, err := imagefile.PrepareSized(first, models.Square(64), imagefile.Options{Probe: true})
		if err != nil || p.Deep != (s.name == "gradients") || (p.W == 4*p.H) != (s.name == "strips") {
			t.Errorf("%s: %d×%d pixels, deep %v, %v", s.name, p.W, p.H, p.Deep, err)
		}
	}
}

// The defect of a gradient is below one step of 8 bits: it changes the value of few pixels by
// one.
func TestDrawGradient_HidesTheDefectBelowEightBits(t *testing.T) {
	random := func() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }
	good, bad := drawGradient(random(), nil).(*image.Gray16), drawGradient(random(), random()).(*image.Gray16)
	most, steps := 0, 0
	for i := 0; i < len(good.Pix); i += 2 {
		a, b := int(good.Pix[i])<<8|int(good.Pix[i+1]), int(bad.Pix[i])<<8|int(bad.Pix[i+1])
		most = max(most, b-a)
		steps = max(steps, b/16-a/16)
	}
	if most < 4 || most > 6 || steps > 1 {
		t.Errorf("a defect of %d values of 12 bits, %d steps of 8", most, steps)
	}
}
