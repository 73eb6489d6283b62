package network

import (
	"fmt"
	"hash"
	"maps"
	"math"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// ScoringOp is an operator of the scoring graph. Scoring operators are never
// differentiated, and each is defined by its Kind and at most one number.
type ScoringOp struct {
	constant
	Kind Kind
	// Size is a number of pixels or patches, depending on Kind.
	Size int
}

// Kind is the function of a ScoringOp.
type Kind string

// The kinds of scoring operators. Images and maps are N×C×H×W.
const (
	// PadEdge pads each side by Size pixels, which repeat the edge. PadWidth pads left
	// and right, PadHeight above and below.
	PadEdge   Kind = "PadEdge"
	PadWidth  Kind = "PadWidth"
	PadHeight Kind = "PadHeight"
	// AveragePool and MaxPool are the mean and the maximum over windows of
	// Size×Size pixels, with a stride of Size.
	AveragePool Kind = "AveragePool"
	MaxPool     Kind = "MaxPool"
	// Join concatenates two images along the channels, Stack three.
	Join  Kind = "Join"
	Stack Kind = "Stack"
	// Centre subtracts each channel's mean over all pixels of an image.
	Centre Kind = "Centre"
	// Logarithm is ln(x + LogarithmOffset).
	Logarithm Kind = "Logarithm"
	// Lightness is ln(1 + x/LightnessOffset)/ln(1 + 1/LightnessOffset) of
	// brightness in 0…1: a contrast has the same value in light and in shadow.
	Lightness Kind = "Lightness"
	// Mahalanobis is the squared Mahalanobis distance of each patch, N×1×P×P,
	// from features (N×D×P×P), their mean and precision (D×P×P) and the whitening
	// (B²×D×D) of B×B blocks of patches. Size is B.
	Mahalanobis Kind = "Mahalanobis"
	// Deviation is half of (features − mean)·precision, clamped to
	// ±DeviationLimit, of features (N×D×P×P), their mean and precision (D×P×P).
	Deviation Kind = "Deviation"
	// Standardize is (map − offset)·slope; offset and slope have one element.
	Standardize Kind = "Standardize"
	// Larger is the elementwise smooth maximum (log-sum-exp) of two tensors:
	// ½ ln(exp 2x + exp 2y), which is x + ½ ln 2 for x = y.
	Larger Kind = "Larger"
	// Peak is the global maximum of each channel, N×C×1×1.
	Peak Kind = "Peak"
	// Enlarge is bilinear upsampling by a factor of Size, aligned to pixel
	// centres: N×C×H·Size×W·Size.
	Enlarge Kind = "Enlarge"
	// Plane removes the channel axis: N×1×H×W to N×H×W.
	Plane Kind = "Plane"
	// Single removes all axes but the first: N×1×1×1 to N.
	Single Kind = "Single"
	// Softplus is ln(1 + exp x).
	Softplus Kind = "Softplus"
)

// LogarithmOffset is added before a logarithm. The quantization noise of 8 bits
// and of JPEG is below it.
const LogarithmOffset = 0.04

// LightnessOffset is the brightness, as a fraction of white, at which lightness
// changes from linear to logarithmic. Weber's law holds down to the noise level;
// that of cameras and screens is a few per cent.
const LightnessOffset = 0.1

// DeviationLimit is the clamp of Deviation, in standard deviations, so that
// outliers do not dominate the defect heads' inputs.
const DeviationLimit = 8

// deviationOf computes Deviation for one number.
func deviationOf(x, mean, precision float32) float32 {
	return min(max((x-mean)*precision, -DeviationLimit), DeviationLimit) * 0.5
}

// lightnessUnit is the unscaled lightness of white.
var lightnessUnit = math.Log1p(1 / LightnessOffset)

// LightnessScale returns the factor that scales the lightness of white to 1.
func LightnessScale() float32 { return float32(1 / lightnessUnit) }

// scoringRule implements a Kind.
type scoringRule struct {
	in    []int // number of dimensions of each operand
	out   int   // number of dimensions of the result
	shape func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error)
	do    func(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape)
}

// smoothMaximum computes Larger for two numbers.
func smoothMaximum(x, y float32) float32 {
	return max(x, y) + float32(math.Log1p(math.Exp(-2*math.Abs(float64(x-y))))/2)
}

