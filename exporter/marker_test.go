package exporter

import (
	"math/rand/v2"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

func TestMarkersGradientsAreThoseOfGorgoniasMachine(t *testing.T) {
	const n, side = 2, 32
	g, err := network.DifferentiateMarker(n, side, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	scales := models.MarkerScales(side)
	p := scales[0].Places
	shapes := map[string][]int{network.TargetName: {n, 1, p, p}, network.WeightName: {1}}
	values := map[string][]float32{
		network.TargetName: feed(r, shapes[network.TargetName], 0, 1),
		network.WeightName: {0.5},
	}
	inputs := map[*gorgonia.Node][]float32{
		g.Target: values[network.TargetName], g.Weight: values[network.WeightName],
	}
	for i, s := range scales {
		name := network.PlacesName(i)
		shapes[name] = []int{n, 2 * s.Features(), s.Places, s.Places}
		values[name] = feed(r, shapes[name], -2, 2)
		inputs[g.Places[i]] = values[name]
	}
	outputs := map[string][]int{"loss": {1}}
	for i, q := range models.MarkerParameters(side, 1) {
		shapes[q.Name], values[q.Name] = q.Shape, feed(r, q.Shape, -0.2, 0.2)
		inputs[g.Parameters[i]] = values[q.Name]
		outputs[network.GradientName(q.Name, 0)] = q.Shape
	}
	want := onGorgonia(t, g.Graph, inputs, append(gorgonia.Nodes{g.Loss}, g.Gradients...))
	for name, with := range bothOperators {
		m, err := MarkerGradientModel(n, side, 1, with)
		if err != nil {
			t.Fatal(err)
		}
		got := onONNXRuntime(t, m, shapes, outputs, values)
		for i, output := range m.Outputs {
			if d := relative(got[output], want[i]); !(d < 1e-4) {
				t.Errorf("%s: %s differs by %v", name, output, d)
			}
		}
	}
}
