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

// Region is a connected part of the anomaly map above the threshold.
type Region struct {
	// X, Y, Width and Height are the bounding box in pixels of the original image,
	// from the top left.
	X      int `json:"x"`
	Y      int `json:"y"`
	Width  int `json:"width"`
	Height int `json:"height"`
	// Score is the largest value of the map in the region.
	Score float64 `json:"score"`
}

// Explanation is a verdict with its evidence.
type Explanation struct {
	Verdict
	Evidence
}

// Evidence shows which parts of an image a verdict is based on.
type Evidence struct {
	// Regions are at most maxRegions regions, in descending order of their scores.
	// Explain returns an empty list, not nil, for none: JSON has [] then.
	Regions []Region `json:"regions"`
	// Heatmap is a PNG of side×side pixels: the image in grey under the colours of
	// the anomaly map. The colour scale is the same for all images of a model: black
	// at 0, red at the threshold, white at twice the threshold. JSON has it in base64.
	// With Task.Overlay, the image is left out: the picture is transparent there.
	Heatmap []byte `json:"heatmap,omitempty"`
}

// maxRegions bounds the regions of an explanation: an image that is anomalous
// everywhere can have hundreds.
const maxRegions = 20

// Explain is like Detect and also returns the evidence, of the frame that the verdict is of.
// ErrNoMap is returned, wrapped, if the measure is the mean squared error.
func (d *Detector) Explain(ctx context.Context, image []byte, meta *models.Metadata, lim ImageLimits) (*Explanation, error) {
	f, err := d.Open(image, lim)
	if err != nil {
		return nil, err
	}
	return explainHighest(f, func(i int) (Verdict, error) { return d.DetectFrame(ctx, f, i, meta) },
		func(i int) (*Explanation, error) { return d.ExplainFrame(ctx, f, i, meta) })
}

// explainHighest returns the explanation of the image with the highest score. Of several
// images, it judges each, and explains only that one.
func explainHighest(f *imagefile.Frames, judge func(i int) (Verdict, error), explain func(i int) (*Explanation, error)) (*Explanation, error) {
	if f.Len() == 1 {
		return explain(0)
	}
	v, err := eachFrame(f, judge)
	if err != nil {
		return nil, err
	}
	x, err := explain(v.Frame - 1)
	if err != nil {
		return nil, err
	}
	x.Verdict = v
	return x, nil
}

// ExplainFrame is like Explain for image i, from 0, of a file.
func (d *Detector) ExplainFrame(ctx context.Context, f *imagefile.Frames, i int, meta *models.Metadata) (*Explanation, error) {
	p, err := imagefile.PreparePooled(f.Data(), d.Side(), f.Options(i))
	if err != nil {
		return nil, err
	}
	defer p.Release() // d.run has returned: nothing reads the pixels
	j, err := d.mapJob(p.Pix)
	if err != nil {
		return nil, err
	}
	if err := d.run(ctx, mapSession, []*job{j}); err != nil {
		return nil, err
	}
	return d.explain(j, p, meta, false)
}

// explain returns the explanation of a finished job of mapJob. With overlay, its heatmap
// has no image below the colours.
func (d *Detector) explain(j *job, p *imagefile.Prepared, meta *models.Metadata, overlay bool) (*Explanation, error) {
	if !models.Finite(j.anomaly...) {
		return nil, ErrNotFinite
	}
	v, err := d.judge(j, meta)
	if err != nil {
		return nil, err
	}
	if v.Measure == models.MeasureMSE {
		return nil, fmt.Errorf("%w: the metadata sent decides by the mean squared error", ErrNoMap)
	}
	e := &Explanation{Verdict: v, Evidence: Evidence{Regions: regions(j.anomaly, d.Side(), p.W, p.H, v.Threshold)}}
	pixels := p.Pix
	if overlay {
		pixels = nil
	}
	e.Heatmap, err = heatmap(pixels, j.anomaly, d.Side(), v.Threshold)
	return e, err
}

// regions returns the 4-connected parts of a side×side map that are above the
// threshold, with bounding boxes in an image of width×height pixels.
func regions(values []float32, side, width, height int, threshold float64) []Region {
	visited := make([]bool, len(values))
	out := []Region{} // in JSON, nil is null
	var stack []int
	for start, v := range values {
		if visited[start] || float64(v) <= threshold {
			continue
		}
		box := image.Rectangle{Min: image.Pt(side, side)}
		highest := v
		stack = append(stack[:0], start)
		visited[start] = true
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
				if next.ok && !visited[next.at] && float64(values[next.at]) > threshold {
					visited[next.at] = true
					stack = append(stack, next.at)
				}
			}
		}
		// The box grows to whole pixels of the image.
		x0, y0 := box.Min.X*width/side, box.Min.Y*height/side
		x1, y1 := (box.Max.X*width+side-1)/side, (box.Max.Y*height+side-1)/side
		out = append(out, Region{X: x0, Y: y0, Width: x1 - x0, Height: y1 - y0, Score: float64(highest)})
	}
	slices.SortStableFunc(out, func(a, b Region) int { return cmp.Compare(b.Score, a.Score) })
	return out[:min(len(out), maxRegions)]
}

// heatmap returns a PNG of the image in grey, covered by the colours of the map
// where it is above a quarter of the colour scale. Without pixels, it returns the colours
// alone, to be laid over the image: their opacity is that with which they cover it.
func heatmap(pixels []byte, values []float32, side int, threshold float64) ([]byte, error) {
	colours := moreland.ExtendedBlackBody()
	colours.SetMin(0)
	colours.SetMax(1)
	out := image.NewNRGBA(image.Rect(0, 0, side, side))
	for i, v := range values {
		share := min(float64(v)/max(2*threshold, 1e-9), 1)
		c, err := colours.At(share)
		if err != nil {
			return nil, fmt.Errorf("inference: draw the heatmap: %w", err)
		}
		r, g, b, _ := c.RGBA()
		opacity := 0.85 * min(max((share-0.25)/0.35, 0), 1)
		if pixels == nil {
			out.Pix[4*i], out.Pix[4*i+1], out.Pix[4*i+2], out.Pix[4*i+3] = byte(r>>8), byte(g>>8), byte(b>>8), byte(opacity*255+0.5)
			continue
		}
		grey := (float64(pixels[3*i]) + float64(pixels[3*i+1]) + float64(pixels[3*i+2])) / 3
		for k, full := range [3]uint32{r, g, b} {
			out.Pix[4*i+k] = byte(grey*(1-opacity) + float64(full>>8)*opacity + 0.5)
		}
		out.Pix[4*i+3] = 255
	}
	var b bytes.Buffer
	if err := imaging.Encode(&b, out, imaging.PNG); err != nil {
		return nil, fmt.Errorf("inference: draw the heatmap: %w", err)
	}
	return b.Bytes(), nil
}
