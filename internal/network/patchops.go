package network

import (
	"fmt"
	"math"

	"gorgonia.org/tensor"
)

// The kinds of scoring operators for patch features; see models.MeasurePatchMahalanobis.
const (
	// PatchDistance is a squared Mahalanobis distance, N×1×P×P, whose covariance
	// differs from one shared by all patches along R directions. Its operands are
	// features (N×C×P×P), their mean (C×P×P), the shared whitening (C×C×1×1), and
	// the scale (1×P×P) and directions (P²×R×C) of each patch. With y the whitened
	// deviation from a patch's mean, it is max(scale·|y|² − |directions·y|², 0).
	PatchDistance Kind = "PatchDistance"
	// Nearest is the squared distance of the whitened features to their nearest
	// neighbour in a bank, N×1×1×1. Its operands are features (N×C×1×1), their
	// mean (C×1×1), a whitening (C×C×1×1) and the bank of whitened features (M×C).
	Nearest Kind = "Nearest"
	// WeightedMean is the weighted mean over the channels of (map − offset)·slope,
	// N×1×H×W. Its operands are maps (N×M×H×W), and offsets, slopes and weights of
	// the channels (M×1×1 each).
	WeightedMean Kind = "WeightedMean"
	// First is the first Size elements of a tensor (M×1×1) along its first axis.
	First Kind = "First"
	// Crop removes Size pixels from each side, CropWidth left and right, CropHeight
	// above and below.
	Crop       Kind = "Crop"
	CropWidth  Kind = "CropWidth"
	CropHeight Kind = "CropHeight"
	// Average is the mean over all pixels of each channel, N×C×1×1.
	Average Kind = "Average"
	// PlaceDeviation is (features − mean)·scale with the mean and the scale of the place of
	// each image, N×C×P×P. Its operands are features (N×C×P×P), the indexes of their places
	// (N), means (K×C×P×P) and scales (K×1×P×P) of K places.
	PlaceDeviation Kind = "PlaceDeviation"
)

// patchRules returns the rules of these kinds.
func patchRules() map[Kind]scoringRule {
	return map[Kind]scoringRule{
		PatchDistance: {[]int{4, 3, 4, 3, 3}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			x, d := in[0], in[4]
			c, h, w := x[1], x[2], x[3]
			if !in[1].Eq(tensor.Shape{c, h, w}) || !in[2].Eq(tensor.Shape{c, c, 1, 1}) ||
				!in[3].Eq(tensor.Shape{1, h, w}) || d[0] != h*w || d[2] != c {
				return nil, fmt.Errorf("features of shape %v, mean %v, whitening %v, scale %v and directions %v do not match", x, in[1], in[2], in[3], d)
			}
			return tensor.Shape{x[0], 1, h, w}, nil
		}, patchDistance},
		Nearest: {[]int{4, 3, 4, 2}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			x, c := in[0], in[0][1]
			if x[2] != 1 || x[3] != 1 || !in[1].Eq(tensor.Shape{c, 1, 1}) || !in[2].Eq(tensor.Shape{c, c, 1, 1}) || in[3][1] != c {
				return nil, fmt.Errorf("features of shape %v, mean %v, whitening %v and a bank of %v do not match", x, in[1], in[2], in[3])
			}
			return tensor.Shape{x[0], 1, 1, 1}, nil
		}, nearest},
		WeightedMean: {[]int{4, 3, 3, 3}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			x, each := in[0], tensor.Shape{in[0][1], 1, 1}
			if !in[1].Eq(each) || !in[2].Eq(each) || !in[3].Eq(each) {
				return nil, fmt.Errorf("maps of shape %v, offsets %v, slopes %v and weights %v do not match", x, in[1], in[2], in[3])
			}
			return tensor.Shape{x[0], 1, x[2], x[3]}, nil
		}, weightedMean},
		First: {[]int{3}, 3, func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			if op.Size > in[0][0] {
				return nil, fmt.Errorf("the first %d elements of shape %v", op.Size, in[0])
			}
			return tensor.Shape{op.Size, in[0][1], in[0][2]}, nil
		}, func(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, _ []tensor.Shape) { copy(out, in[0]) }},
		Crop: cropRule, CropWidth: cropRule, CropHeight: cropRule,
		Average: {[]int{4}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			return tensor.Shape{in[0][0], in[0][1], 1, 1}, nil
		}, average},
		PlaceDeviation: {[]int{4, 1, 4, 4}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			x, m := in[0], in[2]
			if in[1][0] != x[0] || !m.Eq(tensor.Shape{m[0], x[1], x[2], x[3]}) || !in[3].Eq(tensor.Shape{m[0], 1, x[2], x[3]}) {
				return nil, fmt.Errorf("features of shape %v, %d places, means %v and scales %v do not match", x, in[1][0], m, in[3])
			}
			return x.Clone(), nil
		}, placeDeviation},
	}
}

