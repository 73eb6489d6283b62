package network

import (
	"fmt"
	"math"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// MSEName is the name of the output with the mean squared error of models whose
// anomaly score, ErrorName, is another one.
const MSEName = "mse"

// Constants of the Gabor filter bank (Jain and Farrokhnia, "Unsupervised Texture
// Segmentation Using Gabor Filters", 1991): a wave across the orientation under a
// Gaussian that is longer along it. Sizes are in pixels of a pyramid level.
const (
	filterSide    = 7
	filterAcross  = 1.2 // standard deviation across the orientation
	filterAlong   = 2.0 // standard deviation along it
	filterWave    = 1.8 // radians per pixel: a wavelength of 3.5 pixels
	surroundInner = 1.0 // standard deviations of the difference of Gaussians
	surroundOuter = 2.2 // that responds to colour spots
	// vectorSide squared is a multiple of the number of lanes of a processor's
	// vectors.
	vectorSide = 4
	// energyFloor is added to squared responses: it keeps the square root
	// differentiable and the logarithm insensitive to rounding.
	energyFloor = 1e-6
)

// Fixed is a constant tensor of a graph.
type Fixed struct {
	Node *gorgonia.Node
	Data []float32
}

// Judgement is the scoring graph: features of an image's patches, and their
// distance to the reference statistics. See models.GaborScale, and PaDiM (Defard
// et al., 2020) for the same method with a pretrained network's features.
type Judgement struct {
	// Filters are the constant tensors: the filter bank or the backbone.
	Filters []Fixed
	// Features are N×D×P×P, one for each scale.
	Features gorgonia.Nodes
	// Parameters are the reference statistics, with the names and in the order of
	// models.GaborParameters, followed by models.GaborHeadsParameters if there are
	// defect heads; for models.MeasurePatchMahalanobis, in the order of
	// models.PlaceParameters and models.PatchParameters.
	Parameters gorgonia.Nodes
	// Place is the input with the index of the place of each tile, N; nil without places.
	Place *gorgonia.Node
	// Members are the member scores of models.MeasurePatchMahalanobis, N×M×1×1, in
	// the order of models.Members; nil for models.MeasureBandMahalanobis.
	Members *gorgonia.Node
	// Score is the anomaly score of each image, N elements.
	Score *gorgonia.Node
	// Map is the anomaly score of each pixel, N×H×W; Score is about its maximum.
	Map *gorgonia.Node
}

// Judge adds the scoring graph to the network's graph. The reference statistics
// determine the kind of anomaly score.
func (f *Forward) Judge(reference models.StateDict) (*Judgement, error) {
	if models.HasPatches(reference) {
		return f.judgePatches(models.HasHeads(reference), models.BankSize(reference), models.PlaceCount(reference))
	}
	return f.judgeGabor(models.HasGaborHeads(reference))
}

// judgeGabor adds the scoring graph of models.MeasureBandMahalanobis, which models
// of earlier versions have.
func (f *Forward) judgeGabor(heads bool) (*Judgement, error) {
	b := &builder{graph: f.Graph}
	side := f.Image.Shape()[2]
	if f.Masked || side != f.Image.Shape()[3] {
		return nil, fmt.Errorf("network: %s exists for square images without a mask only", models.MeasureBandMahalanobis)
	}
	j := b.gaborFeatures(f.Image, side)
	var peak *gorgonia.Node
	var deviations gorgonia.Nodes
	statistics := make([]gorgonia.Nodes, len(models.GaborScales(side)))
	for i, s := range models.GaborScales(side) {
		ps := b.inputs(s.Parameters())
		statistics[i] = ps
		j.Parameters = append(j.Parameters, ps...)
		distance := b.apply(Mahalanobis, s.Blocks(), j.Features[i], ps[0], ps[1], ps[2])
		deviation := b.apply(Standardize, 0, b.apply(Logarithm, 0, distance), ps[3], ps[4])
		// Softplus is vectorized, and the remainder of a tensor may be rounded
		// differently. Whole vectors for each image make the bits of its score
		// independent of the batch size.
		highest := b.apply(Enlarge, vectorSide, b.apply(Peak, 0, deviation))
		deviations = append(deviations, deviation)
		if i == 0 {
			peak = highest
		} else {
			peak = b.apply(Larger, 0, peak, highest)
		}
	}
	if heads {
		logits, ps := b.gaborHeads(j.Features, statistics, side)
		j.Parameters = append(j.Parameters, ps...)
		peak = b.apply(Larger, 0, peak, b.apply(Enlarge, vectorSide, b.apply(Peak, 0, logits)))
		deviations[0] = b.apply(Larger, 0, deviations[0], logits)
	}
	// From the coarsest scale to the finest, each with twice the side, and to
	// pixels at the end, which is cheaper than combining scales at pixel resolution.
	patches := deviations[len(deviations)-1]
	for i := len(deviations) - 2; i >= 0; i-- {
		patches = b.apply(Larger, 0, b.apply(Enlarge, 2, patches), deviations[i])
	}
	patches = b.apply(Enlarge, models.GaborScales(side)[0].Cell, patches)
	j.Score = b.apply(Single, 0, b.apply(Peak, 0, b.apply(Softplus, 0, peak)))
	j.Map = b.apply(Plane, 0, b.apply(Softplus, 0, patches))
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	return j, nil
}

// level is a level of an image pyramid and its squared filter responses.
type level struct {
	grey, colour           *gorgonia.Node // N×1×h×w and N×2×h×w
	oriented, colourEnergy *gorgonia.Node // N×8×h×w and N×2×h×w
}

// gaborFeatures adds the filter bank and returns the features of each scale.
func (b *builder) gaborFeatures(image *gorgonia.Node, side int) *Judgement {
	j := &Judgement{}
	fixed := func(name string, data []float32, shape ...int) *gorgonia.Node {
		n := b.input("filters."+name, shape...)
		j.Filters = append(j.Filters, Fixed{n, data})
		return n
	}
	const third = float32(1) / 3
	point, slide := Window{Kernel: 1, Stride: 1}, Window{Kernel: filterSide, Stride: 1}
	none1, none2 := fixed("none.1", make([]float32, 1), 1), fixed("none.2", make([]float32, 2), 2)
	none16 := fixed("none.16", make([]float32, 2*models.Oriented), 2*models.Oriented)
	toGrey := fixed("grey", []float32{third, third, third}, 1, models.InputChannels, 1, 1)
	toColour := fixed("colour", []float32{1, 0, -1, -0.5, 1, -0.5}, 2, models.InputChannels, 1, 1)
	bank := fixed("oriented", orientedFilters(), 2*models.Oriented, 1, filterSide, filterSide)
	spot := fixed("spot", spotFilters(), 2, 2, filterSide, filterSide)
	pair := fixed("pair", pairs(), models.Oriented, 2*models.Oriented, 1, 1)
	floor8 := fixed("floor", repeat(energyFloor, models.Oriented), models.Oriented)
	same := fixed("same", []float32{1, 0, 0, 1}, 2, 2, 1, 1)
	floor2 := fixed("floor.2", repeat(energyFloor, 2), 2)

	add := func(squares, mix, floor *gorgonia.Node) *gorgonia.Node {
		return b.node(Convolve(b.checked(squares), b.checked(mix), b.checked(floor), point))
	}
	var levels []level
	at := func(n int) level {
		for len(levels) <= n {
			var l level
			if len(levels) == 0 {
				l.grey = b.apply(Lightness, 0, b.node(Convolve(image, toGrey, none1, point)))
				l.colour = b.node(Convolve(image, toColour, none2, point))
			} else {
				last := levels[len(levels)-1]
				l.grey, l.colour = b.apply(AveragePool, 2, last.grey), b.apply(AveragePool, 2, last.colour)
			}
			waves := b.node(Convolve(b.apply(PadEdge, filterSide/2, l.grey), bank, none16, slide))
			l.oriented = add(b.node(gorgonia.Square(b.checked(waves))), pair, floor8)
			spots := b.node(Convolve(b.apply(PadEdge, filterSide/2, l.colour), spot, none2, slide))
			l.colourEnergy = add(b.node(gorgonia.Square(b.checked(spots))), same, floor2)
			levels = append(levels, l)
		}
		return levels[n]
	}
	for _, s := range models.GaborScales(side) {
		var x *gorgonia.Node
		for i, n := range s.Levels {
			l, size := at(n), s.Cell>>n
			// The root of the maximum is the maximum of the roots, of fewer numbers.
			squares := b.apply(Join, 0, b.apply(MaxPool, size, l.oriented), b.apply(MaxPool, size, l.colourEnergy))
			energies := b.apply(Logarithm, 0, b.node(gorgonia.Sqrt(squares)))
			if i == 0 {
				x = energies
			} else {
				x = b.apply(Join, 0, x, energies)
			}
		}
		base := at(0)
		x = b.apply(Stack, 0, x, b.apply(AveragePool, s.Cell, base.grey), b.apply(AveragePool, s.Cell, base.colour))
		if s.Relative {
			x = b.apply(Centre, 0, x)
		}
		j.Features = append(j.Features, x)
	}
	return j
}

// orientedFilters returns an even and an odd Gabor filter for each orientation,
// the even ones first. All have mean 0 and norm 1.
func orientedFilters() []float32 {
	const n, half = filterSide, filterSide / 2
	out := make([]float32, 0, 2*models.Oriented*n*n)
	for _, odd := range []bool{false, true} {
		for i := range models.Oriented {
			sin, cos := math.Sincos(math.Pi * float64(i) / models.Oriented)
			wave, envelope := make([]float64, n*n), make([]float64, n*n)
			sum, weight := 0.0, 0.0
			for k := range n * n {
				x, y := float64(k%n-half), float64(k/n-half)
				u, v := x*cos+y*sin, y*cos-x*sin
				g := math.Exp(-u*u/(2*filterAcross*filterAcross) - v*v/(2*filterAlong*filterAlong))
				w := math.Cos(filterWave * u)
				if odd {
					w = math.Sin(filterWave * u)
				}
				envelope[k], wave[k] = g, g*w
				sum, weight = sum+g*w, weight+g
			}
			for k := range wave {
				wave[k] -= envelope[k] * sum / weight
			}
			out = append(out, unit(wave)...)
		}
	}
	return out
}

// spotFilters returns the difference of Gaussians for each of two channels.
func spotFilters() []float32 {
	const n, half = filterSide, filterSide / 2
	inner, outer := make([]float64, n*n), make([]float64, n*n)
	sumInner, sumOuter := 0.0, 0.0
	for k := range n * n {
		x, y := float64(k%n-half), float64(k/n-half)
		inner[k] = math.Exp(-(x*x + y*y) / (2 * surroundInner * surroundInner))
		outer[k] = math.Exp(-(x*x + y*y) / (2 * surroundOuter * surroundOuter))
		sumInner, sumOuter = sumInner+inner[k], sumOuter+outer[k]
	}
	for k := range inner {
		inner[k] = inner[k]/sumInner - outer[k]/sumOuter
	}
	spot, nothing := unit(inner), make([]float32, n*n)
	return append(append(append(append([]float32(nil), spot...), nothing...), nothing...), spot...)
}

// unit scales a filter to norm 1.
func unit(f []float64) []float32 {
	length := 0.0
	for _, v := range f {
		length += v * v
	}
	out := make([]float32, len(f))
	for i, v := range f {
		out[i] = float32(v / math.Sqrt(length))
	}
	return out
}

// pairs returns the 1×1 kernel that adds the squared responses of the even and
// the odd filter of each orientation.
func pairs() []float32 {
	out := make([]float32, models.Oriented*2*models.Oriented)
	for i := range models.Oriented {
		out[i*2*models.Oriented+i] = 1
		out[i*2*models.Oriented+models.Oriented+i] = 1
	}
	return out
}

func repeat(v float32, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = v
	}
	return out
}
