package synthetic

import (
	"bytes"
	"fmt"
	"image"
	"testing"
)

// differing returns the bounds and number of pixels that differ between two images, and
// the largest increase and decrease.
func differing(before, after []byte, side int) (box image.Rectangle, pixels, up, down int) {
	for i := range side * side {
		changed := false
		for c := range channels {
			d := int(after[i*channels+c]) - int(before[i*channels+c])
			up, down, changed = max(up, d), max(down, -d), changed || d != 0
		}
		if changed {
			box = box.Union(image.Rect(i%side, i/side, i%side+1, i/side+1))
			pixels++
		}
	}
	return box, pixels, up, down
}

func TestGenerator_GradedAnomaliesHaveSizeAndContrast(t *testing.T) {
	const side = 128
	flat := bytes.Repeat([]byte{128}, side*side*channels)
	out := make([]byte, len(flat))
	for _, diameter := range []float64{1, 2, 4, 9, 32, 64} {
		for _, contrast := range []float64{-100, -8, 8, 100} {
			t.Run(fmt.Sprint(diameter, contrast), func(t *testing.T) {
				gen := generatorOf(uint64(diameter), side)
				longest := 0
				for i := range 100 {
					gen.GenerateOffset(out, flat, Form(i%int(Forms)), diameter, contrast)
					box, pixels, up, down := differing(flat, out, side)
					if pixels == 0 {
						t.Fatal("nothing was changed")
					}
					// The rim of an ellipse fades over two pixels; a scratch may begin
					// inside of a pixel.
					if extent := float64(max(box.Dx(), box.Dy())); extent > diameter+6 {
						t.Fatalf("it spans %v", box)
					}
					longest = max(longest, box.Dx(), box.Dy())
					if least := diameter * diameter / (2 * gradedSlenderness); float64(pixels) < least {
						t.Fatalf("%d pixels, expected %v at least", pixels, least)
					}
					strongest, wrong := up, down
					if contrast < 0 {
						strongest, wrong = down, up
					}
					want := max(contrast, -contrast)
					// A scratch one pixel wide may cover two pixels partly.
					if wrong > 0 || float64(strongest) > want || diameter >= 4 && float64(strongest) < 0.5*want || diameter >= 32 && float64(strongest) < want {
						t.Fatalf("up to %d brighter and %d darker", up, down)
					}
				}
				if float64(longest) < diameter {
					t.Errorf("at most %d pixels long", longest)
				}
			})
		}
	}
}

// A brighter anomaly on white would be invisible, so it becomes darker.
func TestGenerateOffset_ReversesContrastThatDoesNotFit(t *testing.T) {
	const side = 64
	for _, c := range []struct {
		level    byte
		contrast float64
		up       bool
	}{
		{255, 64, false}, {0, -64, true}, {200, 64, true}, {60, -64, false}, {240, 64, false}, {128, 200, true}, {127, -200, false},
	} {
		flat := bytes.Repeat([]byte{c.level}, side*side*channels)
		out := make([]byte, len(flat))
		generatorOf(1, side).GenerateOffset(out, flat, Blob, 16, c.contrast)
		if _, _, up, down := differing(flat, out, side); (up > 0) != c.up || (down > 0) == c.up {
			t.Errorf("%v on %d: up to %d brighter and %d darker", c.contrast, c.level, up, down)
		}
	}
}

func TestGenerator_GradedAnomaliesStayInTheirShape(t *testing.T) {
	for _, side := range []int{16, 100, 256} {
		normal, other := uniformImage(1, side), uniformImage(2, side)
		kept := bytes.Clone(normal)
		out := make([]byte, len(normal))
		for name, generate := range map[string]func(gen *Generator, form Form, diameter float64){
			"cut and pasted": func(gen *Generator, form Form, d float64) { gen.GenerateCutPaste(out, normal, other, form, d) },
			"blurred":        func(gen *Generator, form Form, d float64) { gen.GenerateBlur(out, normal, form, d) },
			"offset":         func(gen *Generator, form Form, d float64) { gen.GenerateOffset(out, normal, form, d, 50) },
		} {
			gen := generatorOf(3, side)
			for _, diameter := range []float64{0, 1, 5.5, 14, float64(side), 2 * float64(side)} {
				for i := range 30 {
					generate(gen, Form(i%int(Forms)), diameter)
					box, pixels, _, _ := differing(normal, out, side)
					if extent := float64(max(box.Dx(), box.Dy())); pixels == 0 || extent > max(diameter, 1)+6 {
						t.Fatalf("side %d, %s, diameter %v: %d pixels in %v", side, name, diameter, pixels, box)
					}
				}
			}
		}
		if !bytes.Equal(normal, kept) {
			t.Error("the normal image was changed")
		}
	}
}
