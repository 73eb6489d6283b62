package network

import (
	"hash"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// ReLU is max(x, 0) on a tensor of four dimensions. Gorgonia's Rectify is not
// used because its derivative at 0 is 1, where PyTorch's is 0, and because it
// differentiates through a comparison.
type ReLU struct{ pure }

// ReLUGrad lets a gradient pass where ReLU's result is above 0: inputs result
// and gradient, both N×C×H×W, and so its own.
type ReLUGrad struct{ pair }

// Rectify applies ReLU.
func Rectify(x *gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.ApplyOp(ReLU{}, x) }

// Arity is 1.
func (ReLU) Arity() int { return 1 }

// Type is Tensor-4 a → Tensor-4 a.
func (ReLU) Type() hm.Type { return hm.NewFnType(tensorOf(4), tensorOf(4)) }

// InferShape gives the input's.
func (op ReLU) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	s, err := dims4(op.String(), "x", in[0])
	return s[:], err
}

// Do is the reference implementation.
func (op ReLU) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	x, s, err := dense(op.String(), "x", in[0])
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = max(v, 0)
	}
	return newDense(out, s...), nil
}

// DiffWRT is true.
func (ReLU) DiffWRT(n int) []bool { return all(n) }

// SymDiff gives ReLUGrad of the result, which is kept anyway, rather than of
// the input.
func (ReLU) SymDiff(_ gorgonia.Nodes, out, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	dx, err := gorgonia.ApplyOp(ReLUGrad{}, out, grad)
	if err != nil {
		return nil, err
	}
	return gorgonia.Nodes{dx}, nil
}

// WriteHash writes what tells this operator from others.
func (op ReLU) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op ReLU) Hashcode() uint32 { return hashcode(op) }

func (ReLU) String() string { return "ReLU" }

// InferShape gives the gradient's.
func (op ReLUGrad) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	_, g, err := gradOperands(op, "result", "gradient", in)
	return g[:], err
}

// Do is the reference implementation.
func (op ReLUGrad) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	y, g, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(g))
	for i, v := range y {
		if v > 0 {
			out[i] = g[i]
		}
	}
	return newDense(out, s...), nil
}

// WriteHash writes what tells this operator from others.
func (op ReLUGrad) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op ReLUGrad) Hashcode() uint32 { return hashcode(op) }

func (ReLUGrad) String() string { return "ReLUGrad" }
