package exporter

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

func TestGradientModel_MatchesGorgonia(t *testing.T) {
	for _, c := range []struct {
		channels []int
		n, h, w  int
	}{
		{[]int{3, 4, 5}, 1, 8, 8},
		{[]int{3, 4, 6, 5}, 3, 16, 24},
		{[]int{3, 8, 12, 16, 20}, 2, 32, 16},
		// More channels than a tile of the kernels has, and not a multiple of it.
		{[]int{3, 9, 70}, 3, 16, 8},
		{[]int{3, 8, 12, 16, 20}, 2, 32, 64},
		{[]int{3, 8, 12, 16, 20}, 1, 96, 32},
	} {
		arch := models.Architecture{Channels: c.channels}
		t.Run(fmt.Sprintf("%s at %d×%d×%d", arch, c.n, c.h, c.w), func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, uint64(c.h)))
			f, err := network.Autoencoder(arch, c.n, c.h, c.w)
			if err != nil {
				t.Fatal(err)
			}
			g, err := network.Differentiate(f)
			if err != nil {
				t.Fatal(err)
			}
			image := []int{c.n, 3, c.h, c.w}
			shapes := map[string][]int{network.ImageName: image, network.WeightName: {1}}
			outputs := map[string][]int{"loss": {1}}
			values := map[string][]float32{network.ImageName: randomValues(r, image, 0, 1), network.WeightName: {0.375}}
			nodes := map[*gorgonia.Node][]float32{g.Image: values[network.ImageName], g.Weight: {0.375}}
			for i, p := range arch.Parameters() {
				shapes[p.Name], outputs[network.GradientName(p.Name, 0)] = p.Shape, p.Shape
				values[p.Name] = randomValues(r, p.Shape, -0.4, 0.4)
				nodes[g.Parameters[i]] = values[p.Name]
			}
			want := runGorgonia(t, g.Graph, nodes, append(gorgonia.Nodes{g.Loss}, g.Gradients...))
			for name, with := range bothOperators {
				m, err := GradientModel(arch, c.n, c.h, c.w, with)
				if err != nil {
					t.Fatal(err)
				}
				got := runONNXRuntime(t, m, shapes, outputs, values)
				for i, output := range m.Outputs {
					if d := relativeError(got[output], want[i]); d > 1e-4 || math.IsNaN(d) {
						t.Errorf("%s: %s differs by %.2g", name, output, d)
					}
				}
			}
		})
	}
}

func TestUpdateModel_MatchesGorgonia(t *testing.T) {
	// Parameters smaller than a vector, slightly larger, and larger than one thread's share.
	arch := models.Architecture{Channels: []int{3, 2, 37, 130}}
	const microBatches = 3
	r := rand.New(rand.NewPCG(3, 3))
	u, err := network.Adam(arch.Parameters(), microBatches)
	if err != nil {
		t.Fatal(err)
	}
	shapes := map[string][]int{network.StepSizeName: {1}, network.CorrectionName: {1}}
	values := map[string][]float32{network.StepSizeName: {0.01}, network.CorrectionName: {3}}
	nodes := map[*gorgonia.Node][]float32{u.StepSize: {0.01}, u.Correction: {3}}
	outputs := map[string][]int{}
	set := func(n *gorgonia.Node, name string, shape []int, low, high float64) {
		shapes[name], values[name] = shape, randomValues(r, shape, low, high)
		nodes[n] = values[name]
	}
	for i, p := range arch.Parameters() {
		set(u.Parameters[i], p.Name, p.Shape, -1, 1)
		set(u.First[i], p.Name+".m", p.Shape, -1, 1)
		set(u.Second[i], p.Name+".v", p.Shape, 0, 1)
		for k := range microBatches {
			set(u.Gradients[k][i], network.GradientName(p.Name, k), p.Shape, -1, 1)
		}
		for _, suffix := range []string{"", ".m", ".v"} {
			outputs["next."+p.Name+suffix] = p.Shape
		}
	}
	all := append(append(append(gorgonia.Nodes{}, u.NewParameters...), u.NewFirst...), u.NewSecond...)
	want := runGorgonia(t, u.Graph, nodes, all)
	for name, with := range bothOperators {
		m, err := UpdateModel(arch.Parameters(), microBatches, with)
		if err != nil {
			t.Fatal(err)
		}
		got := runONNXRuntime(t, m, shapes, outputs, values)
		for i, output := range m.Outputs {
			if d := relativeError(got[output], want[i]); d > 1e-5 || math.IsNaN(d) {
				t.Errorf("%s: %s differs by %.2g", name, output, d)
			}
		}
	}
}
