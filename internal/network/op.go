package network

import (
	"fmt"
	"hash"
	"hash/fnv"

	"github.com/chewxy/hm"
	"gorgonia.org/gorgonia"
)

// element is the type variable of every signature here: all operands of an
// operator hold numbers of one type.
const element = hm.TypeVariable('a')

// tensorOf is Gorgonia's type of a tensor of that many dimensions.
func tensorOf(dims int) hm.Type { return gorgonia.TensorType{Dims: dims, Of: element} }

// pure carries the parts of Gorgonia's Op that are alike for operators that
// read their inputs, keep nothing and give a new tensor.
type pure struct{}

// ReturnsPtr is true: the result is a tensor of its own.
func (pure) ReturnsPtr() bool { return true }

// CallsExtern is false: the reference implementations are plain Go.
func (pure) CallsExtern() bool { return false }

// OverwritesInput is −1: inputs are left as they are.
func (pure) OverwritesInput() int { return -1 }

// hashcode identifies an operator by its description, which names all that
// tells it from another.
func hashcode(op fmt.Stringer) uint32 {
	h := fnv.New32a()
	writeHash(op, h)
	return h.Sum32()
}

func writeHash(op fmt.Stringer, h hash.Hash) { fmt.Fprint(h, op.String()) }

// all is the answer of DiffWRT for an operator that can be differentiated with
// regard to each of its inputs.
func all(n int) []bool {
	d := make([]bool, n)
	for i := range d {
		d[i] = true
	}
	return d
}

// arity returns an error when an operator was given another number of inputs.
func arity(op gorgonia.Op, got int) error {
	if got != op.Arity() {
		return fmt.Errorf("%v: %d inputs, expected %d", op, got, op.Arity())
	}
	return nil
}