// same returns the result shape of an elementwise operator.
func same(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) { return in[0].Clone(), nil }

func each(f func(x float32) float32) func(ScoringOp, []float32, tensor.Shape, [][]float32, []tensor.Shape) {
	return func(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, _ []tensor.Shape) {
		for i, x := range in[0] {
			out[i] = f(x)
		}
	}
}

var scoringRules map[Kind]scoringRule

func init() { // a table literal would be an initialization cycle
	scoringRules = map[Kind]scoringRule{
		PadEdge: padRule, PadWidth: padRule, PadHeight: padRule,
		AveragePool: {[]int{4}, 4, pooled, func(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
			pool(op.Size, out, s, in[0], shapes[0], 0, func(a, x float32) float32 { return a + x })
			for i := range out {
				out[i] /= float32(op.Size * op.Size)
			}
		}},
		MaxPool: {[]int{4}, 4, pooled, func(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
			pool(op.Size, out, s, in[0], shapes[0], float32(math.Inf(-1)), func(a, x float32) float32 { return max(a, x) })
		}},
		Join:      {[]int{4, 4}, 4, stacked, stack},
		Stack:     {[]int{4, 4, 4}, 4, stacked, stack},
		Centre:    {[]int{4}, 4, same, centre},
		Logarithm: {[]int{4}, 4, same, each(func(x float32) float32 { return float32(math.Log(float64(x) + LogarithmOffset)) })},
		Lightness: {[]int{4}, 4, same, each(func(x float32) float32 {
			return float32(math.Log1p(float64(x)/LightnessOffset) / lightnessUnit)
		})},
		Mahalanobis: {[]int{4, 3, 3, 3}, 4, func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			x, w := in[0], in[3]
			if p := x[2]; p%op.Size != 0 || x[3] != p || !in[1].Eq(tensor.Shape{x[1], p, p}) || !in[2].Eq(in[1]) ||
				!w.Eq(tensor.Shape{op.Size * op.Size, x[1], x[1]}) {
				return nil, fmt.Errorf("features of shape %v, mean %v, precision %v and whitening %v do not match", x, in[1], in[2], w)
			}
			return tensor.Shape{x[0], 1, x[2], x[3]}, nil
		}, mahalanobis},
		Deviation: {[]int{4, 3, 3}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			if x := in[0]; !in[1].Eq(tensor.Shape(x[1:])) || !in[2].Eq(in[1]) {
				return nil, fmt.Errorf("features of shape %v, mean %v and precision %v do not match", x, in[1], in[2])
			}
			return in[0].Clone(), nil
		}, func(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, _ []tensor.Shape) {
			n := len(in[1])
			for i, x := range in[0] {
				out[i] = deviationOf(x, in[1][i%n], in[2][i%n])
			}
		}},
		Standardize: {[]int{4, 1, 1}, 4, same, func(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, _ []tensor.Shape) {
			for i, x := range in[0] {
				out[i] = (x - in[1][0]) * in[2][0]
			}
		}},
		Larger: {[]int{4, 4}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			if !in[0].Eq(in[1]) {
				return nil, fmt.Errorf("shapes %v and %v differ", in[0], in[1])
			}
			return in[0].Clone(), nil
		}, func(_ ScoringOp, out []float32, _ tensor.Shape, in [][]float32, _ []tensor.Shape) {
			for i, x := range in[0] {
				out[i] = smoothMaximum(x, in[1][i])
			}
		}},
		Peak: {[]int{4}, 4, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			return tensor.Shape{in[0][0], in[0][1], 1, 1}, nil
		}, func(_ ScoringOp, out []float32, s tensor.Shape, in [][]float32, _ []tensor.Shape) {
			n := len(in[0]) / len(out)
			for i := range out {
				out[i] = in[0][i*n]
				for _, x := range in[0][i*n : (i+1)*n] {
					out[i] = max(out[i], x)
				}
			}
		}},
		Enlarge: {[]int{4}, 4, func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			return tensor.Shape{in[0][0], in[0][1], in[0][2] * op.Size, in[0][3] * op.Size}, nil
		}, enlarge},
		Plane: {[]int{4}, 3, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			if in[0][1] != 1 {
				return nil, fmt.Errorf("%d channels, expected one", in[0][1])
			}
			return tensor.Shape{in[0][0], in[0][2], in[0][3]}, nil
		}, each(func(x float32) float32 { return x })},
		Single: {[]int{4}, 1, func(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
			if in[0].TotalSize() != in[0][0] {
				return nil, fmt.Errorf("shape %v, expected one element of each image", in[0])
			}
			return tensor.Shape{in[0][0]}, nil
		}, each(func(x float32) float32 { return x })},
		Softplus: {[]int{4}, 4, same, each(func(x float32) float32 {
			return max(x, 0) + float32(math.Log1p(math.Exp(-math.Abs(float64(x)))))
		})},
	}
	maps.Copy(scoringRules, patchRules())
	maps.Copy(scoringRules, maskRules())
}

