package network

import (
	"hash"
	"math"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Six is the upper limit of ReLU6.
const Six = 6

// ReLU is max(x, 0) on a tensor of four dimensions. Gorgonia's Rectify is not
// used because its derivative at 0 is 1, where PyTorch's is 0, and because it
// differentiates through a comparison.
type ReLU = rectifier[unlimited]

// ReLUGrad is the derivative of ReLU. Its inputs are the result and the
// gradient of the result, both N×C×H×W; its result has the same shape.
type ReLUGrad = rectifierGrad[unlimited]

// ReLU6 is min(max(x, 0), Six) on a tensor of four dimensions (Krizhevsky,
// "Convolutional Deep Belief Networks on CIFAR-10", 2010).
type ReLU6 = rectifier[limitedBySix]

// Rectify applies ReLU.
func Rectify(x *gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.ApplyOp(ReLU{}, x) }

// RectifySix applies ReLU6.
func RectifySix(x *gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.ApplyOp(ReLU6{}, x) }

// limit is the upper limit of a rectifier.
type limit interface {
	value() float32
	name() string // of the operator
}

type (
	unlimited    struct{}
	limitedBySix struct{}
)

func (unlimited) value() float32    { return float32(math.Inf(1)) }
func (unlimited) name() string      { return "ReLU" }
func (limitedBySix) value() float32 { return Six }
func (limitedBySix) name() string   { return "ReLU6" }

type rectifier[L limit] struct{ pure }

type rectifierGrad[L limit] struct{ pair }

// Arity returns 1.
func (rectifier[L]) Arity() int { return 1 }

// Type returns Tensor-4 a → Tensor-4 a.
func (rectifier[L]) Type() hm.Type { return hm.NewFnType(tensorOf(4), tensorOf(4)) }

// InferShape returns the shape of the input.
func (op rectifier[L]) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	s, err := dims4(op.String(), "x", in[0])
	return s[:], err
}

// Do computes the operator. It is the reference implementation.
func (op rectifier[L]) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	x, s, err := dense(op.String(), "x", in[0])
	if err != nil {
		return nil, err
	}
	var l L
	most := l.value()
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = min(max(v, 0), most)
	}
	return newDense(out, s...), nil
}

// DiffWRT returns true for the input.
func (rectifier[L]) DiffWRT(n int) []bool { return all(n) }

// SymDiff returns the derivative from the result, which is kept anyway, rather
// than from the input.
func (rectifier[L]) SymDiff(_ gorgonia.Nodes, out, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	dx, err := gorgonia.ApplyOp(rectifierGrad[L]{}, out, grad)
	if err != nil {
		return nil, err
	}
	return gorgonia.Nodes{dx}, nil
}

// WriteHash hashes the description.
func (op rectifier[L]) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op rectifier[L]) Hashcode() uint32 { return hashcode(op) }

func (rectifier[L]) String() string {
	var l L
	return l.name()
}

// InferShape returns the shape of the gradient.
func (op rectifierGrad[L]) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	_, g, err := gradOperands(op, "result", "gradient", in)
	return g[:], err
}

// Do computes the operator. It is the reference implementation.
func (op rectifierGrad[L]) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	y, g, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	var l L
	most, unlimited := l.value(), math.IsInf(float64(l.value()), 1)
	out := make([]float32, len(g))
	for i, v := range y {
		if v > 0 && (v < most || unlimited) {
			out[i] = g[i]
		}
	}
	return newDense(out, s...), nil
}

// WriteHash hashes the description.
func (op rectifierGrad[L]) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op rectifierGrad[L]) Hashcode() uint32 { return hashcode(op) }

func (rectifierGrad[L]) String() string {
	var l L
	return l.name() + "Grad"
}
