package detectability

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/deepmed/anomaly/internal/synthetic"
	"github.com/deepmed/anomaly/models"
)

// ErrImages is returned, wrapped, when there are no images to paint on, or they are
// of another size than told.
var ErrImages = errors.New("detectability: unusable images")

// ErrTooFewScores is returned when not even one image of each kind was judged.
var ErrTooFewScores = errors.New("detectability: not one painted image of each size and contrast was judged")

// referenceSide is the side of the image, in pixels, for which referenceDiameters
// are told. They are from what one cell of the finest features covers, half of it,
// to a quarter of the image.
const referenceSide = 256

var (
	referenceDiameters = []float64{4, 8, 16, 32, 64}
	// contrasts are grey levels of 255, from what the noise of a camera hides to
	// half of the range.
	contrasts = []float64{8, 16, 32, 64, 128}
)

// Images are prepared normal images: Count of them, of Side×Side pixels.
type Images struct {
	Count, Side int
	// At returns image i, Side×Side×3 bytes, which are not changed. It may use the
	// buffer's memory, and again for the next image of the same buffer; several
	// goroutines call it, each with buffers of its own.
	At func(i int, buffer *[]byte) ([]byte, error)
}

// kind is how a cell's anomalies look.
type kind int

const (
	offset kind = iota
	cutPaste
	blur
)

// cell is one share of the result.
type cell struct {
	kind     kind
	contrast int // index of Plan.contrasts, of an offset
	diameter int // index of Plan.diameters
}

// Plan is which samples are judged: first some normal images as they are, then
// rounds of those images with one painted anomaly of each kind, contrast and size.
// It may be used by several goroutines at once.
type Plan struct {
	images    Images
	diameters []float64
	contrasts []float64
	cells     []cell
	perCell   int
	order     []int // the normal images that are used
	seed      uint64
}

// NewPlan returns a plan of perCell rounds. The samples depend on nothing but the
// images and the random numbers. It returns ErrImages, wrapped, when there are none.
func NewPlan(images Images, perCell int, r *rand.Rand) (*Plan, error) {
	if images.Count < 1 || images.Side < 1 || perCell < 1 {
		return nil, fmt.Errorf("%w: %d images of %d pixels a side, %d for each size and contrast; expected 1 of each at least",
			ErrImages, images.Count, images.Side, perCell)
	}
	p := &Plan{images: images, diameters: diameters(images.Side), contrasts: contrasts, perCell: perCell}
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
	// Each cell begins one image after the one before it: see Image.
	p.order = r.Perm(images.Count)[:min(images.Count, perCell+len(p.cells)-1)]
	p.seed = r.Uint64()
	return p, nil
}

// diameters returns the sizes for images of that side: whole pixels, each once.
func diameters(side int) []float64 {
	var out []float64
	for _, d := range referenceDiameters {
		out = append(out, max(1, math.Round(d*float64(side)/referenceSide)))
	}
	return slices.Compact(out)
}

// Len returns how many samples there are.
func (p *Plan) Len() int { return p.first(p.perCell) }

// first returns the first sample of a round.
func (p *Plan) first(round int) int { return len(p.order) + round*len(p.cells) }

// Image returns the number of the normal image that sample i is, or is painted on.
// A cell has as many different images as there are rounds, where there are so many,
// and cells have most of them in common.
func (p *Plan) Image(i int) int {
	if i < len(p.order) {
		return p.order[i]
	}
	k := i - len(p.order)
	return p.order[(k/len(p.cells)+k%len(p.cells))%len(p.order)]
}

// Painter returns a function that paints sample i, for one goroutine. It uses its
// memory again for the next one. The function returns ErrImages, wrapped, for an
// image of another size than told, and the errors of Images.At.
func (p *Plan) Painter() func(i int) ([]byte, error) {
	out := make([]byte, models.InputChannels*p.images.Side*p.images.Side)
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
		// A stream of its own for each sample: who paints it does not matter.
		r := rand.New(rand.NewPCG(p.seed, uint64(k)))
		// Six rounds have each form both brighter and darker.
		form := synthetic.Form(round % int(synthetic.Forms))
		generator, diameter := synthetic.NewGenerator(r, p.images.Side), p.diameters[cell.diameter]
		switch cell.kind {
		case offset:
			contrast := p.contrasts[cell.contrast]
			if round%2 == 1 {
				contrast = -contrast
			}
			generator.GenerateOffset(out, image, form, diameter, contrast)
		case cutPaste:
			other, err := at(r.IntN(p.images.Count), &second)
			if err != nil {
				return nil, err
			}
			generator.GenerateCutPaste(out, image, other, form, diameter)
		case blur:
			generator.GenerateBlur(out, image, form, diameter)
		}
		return out, nil
	}
}

// Result makes shares of the samples' anomaly scores, by sample; one that was not
// judged is NaN. An image counts as found when its score is above the threshold.
// Only whole rounds count, and normal images that were judged. Result returns
// ErrTooFewScores when there is no such round or image.
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
		judged := scores[p.first(round):p.first(round+1)]
		if slices.ContainsFunc(judged, math.IsNaN) {
			continue
		}
		d.ImagesPerCell++
		for i, s := range judged {
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
