package network

import (
	"fmt"
	"hash"
	"math"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// LogisticLoss is the elementwise binary cross-entropy of a logit y and a target
// t in 0…1: ln(1 + exp y) − t·y, PyTorch's BCEWithLogitsLoss without reduction.
type LogisticLoss struct{ pair }

// InferShape returns the shape of the logits.
func (op LogisticLoss) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	y, err := dims4(op.String(), "logits", in[0])
	if err != nil {
		return nil, err
	}
	if t, err := dims4(op.String(), "target", in[1]); err != nil || t != y {
		return nil, fmt.Errorf("%v: logits %v and target %v", op, y, in[1])
	}
	return y[:], nil
}

// Do computes the operator. It is the reference implementation.
func (op LogisticLoss) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	y, s, err := dense(op.String(), "logits", in[0])
	if err != nil {
		return nil, err
	}
	t, _, err := dense(op.String(), "target", in[1])
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(y))
	for i, v := range y {
		out[i] = max(v, 0) + float32(math.Log1p(math.Exp(-math.Abs(float64(v))))) - t[i]*v
	}
	return newDense(out, s...), nil
}

// DiffWRT returns true for the logits and false for the target.
func (LogisticLoss) DiffWRT(int) []bool { return []bool{true, false} }

// SymDiff returns (sigmoid(y) − t)·gradient for the logits.
func (LogisticLoss) SymDiff(in gorgonia.Nodes, _, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	b := &builder{}
	difference := b.node(gorgonia.Sub(b.node(gorgonia.Sigmoid(in[0])), in[1]))
	dy := b.node(gorgonia.HadamardProd(difference, grad))
	return gorgonia.Nodes{dy, nil}, b.err
}

// Type returns Tensor-4 a → Tensor-4 a → Tensor-4 a.
func (LogisticLoss) Type() hm.Type { return hm.NewFnType(tensorOf(4), tensorOf(4), tensorOf(4)) }

// WriteHash hashes the description.
func (op LogisticLoss) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode returns the hash of the description.
func (op LogisticLoss) Hashcode() uint32 { return hashcode(op) }

func (LogisticLoss) String() string { return "LogisticLoss" }
