package inference

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"image"
	"slices"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
	"github.com/disintegration/imaging"
	"gonum.org/v1/plot/palette/moreland"
)

// Region is a part of an image that is above the model's threshold.
type Region struct {
	// X, Y, Width and Height are its box in the pixels of the image as it was
	// given, from the top left.
	X      int `json:"x"`
	Y      int `json:"y"`
	Width  int `json:"width"`
	Height int `json:"height"`
	// Score is the largest value of the measure in it.
	Score float64 `json:"score"`
}

// Explanation is a verdict, and what in the image it comes from.
type Explanation struct {
	Verdict
	Evidence
}

// Evidence is what in an image a verdict comes from.
type Evidence struct {
	// Regions are the highest first, at most maxRegions of them.
	Regions []Region `json:"regions"`
	// Heatmap is a PNG of the image as the network saw it, under the anomaly
	// map in colours; base64 in JSON. The colours mean the same for all images
	// of a model: black is usual, red at the threshold, white at its double.
	Heatmap []byte `json:"heatmap,omitempty"`
}

// maxRegions bounds the regions told; an image that is strange all over has
// hundreds.
const maxRegions = 20

// Explain judges an image by the model's own metadata, or by the metadata given,
// and says where what it found lies. It returns ErrNoMap when the decision is by
// the plain error, and the errors of Detect.
func (d *Detector) Explain(ctx context.Context, data []byte, meta *models.Metadata, lim imagefile.Limits) (*Explanation, error) {
	img, err := imagefile.Decode(data, lim)
	if err != nil {
		return nil, err
	}
	pixels := img.Resize(d.Side(), d.Side()).Pix
	values, j, err := d.mapped(ctx, pixels)
	if err != nil {
		return nil, err
	}
	v, err := d.judge(j, meta)
	if err != nil {
		return nil, err
	}
	if v.Measure == models.MeasureMSE {
		return nil, fmt.Errorf("%w: the metadata sent decides by the plain error", ErrNoMap)
	}
	e := &Explanation{Verdict: v, Evidence: Evidence{Regions: regions(values, d.Side(), img.W, img.H, v.Threshold)}}
	e.Heatmap, err = heatmap(pixels, values, d.Side(), v.Threshold)
	return e, err
}

// regions finds the connected parts of a map above the threshold, and gives their
// boxes in an image of width×height pixels.
func regions(values []float32, side, width, height int, threshold float64) []Region {
	seen := make([]bool, len(values))
	var out []Region
	var stack []int
	for start, v := range values {
		if seen[start] || float64(v) <= threshold {
			continue
		}
		box := image.Rectangle{Min: image.Pt(side, side)}
		highest := v
		stack = append(stack[:0], start)
		seen[start] = true
		for len(stack) > 0 {
			at := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			x, y := at%side, at/side
			box.Min = image.Pt(min(box.Min.X, x), min(box.Min.Y, y))
			box.Max = image.Pt(max(box.Max.X, x+1), max(box.Max.Y, y+1))
			highest = max(highest, values[at])
			for _, next := range [4]struct {
				at int
				ok bool
			}{{at - 1, x > 0}, {at + 1, x < side-1}, {at - side, y > 0}, {at + side, y < side-1}} {
				if next.ok && !seen[next.at] && float64(values[next.at]) > threshold {
					seen[next.at] = true
					stack = append(stack, next.at)
				}
			}
		}
		// Outwards to whole pixels of the image.
		x0, y0 := box.Min.X*width/side, box.Min.Y*height/side
		x1, y1 := (box.Max.X*width+side-1)/side, (box.Max.Y*height+side-1)/side
		out = append(out, Region{X: x0, Y: y0, Width: x1 - x0, Height: y1 - y0, Score: float64(highest)})
	}
	slices.SortStableFunc(out, func(a, b Region) int { return cmp.Compare(b.Score, a.Score) })
	return out[:min(len(out), maxRegions)]
}

// heatmap draws the map over the image. Where it is usual the image shows as it
// is, in grey, so that the colours stand out.
func heatmap(pixels []byte, values []float32, side int, threshold float64) ([]byte, error) {
	colours := moreland.ExtendedBlackBody()
	colours.SetMin(0)
	colours.SetMax(1)
	out := image.NewNRGBA(image.Rect(0, 0, side, side))
	for i, v := range values {
		share := min(float64(v)/max(2*threshold, 1e-9), 1)
		c, err := colours.At(share)
		if err != nil {
			return nil, fmt.Errorf("inference: drawing: %w", err)
		}
		r, g, b, _ := c.RGBA()
		grey := (float64(pixels[3*i]) + float64(pixels[3*i+1]) + float64(pixels[3*i+2])) / 3
		// The colour comes in from a quarter of the scale on.
		cover := 0.85 * min(max((share-0.25)/0.35, 0), 1)
		for k, full := range [3]uint32{r, g, b} {
			out.Pix[4*i+k] = byte(grey*(1-cover) + float64(full>>8)*cover + 0.5)
		}
		out.Pix[4*i+3] = 255
	}
	var b bytes.Buffer
	if err := imaging.Encode(&b, out, imaging.PNG); err != nil {
		return nil, fmt.Errorf("inference: drawing: %w", err)
	}
	return b.Bytes(), nil
}
