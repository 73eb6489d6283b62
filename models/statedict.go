package models

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Tensor is a named, dense float32 tensor in row-major order.
type Tensor struct {
	Name  string
	Shape []int
	Data  []float32
}

// StateDict is a list of named tensors: the parameters of a network in PyTorch's
// order, or reference statistics.
type StateDict []Tensor

// Get returns the tensor with a name, and whether it exists.
func (sd StateDict) Get(name string) (Tensor, bool) {
	for _, t := range sd {
		if t.Name == name {
			return t, true
		}
	}
	return Tensor{}, false
}

// Ordered returns the tensors in the order of ps. It panics when one is missing, so the
// caller must have checked the names.
func (sd StateDict) Ordered(ps []Parameter) StateDict {
	out := make(StateDict, len(ps))
	for i, p := range ps {
		t, ok := sd.Get(p.Name)
		if !ok {
			panic("models: state dict without " + p.Name)
		}
		out[i] = t
	}
	return out
}

// Finite reports whether all elements are finite. If not, it also returns the name of
// the first tensor with a NaN or an infinity.
func (sd StateDict) Finite() (string, bool) {
	for _, t := range sd {
		if !Finite(t.Data...) {
			return t.Name, false
		}
	}
	return "", true
}

// Finite reports whether no value is NaN or infinite.
func Finite(values ...float32) bool {
	return !slices.ContainsFunc(values, func(v float32) bool { return math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) })
}

// summary returns names and shapes of the first tensors, for error messages.
func (sd StateDict) summary() string {
	if len(sd) == 0 {
		return "no parameters"
	}
	const show = 3
	var names []string
	for i, t := range sd {
		if i == show {
			names = append(names, "…")
			break
		}
		names = append(names, fmt.Sprintf("%.60q %v", t.Name, t.Shape))
	}
	return strings.Join(names, ", ")
}
