package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// photos is a generated data set of large photographs of a rough surface, some with a
// scratch that is small compared with the image.
type photos struct {
	train, good, defects int
	width, height        int
	seed                 uint64
}

// Scratches are narrowest to widest pixels wide at their middle, and shortest to longest
// times as long. They are faintest to strongest grey levels darker or lighter than the
// surface.
const (
	narrowest, widest   = 4, 12
	shortest, longest   = 3, 8
	faintest, strongest = 25, 60
)

func scratchesCommand() *cobra.Command {
	p := photos{train: 60, good: 40, defects: 40, width: 2000, height: 1500, seed: 1}
	c := &cobra.Command{
		Use:   "scratches FOLDER",
		Short: "Generate large photographs of a rough surface, and some with a scratch of 4 to 12 pixels, with masks",
		Args:  cobra.ExactArgs(1),
		RunE:  func(c *cobra.Command, args []string) error { return p.generate(c.Context(), args[0]) },
	}
	f := c.Flags()
	f.IntVar(&p.train, "train", p.train, "normal training images")
	f.IntVar(&p.good, "good", p.good, "normal test images")
	f.IntVar(&p.defects, "defects", p.defects, "test images with a scratch")
	f.IntVar(&p.width, "width", p.width, "width of the images, in pixels")
	f.IntVar(&p.height, "height", p.height, "height of the images, in pixels")
	f.Uint64Var(&p.seed, "seed", p.seed, "random seed")
	return c
}

// generate writes the data set in the layout of MVTec AD. Equal seeds make equal files.
func (p photos) generate(ctx context.Context, folder string) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, part := range []struct {
		folder    string
		n         int
		scratched bool
	}{{"train/good", p.train, false}, {"test/good", p.good, false}, {"test/scratch", p.defects, true}} {
		for i := range part.n {
			group.Go(func() error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				h := fnv.New64a()
				fmt.Fprint(h, part.folder, "/", i)
				photo, mask := p.photo(rand.New(rand.NewPCG(p.seed, h.Sum64())), part.scratched)
				name := fmt.Sprintf("%03d", i)
				if mask != nil {
					if err := write(filepath.Join(folder, "ground_truth", "scratch", name+"_mask.png"), mask); err != nil {
						return err
					}
				}
				return write(filepath.Join(folder, filepath.FromSlash(part.folder), name+".jpg"), photo)
			})
		}
	}
	return group.Wait()
}

// write writes an image file atomically: a PNG or, by its name, a JPEG.
func write(file string, m image.Image) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return files.WriteAtomic(file, func(w io.Writer) error {
		if filepath.Ext(file) == ".jpg" {
			return jpeg.Encode(w, m, &jpeg.Options{Quality: 95})
		}
		return png.Encode(w, m)
	})
}

// photo returns a photograph and, with a scratch, its mask.
func (p photos) photo(r *rand.Rand, scratched bool) (image.Image, *image.Gray) {
	w, h := p.width, p.height
	surface := make([]float32, w*h)
	roughness := spread(r, 0.8, 1.25)
	for _, octave := range []struct{ cell, height float64 }{{3, 4}, {7, 5}, {19, 4}, {53, 3}} {
		addNoise(surface, w, octave.cell*spread(r, 0.9, 1.1), octave.height*roughness, r)
	}
	addNoise(surface, w, float64(max(w, h))/3, 9, r) // smooth shading
	sin, cos := math.Sincos(2 * math.Pi * r.Float64())
	slope, level := spread(r, 0, 12), spread(r, 115, 140)
	tint := [3]float64{spread(r, -4, 4), 0, spread(r, -4, 4)}
	var mask *image.Gray
	if scratched {
		mask = image.NewGray(image.Rect(0, 0, w, h))
		scratch(surface, mask, r)
	}
	out := image.NewRGBA(image.Rect(0, 0, w, h))
	half := float64(max(w, h)) / 2
	for i := range surface {
		x, y := (float64(i%w)-float64(w)/2)/half, (float64(i/w)-float64(h)/2)/half
		v := level + float64(surface[i]) + slope*(cos*x+sin*y) - 10*(x*x+y*y)
		for k := range 3 {
			noisy := v + tint[k] + 2.5*r.NormFloat64()
			out.Pix[4*i+k] = uint8(min(max(noisy, 0), 255) + 0.5)
		}
		out.Pix[4*i+3] = 255
	}
	return out, mask
}

// addNoise adds smooth random bumps of a size in pixels and a standard deviation of about
// the height.
func addNoise(plane []float32, w int, size, height float64, r *rand.Rand) {
	h := len(plane) / w
	columns := int(float64(w)/size) + 3
	grid := make([]float32, columns*(int(float64(h)/size)+3))
	for i := range grid {
		grid[i] = float32(1.4 * height * r.NormFloat64())
	}
	dx, dy := r.Float64(), r.Float64()
	ease := func(t float64) float32 { return float32(t * t * (3 - 2*t)) }
	at, share := make([]int, w), make([]float32, w)
	for x := range at {
		v := float64(x)/size + dx
		at[x], share[x] = int(v), ease(v-math.Floor(v))
	}
	for y := range h {
		v := float64(y)/size + dy
		upper, lower := grid[int(v)*columns:], grid[(int(v)+1)*columns:]
		down := ease(v - math.Floor(v))
		row := plane[y*w : (y+1)*w]
		for x := range row {
			i, s := at[x], share[x]
			a := upper[i] + (upper[i+1]-upper[i])*s
			b := lower[i] + (lower[i+1]-lower[i])*s
			row[x] += a + (b-a)*down
		}
	}
}

// scratch adds a curved scratch to the surface and sets its pixels in the mask.
func scratch(surface []float32, mask *image.Gray, r *rand.Rand) {
	w, h := mask.Rect.Dx(), mask.Rect.Dy()
	width := spread(r, narrowest, widest)
	length := width * spread(r, shortest, longest)
	depth := spread(r, faintest, strongest)
	if r.Float64() < 0.5 {
		depth = -depth
	}
	margin := length/2 + width
	cx, cy := spread(r, margin, float64(w)-margin), spread(r, margin, float64(h)-margin)
	angle, bend := 2*math.Pi*r.Float64(), spread(r, -0.5, 0.5)
	reach := int(margin) + 2
	for y := max(int(cy)-reach, 0); y < min(int(cy)+reach, h); y++ {
		for x := max(int(cx)-reach, 0); x < min(int(cx)+reach, w); x++ {
			sin, cos := math.Sincos(angle)
			dx, dy := float64(x)-cx, float64(y)-cy
			along, across := cos*dx+sin*dy, cos*dy-sin*dx
			t := 2 * along / length // -1 to 1
			if t < -1 || t > 1 {
				continue
			}
			across -= bend * width * (1 - t*t)                                   // a parabola
			half := width / 2 * math.Sqrt(1-t*t)                                 // pointed ends
			opacity := min(max(half-math.Abs(across)+0.5, 0), 1) * (1 - 0.3*t*t) // soft edges
			if opacity <= 0 {
				continue
			}
			surface[y*w+x] += float32(depth * opacity)
			if opacity > 0.3 {
				mask.Pix[y*mask.Stride+x] = 255
			}
		}
	}
}
