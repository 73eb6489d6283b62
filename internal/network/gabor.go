package network

import (
	"fmt"
	"math"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// MSEName is the output that holds the plain mean squared error where ErrorName
// holds another measure.
const MSEName = "mse"

// The filters that tell orientations apart are Gabor functions, as simple cells
// of the visual cortex and texture analysis have them (Jain and Farrokhnia,
// 1991): a wave across the orientation under a Gaussian that is longer along it.
// Sizes are in pixels of the level.
const (
	filterSide    = 7
	filterAcross  = 1.2 // standard deviation across the orientation
	filterAlong   = 2.0 // and along it
	filterWave    = 1.8 // radians per pixel: a wave of 3.5 pixels
	surroundInner = 1.0 // standard deviations of the difference of Gaussians
	surroundOuter = 2.2 // that finds spots of colour
	// vectorSide squared is a multiple of the elements that a processor takes at
	// once.
	vectorSide = 4
	// energyFloor keeps the square root of an energy differentiable and its
	// logarithm away from rounding.
	energyFloor = 1e-6
)

// Fixed is a tensor of a graph that nothing is learnt of.
type Fixed struct {
	Node *gorgonia.Node
	Data []float32
}

// Judgement is what follows an image beside its reconstruction: the energies of
// its places, and how far they are from those of normal images; see
// models.GaborScale and PaDiM (Defard et al., 2020), which does this with a
// pretrained network's features.
type Judgement struct {
	// Filters are the fixed kernels.
	Filters []Fixed
	// Features are N×D×P×P, by scale.
	Features gorgonia.Nodes
	// Parameters are in the order of models.GaborParameters, with those of
	// models.GaborHeadsParameters behind them where there are markers, and bear their
	// names.
	Parameters gorgonia.Nodes
	// Members are the figures that models.MeasurePatchMahalanobis joins, N×M×1×1, in
	// the order of models.Members; nil for models.MeasureBandMahalanobis.
	Members *gorgonia.Node
	// Score is the measure of each image, N elements.
	Score *gorgonia.Node
	// Map is the same at every pixel, N×S×S; Score is about its maximum.
	Map *gorgonia.Node
}

// Judge adds to the network's graph what judges its images, by the measure that
// those tensors of normality are for.
func (f *Forward) Judge(normality models.StateDict) (*Judgement, error) {
	if models.HasPatches(normality) {
		return f.JudgePatches(models.HasHeads(normality), models.BankSize(normality))
	}
	return f.judgeBands(models.HasGaborHeads(normality))
}

// judgeBands judges by models.MeasureBandMahalanobis, as models of earlier versions do.
func (f *Forward) judgeBands(markers bool) (*Judgement, error) {
	b := &builder{graph: f.Graph}
	side := f.Image.Shape()[2]
	j := b.energies(f.Image, side)
	var peak *gorgonia.Node
	var deviations gorgonia.Nodes
	learnt := make([]gorgonia.Nodes, len(models.GaborScales(side)))
	for i, s := range models.GaborScales(side) {
		ps := b.inputs(s.Parameters())
		learnt[i] = ps
		j.Parameters = append(j.Parameters, ps...)
		distance := b.step(Mahalanobis, s.Blocks(), j.Features[i], ps[0], ps[1], ps[2])
		deviation := b.step(Standardize, 0, b.step(Logarithm, 0, distance), ps[3], ps[4])
		// A processor takes several elements of a Softplus at once, and the last
		// few one by one, which may round differently. So that an image's score
		// has the same bits in a batch of any size, it gets elements of its own.
		highest := b.step(Enlarge, vectorSide, b.step(Peak, 0, deviation))
		deviations = append(deviations, deviation)
		if i == 0 {
			peak = highest
		} else {
			peak = b.step(Larger, 0, peak, highest)
		}
	}
	if markers {
		marks, ps := b.markers(j.Features, learnt, side)
		j.Parameters = append(j.Parameters, ps...)
		peak = b.step(Larger, 0, peak, b.step(Enlarge, vectorSide, b.step(Peak, 0, marks)))
		deviations[0] = b.step(Larger, 0, deviations[0], marks)
	}
	// From the coarsest scale to the finest, each with twice the places along a
	// side, and to pixels only then: all else is little work.
	places := deviations[len(deviations)-1]
	for i := len(deviations) - 2; i >= 0; i-- {
		places = b.step(Larger, 0, b.step(Enlarge, 2, places), deviations[i])
	}
	places = b.step(Enlarge, models.GaborScales(side)[0].Cell, places)
	j.Score = b.step(Single, 0, b.step(Peak, 0, b.step(Softplus, 0, peak)))
	j.Map = b.step(Plane, 0, b.step(Softplus, 0, places))
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	return j, nil
}

// level is an image halved a number of times, and the energies of its bands.
type level struct {
	grey, colour           *gorgonia.Node // N×1×h×w and N×2×h×w
	oriented, colourEnergy *gorgonia.Node // N×8×h×w and N×2×h×w, squared
}

func (b *builder) energies(image *gorgonia.Node, side int) *Judgement {
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
				l.grey = b.step(Lightness, 0, b.node(Convolve(image, toGrey, none1, point)))
				l.colour = b.node(Convolve(image, toColour, none2, point))
			} else {
				last := levels[len(levels)-1]
				l.grey, l.colour = b.step(AveragePool, 2, last.grey), b.step(AveragePool, 2, last.colour)
			}
			waves := b.node(Convolve(b.step(PadEdge, filterSide/2, l.grey), bank, none16, slide))
			l.oriented = add(b.node(gorgonia.Square(b.checked(waves))), pair, floor8)
			spots := b.node(Convolve(b.step(PadEdge, filterSide/2, l.colour), spot, none2, slide))
			l.colourEnergy = add(b.node(gorgonia.Square(b.checked(spots))), same, floor2)
			levels = append(levels, l)
		}
		return levels[n]
	}
	for _, s := range models.GaborScales(side) {
		var x *gorgonia.Node
		for i, n := range s.Levels {
			l, size := at(n), s.Cell>>n
			// The root of the largest square is the largest root, of fewer numbers.
			squares := b.step(Join, 0, b.step(MaxPool, size, l.oriented), b.step(MaxPool, size, l.colourEnergy))
			energies := b.step(Logarithm, 0, b.node(gorgonia.Sqrt(squares)))
			if i == 0 {
				x = energies
			} else {
				x = b.step(Join, 0, x, energies)
			}
		}
		base := at(0)
		x = b.step(Stack, 0, x, b.step(AveragePool, s.Cell, base.grey), b.step(AveragePool, s.Cell, base.colour))
		if s.Relative {
			x = b.step(Centre, 0, x)
		}
		j.Features = append(j.Features, x)
	}
	return j
}

// orientedFilters are an even and an odd wave for each orientation: the even
// ones first. The even ones have mean 0, all have length 1.
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

// spotFilters take a difference of Gaussians of each of two channels.
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

// unit scales a filter to length 1.
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

// pairs adds the squares of the even and the odd wave of each orientation.
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
