package testkit

import (
	"testing"

	"gorgonia.org/gorgonia"
)

// RunGorgonia returns the values of nodes of a graph, computed on Gorgonia's tape machine.
// The inputs of the graph must have values. It reads each node through a Read node,
// because the machine reuses registers.
func RunGorgonia(t testing.TB, g *gorgonia.ExprGraph, nodes gorgonia.Nodes) [][]float32 {
	t.Helper()
	out := make([]gorgonia.Value, len(nodes))
	for i, n := range nodes {
		gorgonia.Read(n, &out[i])
	}
	m := gorgonia.NewTapeMachine(g)
	defer m.Close()
	if err := m.RunAll(); err != nil {
		t.Fatal(err)
	}
	data := make([][]float32, len(out))
	for i, v := range out {
		switch v := v.Data().(type) {
		case []float32:
			data[i] = v
		case float32:
			data[i] = []float32{v}
		}
	}
	return data
}
