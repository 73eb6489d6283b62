package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// framedSet is a generated data set for the preparation of images: their aspect ratio or
// depth.
type framedSet struct {
	name, about, defect string
	draw                func(r, defect *rand.Rand) image.Image
}

var framedSets = []framedSet{
	{"strips", "strips of 1024×256 pixels, a printed and scratched band, with small defects", "spot", drawStrip},
	{"gradients", "images of 12 bits in 16, a faint gradient, with defects of less than one step of 8 bits", "bump", drawGradient},
}

func framedCommand() *cobra.Command {
	d := drawing{train: 60, good: 40, defects: 40, seed: 1}
	var names []string
	for _, s := range framedSets {
		names = append(names, s.name)
	}
	c := &cobra.Command{
		Use:       "framed NAME FOLDER",
		Short:     "Generate the data set strips or gradients, for the preparation of images",
		Args:      cobra.ExactArgs(2),
		ValidArgs: names,
		RunE: func(c *cobra.Command, args []string) error {
			i := slices.Index(names, args[0])
			if i < 0 {
				return fmt.Errorf("no data set %q, expected one of %v", args[0], names)
			}
			return framedSets[i].generate(c.Context(), args[1], d)
		},
	}
	c.Flags().IntVar(&d.train, "train", d.train, "normal training images")
	c.Flags().IntVar(&d.good, "good", d.good, "normal test images")
	c.Flags().IntVar(&d.defects, "defects", d.defects, "test images with a defect")
	c.Flags().Uint64Var(&d.seed, "seed", d.seed, "random seed")
	return c
}

// generate writes the set to a folder that must not exist or be empty. An image depends only
// on its name and the seed.
func (s framedSet) generate(ctx context.Context, folder string, d drawing) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for _, part := range []struct {
		folder    string
		n         int
		defective bool
	}{{"train/good", d.train, false}, {"test/good", d.good, false}, {"test/" + s.defect, d.defects, true}} {
		if err := os.MkdirAll(filepath.Join(folder, part.folder), 0o755); err != nil {
			return err
		}
		for i := range part.n {
			group.Go(func() error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				stream := func(what string) *rand.Rand {
					h := fnv.New64a()
					fmt.Fprint(h, s.name, "/", part.folder, "/", i, "/", what)
					return rand.New(rand.NewPCG(d.seed, h.Sum64()))
				}
				var defect *rand.Rand
				if part.defective {
					defect = stream("defect")
				}
				return save(s.draw(stream("image"), defect), filepath.Join(folder, part.folder, fmt.Sprintf("%03d.png", i)))
			})
		}
	}
	return group.Wait()
}

// drawStrip draws a strip of 1024×256 pixels: brushed material with a row of printed marks. A
// defect is a spot of 8 to 14 pixels, a little brighter or darker.
func drawStrip(r, defect *rand.Rand) image.Image {
	const w, h = 1024, 256
	out := image.NewGray(image.Rect(0, 0, w, h))
	// Brushed material: noise that is long in one direction.
	lines := make([]float64, h)
	for y := range lines {
		lines[y] = 5 * r.NormFloat64()
	}
	phase, light := 4*r.Float64(), 120+10*r.Float64()
	cx, cy, radius, sign := 0.0, 0.0, 0.0, 1.0
	if defect != nil {
		radius = 4 + 3*defect.Float64()
		cx, cy = 20+float64(w-40)*defect.Float64(), 20+float64(h-40)*defect.Float64()
		if defect.IntN(2) == 0 {
			sign = -1
		}
	}
	for y := range h {
		for x := range w {
			v := light + lines[y] + 4*math.Sin(float64(x)/90+phase) + 3*r.NormFloat64()
			// A mark each 64 pixels: a ring, at the same place in each strip.
			dx, dy := math.Mod(float64(x), 64)-32, float64(y)-128
			if d := math.Hypot(dx, dy); d > 14 && d < 18 {
				v -= 50
			}
			if defect != nil {
				if d := math.Hypot(float64(x)-cx, float64(y)-cy); d < radius {
					v += sign * 32
				}
			}
			out.SetGray(x, y, color.Gray{Y: uint8(min(max(v, 0), 255))})
		}
	}
	return out
}

// drawGradient draws an image of 192×192 pixels with values of 12 bits: a gradient of 40 values
// with noise of 1. A defect is a bump of 5 values, a third of the 16 values of one step of 8
// bits.
func drawGradient(r, defect *rand.Rand) image.Image {
	const side = 192
	out := image.NewGray16(image.Rect(0, 0, side, side))
	sin, cos := math.Sincos(0.6 + 0.3*r.Float64())
	base := 1900 + 16*r.Float64()
	cx, cy, radius := 0.0, 0.0, 1.0
	if defect != nil {
		radius = 9 + 5*defect.Float64()
		cx, cy = 25+float64(side-50)*defect.Float64(), 25+float64(side-50)*defect.Float64()
	}
	for y := range side {
		for x := range side {
			v := base + 40*(cos*float64(x)+sin*float64(y))/(side*(cos+sin)) + r.NormFloat64()
			if defect != nil {
				d := math.Hypot(float64(x)-cx, float64(y)-cy) / radius
				v += 5 / (1 + math.Exp(8*(d-1)))
			}
			out.SetGray16(x, y, color.Gray16{Y: uint16(min(max(math.Round(v), 0), 4095))})
		}
	}
	return out
}