// apply adds a scoring operator to the graph.
func (b *builder) apply(kind Kind, size int, in ...*gorgonia.Node) *gorgonia.Node {
	for i := range in {
		in[i] = b.checked(in[i])
	}
	if b.err != nil {
		return b.checked(nil)
	}
	return b.node(gorgonia.ApplyOp(ScoringOp{Kind: kind, Size: size}, in...))
}

// Arity returns the number of operands.
func (op ScoringOp) Arity() int { return len(scoringRules[op.Kind].in) }

// Type returns the function type of the kind.
func (op ScoringOp) Type() hm.Type {
	r := scoringRules[op.Kind]
	var ts []hm.Type
	for _, d := range append(r.in[:len(r.in):len(r.in)], r.out) {
		ts = append(ts, tensorOf(d))
	}
	return hm.NewFnType(ts...)
}

// InferShape returns the shape of the result.
func (op ScoringOp) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	shapes := make([]tensor.Shape, len(in))
	for i, d := range in {
		s, ok := d.(tensor.Shape)
		if !ok {
			return nil, fmt.Errorf("%v: operand %d has shape %v", op, i, d)
		}
		shapes[i] = s
	}
	return op.shape(shapes)
}

func (op ScoringOp) shape(shapes []tensor.Shape) (tensor.Shape, error) {
	r := scoringRules[op.Kind]
	for i, s := range shapes {
		if s.Dims() != r.in[i] {
			return nil, fmt.Errorf("%v: operand %d has shape %v, expected %d dimensions", op, i, s, r.in[i])
		}
	}
	s, err := r.shape(op, shapes)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", op, err)
	}
	return s, nil
}

// Do computes the operator. It is the reference implementation.
func (op ScoringOp) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	data, shapes := make([][]float32, len(in)), make([]tensor.Shape, len(in))
	for i, v := range in {
		var err error
		if data[i], shapes[i], err = dense(op.String(), fmt.Sprint("operand ", i), v); err != nil {
			return nil, err
		}
	}
	s, err := op.shape(shapes)
	if err != nil {
		return nil, err
	}
	out := make([]float32, s.TotalSize())
	scoringRules[op.Kind].do(op, out, s, data, shapes)
	return newDense(out, s...), nil
}

// WriteHash hashes the description.
func (op ScoringOp) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op ScoringOp) Hashcode() uint32 { return hashcode(op) }

func (op ScoringOp) String() string { return fmt.Sprintf("%s %d", op.Kind, op.Size) }

// Borders returns the pixels that a padding or cropping operator adds or removes left and
// right, and above and below.
func (op ScoringOp) Borders() (w, h int) {
	switch op.Kind {
	case PadWidth, CropWidth:
		return op.Size, 0
	case PadHeight, CropHeight:
		return 0, op.Size
	}
	return op.Size, op.Size
}

var padRule = scoringRule{[]int{4}, 4, func(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
	w, h := op.Borders()
	return tensor.Shape{in[0][0], in[0][1], in[0][2] + 2*h, in[0][3] + 2*w}, nil
}, padEdge}

func padEdge(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	h, w := shapes[0][2], shapes[0][3]
	left, top := op.Borders()
	for i := range out {
		x, y, plane := i%s[3], i/s[3]%s[2], i/s[3]/s[2]
		x, y = min(max(x-left, 0), w-1), min(max(y-top, 0), h-1)
		out[i] = in[0][(plane*h+y)*w+x]
	}
}

