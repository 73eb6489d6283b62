package network

import (
	"fmt"

	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// The kinds of scoring operators for images with pixels outside; see Forward.Masked.
const (
	// Inside is 1 for a pixel that is not below 0 and 0 for others, of the first Size
	// channels: N×Size×H×W.
	Inside Kind = "Inside"
	// Repeat repeats each pixel Size times in both directions.
	Repeat Kind = "Repeat"
	// Within replaces pixels outside by -Size: x·inside + (inside−1)·Size, of a map
	// (N×C×H×W) and 1 or 0 for each pixel (N×1×H×W).
	Within Kind = "Within"
	// AverageWithin is the mean over the pixels inside of each channel, N×C×1×1, with the
	// operands of Within. It is 0 if there are none.
	AverageWithin Kind = "AverageWithin"
)

const (
	// InsideSlope is the factor of the HardSigmoid that Inside is: 1 + InsideSlope·x in
	// 0…1. Values from -1/InsideSlope to 0 do not occur.
	InsideSlope = 1e6
	// outsideLogit is the negative logit of defect heads for patches outside. Its
	// probability of a defect, 1e-9, is below that of any patch inside.
	outsideLogit = 20
	// SmallestShare is added to the share of pixels inside, so that an image without any
	// has a mean of 0.
	SmallestShare = 1e-9
)

// maskRules returns the rules of these kinds.
func maskRules() map[Kind]scoringRule {
	masked := func(in []tensor.Shape) error {
		x, m := in[0], in[1]
		if m[0] != x[0] || m[1] != 1 || m[2] != x[2] || m[3] != x[3] {
			return fmt.Errorf("a mask of shape %v for shape %v", m, x)
		}
		return nil
	}
	return map[Kind]scoringRule{
		Inside: {[]int{4}, 4, func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			if op.Size > in[0][1] {
				return nil, fmt.Errorf("%d channels of shape %v", op.Size, in[0])
			}
			return tensor.Shape{in[0][0], op.Size, in[0][2], in[0][3]}, nil
		}, func(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
			size, of := op.Size*s[2]*s[3], shapes[0][1]*s[2]*s[3]
			for i := range out {
				out[i] = min(max(InsideSlope*in[0][i/size*of+i%size]+1, 0), 1)
			}
		}},
		Repeat: {[]int{4}, 4, func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			return tensor.Shape{in[0][0], in[0][1], in[0][2] * op.Size, in[0][3] * op.Size}, nil
		}, func(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
			h, w := shapes[0][2], shapes[0][3]
			for i := range out {
				x, y, plane := i%s[3], i/s[3]%s[2], i/s[3]/s[2]
				out[i] = in[0][(plane*h+y/op.Size)*w+x/op.Size]
			}
		}},
		Within: {[]int{4, 4}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			return in[0].Clone(), masked(in)
		}, func(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, _ []tensor.Shape) {
			area, channels := s[2]*s[3], s[1]
			for i, x := range in[0] {
				m := in[1][i/area/channels*area+i%area]
				out[i] = x*m + (m-1)*float32(op.Size)
			}
		}},
		AverageWithin: {[]int{4, 4}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			return tensor.Shape{in[0][0], in[0][1], 1, 1}, masked(in)
		}, func(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, shapes []tensor.Shape) {
			area, channels := shapes[0][2]*shapes[0][3], shapes[0][1]
			for i := range out {
				sum, n := 0.0, 0.0
				for p, m := range in[1][i/channels*area : (i/channels+1)*area] {
					sum, n = sum+float64(in[0][i*area+p]*m), n+float64(m)
				}
				out[i] = float32(sum / (n + SmallestShare*float64(area)))
			}
		}},
	}
}

// patchesInside adds the patches of a tap that have a pixel inside: N×1×P×P of 1 and 0. It
// returns nil if f is not masked.
func (b *builder) patchesInside(f *Forward, t models.Tap) *gorgonia.Node {
	if !f.Masked {
		return nil
	}
	in := models.BackboneInputOf(sizeOf(f.Image))
	x := b.apply(Inside, 1, f.Image)
	if in.Times > 1 {
		x = b.apply(Repeat, in.Times, x)
	}
	return b.apply(MaxPool, t.Stride, b.pad(x, in.Border))
}

// within adds Within, or returns x if there is no mask.
func (b *builder) within(outside int, x, inside *gorgonia.Node) *gorgonia.Node {
	if inside == nil {
		return x
	}
	return b.apply(Within, outside, x, inside)
}

// pooled adds the mean over all patches of each channel, or over those inside.
func (b *builder) pooled(x, inside *gorgonia.Node) *gorgonia.Node {
	s := x.Shape()
	switch {
	case inside != nil:
		return b.apply(AverageWithin, 0, x, inside)
	case s[2] == s[3]:
		return b.apply(AveragePool, s[2], x)
	}
	return b.apply(Average, 0, x)
}
