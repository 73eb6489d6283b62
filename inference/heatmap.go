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
	// Heatmap is a PNG, of the size of the network's input or, if the model has a fit, a
	// region or an input that is not square, of the original image, or a half, a quarter and
	// so on if that has more than maxHeatmapPixels: the image in grey under the colours of
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
	if d.Tiled() {
		return d.explainTiles(ctx, f, i, meta, always(mapSession), false)
	}
	p, err := imagefile.PreparePooled(f.Data(), d.Size(), d.mapOptions(mapSession, f.Options(i), false))
	if err != nil {
		return nil, err
	}
	defer p.Release() // d.run has returned: nothing reads the pixels
	j, err := d.mapJob(p.Pix)
	if err != nil {
		return nil, err
	}
	j.shallow = p.Shallow
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
	e := &Explanation{Verdict: v, Evidence: Evidence{Regions: regions(j.anomaly, p.Frame, v.Threshold)}}
	values, size, pixels := j.anomaly, d.Size(), d.Layout().Colours(p.Pix)
	if d.model.Metadata.Framed() {
		size, pixels = heatmapSize(p.W, p.H), p.Original
		values = spread(values, p.Frame, size)
	}
	if overlay {
		pixels = nil
	}
	e.Heatmap, err = heatmap(pixels, values, size, v.Threshold)
	return e, err
}

// regions returns the 4-connected parts of a map that are above the threshold, with bounding
// boxes in the original image.
func regions(values []float32, f models.Frame, threshold float64) []Region {
	w, h := f.Input.W, f.Input.H
	visited := make([]bool, len(values))
	out := []Region{} // in JSON, nil is null
	var stack []int
	for start, v := range values {
		if visited[start] || float64(v) <= threshold {
			continue
		}
		box := image.Rectangle{Min: image.Pt(w, h)}
		highest := v
		stack = append(stack[:0], start)
		visited[start] = true
		for len(stack) > 0 {
			at := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			x, y := at%w, at/w
			box.Min = image.Pt(min(box.Min.X, x), min(box.Min.Y, y))
			box.Max = image.Pt(max(box.Max.X, x+1), max(box.Max.Y, y+1))
			highest = max(highest, values[at])
			for _, next := range [4]struct {
				at int
				ok bool
			}{{at - 1, x > 0}, {at + 1, x < w-1}, {at - w, y > 0}, {at + w, y < h-1}} {
				if next.ok && !visited[next.at] && float64(values[next.at]) > threshold {
					visited[next.at] = true
					stack = append(stack, next.at)
				}
			}
		}
		// The box grows to whole pixels of the image.
		b := f.Original(models.Box{X0: box.Min.X, Y0: box.Min.Y, X1: box.Max.X, Y1: box.Max.Y})
		out = append(out, Region{X: b.X0, Y: b.Y0, Width: b.X1 - b.X0, Height: b.Y1 - b.Y0, Score: float64(highest)})
	}
	slices.SortStableFunc(out, func(a, b Region) int { return cmp.Compare(b.Score, a.Score) })
	return out[:min(len(out), maxRegions)]
}

// mapOptions returns the options o with which an image is decoded, completed for a session. A
// heatmap of the original image's size needs its pixels.
func (d *Detector) mapOptions(k sessionKind, o imagefile.Options, overlay bool) imagefile.Options {
	if k == mapSession && !overlay && d.model.Metadata.Framed() {
		o.Original = heatmapSize
	}
	return o
}

// maxHeatmapPixels bounds the pixels of a heatmap: a PNG of more takes seconds.
const maxHeatmapPixels = 8 << 20

// heatmapSize returns the size of the heatmap of an image.
func heatmapSize(w, h int) models.Size {
	n := 1
	for (w/n)*(h/n) > maxHeatmapPixels {
		n *= 2
	}
	return models.Size{W: max(w/n, 1), H: max(h/n, 1)}
}

// spread interpolates a map over the original image, which is size.W×size.H here. It is 0
// where the input does not have the image.
func spread(values []float32, f models.Frame, size models.Size) []float32 {
	from, to := f.From, f.To.Size()
	kept, whole := from.Size(), f.Whole
	type sample struct {
		lo, hi int
		share  float32
		ok     bool
	}
	axis := func(n, whole, first, kept, to0, to int) []sample {
		out := make([]sample, n)
		for i := range out {
			at := (float64(i)+0.5)*float64(whole)/float64(n) - float64(first) // in the kept part
			if at < 0 || at >= float64(kept) {
				continue
			}
			v := max(at*float64(to)/float64(kept)-0.5, 0)
			lo := min(int(v), to-1)
			out[i] = sample{to0 + lo, to0 + min(lo+1, to-1), float32(v - float64(lo)), true}
		}
		return out
	}
	columns := axis(size.W, whole.W, from.X0, kept.W, f.To.X0, to.W)
	rows := axis(size.H, whole.H, from.Y0, kept.H, f.To.Y0, to.H)
	out := make([]float32, size.Area())
	for y, r := range rows {
		if !r.ok {
			continue
		}
		top, bottom := values[r.lo*f.Input.W:][:f.Input.W], values[r.hi*f.Input.W:][:f.Input.W]
		for x, c := range columns {
			if c.ok {
				a := top[c.lo]*(1-c.share) + top[c.hi]*c.share
				b := bottom[c.lo]*(1-c.share) + bottom[c.hi]*c.share
				out[y*size.W+x] = a*(1-r.share) + b*r.share
			}
		}
	}
	return out
}

// heatmap returns a PNG of the image in grey, covered by the colours of the map
// where it is above a quarter of the colour scale. Without pixels, it returns the colours
// alone, to be laid over the image: their opacity is that with which they cover it.
func heatmap(pixels []byte, values []float32, size models.Size, threshold float64) ([]byte, error) {
	colours := moreland.ExtendedBlackBody()
	colours.SetMin(0)
	colours.SetMax(1)
	out := image.NewNRGBA(image.Rect(0, 0, size.W, size.H))
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