// whitened writes the product of the whitening (C×C) and a deviation to out.
func whitened(out, deviation []float64, whitening []float32) {
	c := len(deviation)
	for r := range out {
		sum := 0.0
		for i, v := range deviation {
			sum += float64(whitening[r*c+i]) * v
		}
		out[r] = sum
	}
}

func patchDistance(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	c, patches, rank := shapes[0][1], shapes[0][2]*shapes[0][3], shapes[4][1]
	deviation, y := make([]float64, c), make([]float64, c)
	for i := range out {
		n, p := i/patches, i%patches
		for j := range c {
			deviation[j] = float64(in[0][(n*c+j)*patches+p]) - float64(in[1][j*patches+p])
		}
		whitened(y, deviation, in[2])
		length := 0.0
		for _, v := range y {
			length += v * v
		}
		sum := float64(in[3][p]) * length
		for r := range rank {
			along := 0.0
			direction := in[4][(p*rank+r)*c:]
			for j, v := range y {
				along += float64(direction[j]) * v
			}
			sum -= along * along
		}
		out[i] = float32(max(sum, 0))
	}
}

func nearest(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	c, bank := shapes[0][1], shapes[3][0]
	deviation, y := make([]float64, c), make([]float64, c)
	for i := range out {
		for j := range c {
			deviation[j] = float64(in[0][i*c+j]) - float64(in[1][j])
		}
		whitened(y, deviation, in[2])
		least := math.Inf(1)
		for m := range bank {
			sum := 0.0
			for j, v := range y {
				d := v - float64(in[3][m*c+j])
				sum += d * d
			}
			least = min(least, sum)
		}
		out[i] = float32(least)
	}
}

func placeDeviation(_ ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	c, patches, places := s[1], s[2]*s[3], shapes[2][0]
	for i, v := range in[0] {
		n, channel, p := i/(c*patches), i/patches%c, i%patches
		place := min(max(int(in[1][n]), 0), places-1)
		out[i] = (v - in[2][(place*c+channel)*patches+p]) * in[3][place*patches+p]
	}
}

func weightedMean(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	m, patches := shapes[0][1], shapes[0][2]*shapes[0][3]
	all := float32(0)
	for _, w := range in[3] {
		all += w
	}
	for i := range out {
		n, p := i/patches, i%patches
		sum := float32(0)
		for j := range m {
			sum += (in[0][(n*m+j)*patches+p] - in[1][j]) * in[2][j] * in[3][j]
		}
		out[i] = sum / all
	}
}

var cropRule = scoringRule{[]int{4}, 4, func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
	s := in[0]
	w, h := op.Borders()
	if 2*h >= s[2] || 2*w >= s[3] {
		return nil, fmt.Errorf("%d pixels off each side of shape %v", op.Size, s)
	}
	return tensor.Shape{s[0], s[1], s[2] - 2*h, s[3] - 2*w}, nil
}, crop}

func average(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, _ []tensor.Shape) {
	n := len(in[0]) / len(out)
	for i := range out {
		sum := 0.0
		for _, v := range in[0][i*n : (i+1)*n] {
			sum += float64(v)
		}
		out[i] = float32(sum / float64(n))
	}
}

func crop(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	h, w := shapes[0][2], shapes[0][3]
	left, top := op.Borders()
	for i := range out {
		x, y, plane := i%s[3], i/s[3]%s[2], i/s[3]/s[2]
		out[i] = in[0][(plane*h+y+top)*w+x+left]
	}
}
