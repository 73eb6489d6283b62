package network

import (
	"fmt"
	"hash"
	"hash/fnv"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
)

// element is the type variable of every signature: all operands of an operator
// have the same element type.
const element = hm.TypeVariable('a')

// tensorOf returns Gorgonia's type of a tensor with the given number of
// dimensions.
func tensorOf(dims int) hm.Type { return gorgonia.TensorType{Dims: dims, Of: element} }

// pure implements the methods of Gorgonia's Op that are the same for all
// operators without side effects.
type pure struct{}

// ReturnsPtr returns true: the result is a new tensor.
func (pure) ReturnsPtr() bool { return true }

// CallsExtern returns false: the reference implementations are plain Go.
func (pure) CallsExtern() bool { return false }

// OverwritesInput returns −1: no input is overwritten.
func (pure) OverwritesInput() int { return -1 }

// constant is embedded by operators that are never differentiated.
type constant struct{ pure }

// DiffWRT returns false for every input.
func (constant) DiffWRT(n int) []bool { return make([]bool, n) }

// SymDiff returns no derivatives.
func (constant) SymDiff(in gorgonia.Nodes, _, _ *gorgonia.Node) (gorgonia.Nodes, error) {
	return make(gorgonia.Nodes, len(in)), nil
}

// hashcode returns the hash of an operator's description, which must identify
// the operator and its attributes.
func hashcode(op fmt.Stringer) uint32 {
	h := fnv.New32a()
	writeHash(op, h)
	return h.Sum32()
}

func writeHash(op fmt.Stringer, h hash.Hash) { fmt.Fprint(h, op.String()) }

// all returns n times true: the DiffWRT of an operator that is differentiable
// with respect to every input.
func all(n int) []bool {
	d := make([]bool, n)
	for i := range d {
		d[i] = true
	}
	return d
}

// arity returns an error if the number of inputs is wrong.
func arity(op gorgonia.Op, got int) error {
	if got != op.Arity() {
		return fmt.Errorf("%v: %d inputs, expected %d", op, got, op.Arity())
	}
	return nil
}