func pooled(op ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
	if in[0][2]%op.Size != 0 || in[0][3]%op.Size != 0 {
		return nil, fmt.Errorf("windows of %d pixels do not divide an image of shape %v", op.Size, in[0])
	}
	return tensor.Shape{in[0][0], in[0][1], in[0][2] / op.Size, in[0][3] / op.Size}, nil
}

func pool(size int, out []float32, s tensor.Shape, in []float32, shape tensor.Shape, start float32, f func(a, x float32) float32) {
	for i := range out {
		x, y, plane := i%s[3], i/s[3]%s[2], i/s[3]/s[2]
		a := start
		for dy := range size {
			at := (plane*shape[2]+y*size+dy)*shape[3] + x*size
			for _, v := range in[at : at+size] {
				a = f(a, v)
			}
		}
		out[i] = a
	}
}

func stacked(_ ScoringOp, in []tensor.Shape) (tensor.Shape, error) {
	s := in[0].Clone()
	for _, t := range in[1:] {
		if t[0] != s[0] || t[2] != s[2] || t[3] != s[3] {
			return nil, fmt.Errorf("shapes %v cannot be concatenated", in)
		}
		s[1] += t[1]
	}
	return s, nil
}

func stack(_ ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	at := 0
	for n := range s[0] {
		for i, t := range shapes {
			size := t[1] * t[2] * t[3]
			at += copy(out[at:], in[i][n*size:(n+1)*size])
		}
	}
}

func centre(_ ScoringOp, out []float32, s tensor.Shape, in [][]float32, _ []tensor.Shape) {
	n := s[2] * s[3]
	for i := 0; i < len(out); i += n {
		sum := 0.0
		for _, x := range in[0][i : i+n] {
			sum += float64(x)
		}
		for j, x := range in[0][i : i+n] {
			out[i+j] = x - float32(sum/float64(n))
		}
	}
}

func mahalanobis(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	d, p, blocks := shapes[0][1], s[2], op.Size
	side := p / blocks
	deviation := make([]float64, d)
	for i := range out {
		x, y, n := i%p, i/p%p, i/p/p
		for j := range d {
			at := (j*p+y)*p + x
			deviation[j] = float64((in[0][n*d*p*p+at] - in[1][at]) * in[2][at])
		}
		whitening := in[3][(y/side*blocks+x/side)*d*d:]
		sum := 0.0
		for r := range d {
			v := 0.0
			for c, x := range deviation {
				v += float64(whitening[r*d+c]) * x
			}
			sum += v * v
		}
		out[i] = float32(sum)
	}
}

func enlarge(op ScoringOp, out []float32, s tensor.Shape, in [][]float32, shapes []tensor.Shape) {
	h, w := shapes[0][2], shapes[0][3]
	size := s[2] * s[3]
	for i := 0; i < len(out); i += size {
		enlargePlane(out[i:i+size], in[0][i/size*h*w:], h, w, op.Size)
	}
}

func enlargePlane(out, in []float32, h, w, times int) {
	if times == 1 {
		copy(out, in)
		return
	}
	columns := make([]sample, w*times)
	for x := range columns {
		columns[x] = sampleOf(x, w, times)
	}
	// The rows are interpolated horizontally first, then vertically.
	spread := make([]float32, h*w*times)
	for y := range h {
		row, to := in[y*w:(y+1)*w], spread[y*w*times:(y+1)*w*times]
		for x, c := range columns {
			to[x] = row[c.lo]*(1-c.share) + row[c.hi]*c.share
		}
	}
	for y := range h * times {
		r := sampleOf(y, h, times)
		top, bottom := spread[r.lo*w*times:(r.lo+1)*w*times], spread[r.hi*w*times:(r.hi+1)*w*times]
		to := out[y*w*times : (y+1)*w*times]
		for x := range to {
			to[x] = top[x]*(1-r.share) + bottom[x]*r.share
		}
	}
}

// sample is a position between two pixels of a line; share is the weight of the
// second.
type sample struct {
	lo, hi int
	share  float32
}

// sampleOf returns the position of pixel i of an enlarged line in the original
// line of n pixels.
func sampleOf(i, n, times int) sample {
	at := max((float32(i)+0.5)/float32(times)-0.5, 0)
	lo := min(int(at), n-1)
	return sample{lo, min(lo+1, n-1), at - float32(lo)}
}
