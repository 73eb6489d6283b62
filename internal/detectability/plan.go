package detectability

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/synthetic"
	"github.com/deepmed/anomaly/models"
)

// ErrImages is returned, wrapped, when there are no normal images or their size is wrong.
var ErrImages = errors.New("detectability: unusable images")

// ErrTooFewScores is returned when no normal image, or no whole round of samples, was
// scored.
var ErrTooFewScores = errors.New("detectability: no normal image, or no sample of each size and contrast, was scored")

// referenceSide is the image side, in pixels, for which referenceDiameters are specified.
const referenceSide = 256

var (
	// referenceDiameters range from half the side of a patch of the finest features to
	// a quarter of the image.
	referenceDiameters = []float64{4, 8, 16, 32, 64}
	// contrasts are grey levels (of 255), from the noise of a camera to half of the
	// range.
	contrasts = []float64{8, 16, 32, 64, 128}
)

// Images are Count prepared normal images.
type Images struct {
	Count  int
	Layout imagefile.Layout
	// At returns image i in this layout, which the caller does not change. It
	// may return the buffer's memory, which the next call with the same buffer
	// overwrites. It is called concurrently with different buffers.
	At func(i int, buffer *[]byte) ([]byte, error)
}

// kind is the kind of a cell's anomalies.
type kind int

const (
	offset kind = iota
	cutPaste
	blur
)

// cell is one share of the result.
type cell struct {
	kind     kind
	contrast int // index into Plan.contrasts, for an offset
	diameter int // index into Plan.diameters
}

// Plan determines the samples to score: first some normal images without an anomaly,
// then rounds of samples, each with one anomaly for every kind, contrast and size. It
// may be used concurrently.
type Plan struct {
	images    Images
	diameters []float64
	contrasts []float64
	cells     []cell
	perCell   int
	order     []int // indices of the normal images in use
	seed      uint64
}

// NewPlan returns a plan of perCell rounds. The samples depend only on the images and the
// random numbers. It returns ErrImages, wrapped, when there are no images or rounds.
func NewPlan(images Images, perCell int, r *rand.Rand) (*Plan, error) {
	if images.Count < 1 || images.Layout.Area() < 1 || perCell < 1 {
		return nil, fmt.Errorf("%w: %d images of %v pixels, %d for each size and contrast; expected at least 1 of each",
			ErrImages, images.Count, images.Layout.Size, perCell)
	}
	p := &Plan{images: images, diameters: diameters(math.Sqrt(float64(images.Layout.Area()))), contrasts: contrasts, perCell: perCell}
	for c := range p.contrasts {
		for d := range p.diameters {
			p.cells = append(p.cells, cell{offset, c, d})
		}
	}
	for _, k := range []kind{cutPaste, blur} {
		for d := range p.diameters {
			p.cells = append(p.cells, cell{kind: k, diameter: d})
		}
	}
	// Each cell starts one image after the previous cell; see Image.
	p.order = r.Perm(images.Count)[:min(images.Count, perCell+len(p.cells)-1)]
	p.seed = r.Uint64()
	return p, nil
}

// diameters returns the diameters for an image side, the geometric mean of width and height, in
// whole pixels, without duplicates.
func diameters(side float64) []float64 {
	var out []float64
	for _, d := range referenceDiameters {
		out = append(out, max(1, math.Round(d*side/referenceSide)))
	}
	return slices.Compact(out)
}

// Len returns the number of samples.
func (p *Plan) Len() int { return p.first(p.perCell) }

// first returns the index of the first sample of a round.
func (p *Plan) first(round int) int { return len(p.order) + round*len(p.cells) }

// Image returns the index of the normal image that sample i is derived from. The samples
// of a cell use different images, if there are at least as many images as rounds. Most
// of them are shared with other cells.
func (p *Plan) Image(i int) int {
	if i < len(p.order) {
		return p.order[i]
	}
	k := i - len(p.order)
	return p.order[(k/len(p.cells)+k%len(p.cells))%len(p.order)]
}

// Painter returns a function that returns sample i. The function must not be called
// concurrently, and each call overwrites the previous sample. It returns ErrImages,
// wrapped, for an image of the wrong size, and errors of Images.At.
func (p *Plan) Painter() func(i int) ([]byte, error) {
	l := p.images.Layout
	out := make([]byte, l.Bytes())
	painted := make([]byte, models.InputChannels*l.Area())
	var buffer, second []byte
	at := func(i int, buffer *[]byte) ([]byte, error) {
		image, err := p.images.At(i, buffer)
		if err == nil && len(image) != len(out) {
			err = fmt.Errorf("%w: image %d has %d bytes, expected %d", ErrImages, i, len(image), len(out))
		}
		return image, err
	}
	return func(i int) ([]byte, error) {
		image, err := at(p.Image(i), &buffer)
		if err != nil || i < len(p.order) {
			return image, err
		}
		k := i - len(p.order)
		round, cell := k/len(p.cells), p.cells[k%len(p.cells)]
		// Each sample has its own random numbers, so that the order of the calls does
		// not matter.
		r := rand.New(rand.NewPCG(p.seed, uint64(k)))
		// In six rounds, each form is brighter once and darker once.
		form := synthetic.Form(round % int(synthetic.Forms))
		generator, diameter := synthetic.NewGenerator(r, l.W, l.H, l.Mask(image)), p.diameters[cell.diameter]
		before := l.Colours(image)
		switch cell.kind {
		case offset:
			contrast := p.contrasts[cell.contrast]
			if round%2 == 1 {
				contrast = -contrast
			}
			generator.GenerateOffset(painted, before, form, diameter, contrast)
		case cutPaste:
			other, err := at(r.IntN(p.images.Count), &second)
			if err != nil {
				return nil, err
			}
			generator.GenerateCutPaste(painted, before, l.Colours(other), form, diameter)
		case blur:
			generator.GenerateBlur(painted, before, form, diameter)
		}
		l.Paint(out, image, before, painted)
		return out, nil
	}
}

// Result computes the shares from the anomaly scores, by sample index. NaN means that a
// sample was not scored. An image counts as detected when its score is above the
// threshold. Result uses only complete rounds and scored normal images. It returns
// ErrTooFewScores when there is no such round or no such image.
func (p *Plan) Result(scores []float64, threshold float64) (*models.Detectability, error) {
	d := &models.Detectability{Threshold: threshold, Diameters: slices.Clone(p.diameters), Contrasts: slices.Clone(p.contrasts)}
	scores = scores[:min(len(scores), p.Len())]
	for _, s := range scores[:min(len(p.order), len(scores))] {
		if math.IsNaN(s) {
			continue
		}
		d.NormalImages++
		if s > threshold {
			d.FalseAlarms++
		}
	}
	hits := make([]float64, len(p.cells))
	for round := 0; p.first(round+1) <= len(scores); round++ {
		scored := scores[p.first(round):p.first(round+1)]
		if slices.ContainsFunc(scored, math.IsNaN) {
			continue
		}
		d.ImagesPerCell++
		for i, s := range scored {
			if s > threshold {
				hits[i]++
			}
		}
	}
	if d.NormalImages == 0 || d.ImagesPerCell == 0 {
		return nil, ErrTooFewScores
	}
	d.FalseAlarms /= float64(d.NormalImages)
	for i := range hits {
		hits[i] /= float64(d.ImagesPerCell)
	}
	rows := slices.Collect(slices.Chunk(hits, len(p.diameters)))
	n := len(p.contrasts)
	d.Found, d.CutPaste, d.Blur = rows[:n], rows[n], rows[n+1]
	return d, nil
}
