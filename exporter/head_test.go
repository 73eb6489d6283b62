package exporter

import (
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

func TestHeadModels_MatchGorgonia(t *testing.T) {
	const n, side = 2, 32
	g, err := network.DifferentiateHead(n, models.Square(side), 1, false)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(7, 7))
	taps := models.HeadTaps()
	p := taps[0].Patches(models.Square(side)).W
	shapes := map[string][]int{network.TargetName: {n, 1, p, p}, network.WeightName: {1}}
	values := map[string][]float32{network.TargetName: randomValues(r, shapes[network.TargetName], 0, 1), network.WeightName: {0.5}}
	inputs := map[*gorgonia.Node][]float32{g.Target: values[network.TargetName], g.Weight: values[network.WeightName]}
	for i, tap := range taps {
		name := FeaturesName(tap.Block)
		shapes[name] = []int{n, tap.Channels, tap.Patches(models.Square(side)).W, tap.Patches(models.Square(side)).W}
		values[name] = randomValues(r, shapes[name], -2, 2)
		inputs[g.Features[i]] = values[name]
	}
	outputs := map[string][]int{"loss": {1}}
	for i, q := range models.HeadParameters(1) {
		shapes[q.Name], values[q.Name] = q.Shape, randomValues(r, q.Shape, -0.2, 0.2)
		inputs[g.Parameters[i]] = values[q.Name]
		outputs[network.GradientName(q.Name, 0)] = q.Shape
	}
	want := runGorgonia(t, g.Graph, inputs, append(gorgonia.Nodes{g.Loss, g.Logits}, g.Gradients...))
	for name, with := range bothOperators {
		m, err := HeadGradientModel(n, models.Square(side), 1, false, with)
		if err != nil {
			t.Fatal(err)
		}
		got := runONNXRuntime(t, m, shapes, outputs, values)
		for i, output := range m.Outputs {
			if i > 0 {
				i++ // the logits are not an output
			}
			if d := relativeError(got[output], want[i]); !(d < 1e-4) {
				t.Errorf("%s: %s differs by %v", name, output, d)
			}
		}
		one, err := HeadModel(models.Square(side), 1, with)
		if err != nil {
			t.Fatal(err)
		}
		single := maps.Clone(shapes)
		for _, tap := range taps {
			name := FeaturesName(tap.Block)
			single[name] = append([]int{1}, shapes[name][1:]...)
		}
		logits := runONNXRuntime(t, one, single, map[string][]int{"logits": {1, 1, p, p}}, values)["logits"]
		if d := relativeError(logits, want[1][:p*p]); !(d < 1e-5) {
			t.Errorf("%s: logits differ by %v", name, d)
		}
	}
}
