package network

import (
	"hash"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// Six is the upper limit of ReLU6.
const Six = 6

// ReLU6 is x held within 0 and Six, on a tensor of four dimensions (Krizhevsky,
// "Convolutional Deep Belief Networks on CIFAR-10", 2010).
type ReLU6 struct{ pure }

// ReLU6Grad lets a gradient pass where ReLU6's result is neither 0 nor Six: inputs
// result and gradient, both N×C×H×W, and so its own.
type ReLU6Grad struct{ pair }

// RectifySix applies ReLU6.
func RectifySix(x *gorgonia.Node) (*gorgonia.Node, error) { return gorgonia.ApplyOp(ReLU6{}, x) }

// Arity is 1.
func (ReLU6) Arity() int { return 1 }

// Type is Tensor-4 a → Tensor-4 a.
func (ReLU6) Type() hm.Type { return hm.NewFnType(tensorOf(4), tensorOf(4)) }

// InferShape gives the input's.
func (op ReLU6) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	s, err := dims4(op.String(), "x", in[0])
	return s[:], err
}

// Do is the reference implementation.
func (op ReLU6) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	x, s, err := dense(op.String(), "x", in[0])
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = min(max(v, 0), Six)
	}
	return newDense(out, s...), nil
}

// DiffWRT is true.
func (ReLU6) DiffWRT(n int) []bool { return all(n) }

// SymDiff gives ReLU6Grad of the result, which is kept anyway, rather than of
// the input.
func (ReLU6) SymDiff(_ gorgonia.Nodes, out, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	dx, err := gorgonia.ApplyOp(ReLU6Grad{}, out, grad)
	if err != nil {
		return nil, err
	}
	return gorgonia.Nodes{dx}, nil
}

// WriteHash writes what tells this operator from others.
func (op ReLU6) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op ReLU6) Hashcode() uint32 { return hashcode(op) }

func (ReLU6) String() string { return "ReLU6" }

// InferShape gives the gradient's.
func (op ReLU6Grad) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	_, g, err := gradOperands(op, "result", "gradient", in)
	return g[:], err
}

// Do is the reference implementation.
func (op ReLU6Grad) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	y, g, s, err := gradValues(op, in)
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(g))
	for i, v := range y {
		if v > 0 && v < Six {
			out[i] = g[i]
		}
	}
	return newDense(out, s...), nil
}

// WriteHash writes what tells this operator from others.
func (op ReLU6Grad) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op ReLU6Grad) Hashcode() uint32 { return hashcode(op) }

func (ReLU6Grad) String() string { return "ReLU6Grad" }
