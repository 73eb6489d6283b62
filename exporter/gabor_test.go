package exporter

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// addGaborStatistics sets random reference statistics of Gabor features, without heads.
func addGaborStatistics(m *models.Model, r *rand.Rand) *models.Model {
	return addReference(m, r, models.GaborParameters(m.ImageSize))
}

// addGaborHeads sets random reference statistics of Gabor features with heads.
func addGaborHeads(m *models.Model, r *rand.Rand) *models.Model {
	return addReference(m, r, append(models.GaborParameters(m.ImageSize), models.GaborHeadsParameters(m.ImageSize)...))
}

// addReference sets random reference statistics with those parameters.
func addReference(m *models.Model, r *rand.Rand, ps []models.Parameter) *models.Model {
	m.Metadata.Decision = &models.Decision{Measure: models.MeasureBandMahalanobis, Threshold: 1}
	m.Reference = nil
	for _, p := range ps {
		low, high := -1.0, 1.0
		if len(p.Shape) == 1 {
			low = 0.5
		}
		m.Reference = append(m.Reference, models.Tensor{Name: p.Name, Shape: p.Shape, Data: randomValues(r, p.Shape, low, high)})
	}
	return m
}

func TestGaborModel_MatchesGorgonia(t *testing.T) {
	engine := orttest.Open(t)
	for i, side := range []int{16, 32, 48, 64, 80, 16, 32, 48} {
		r := rand.New(rand.NewPCG(uint64(side), 1))
		m := sample()
		m.ImageSize, m.Metadata.ImageSize = side, side
		if i < 5 {
			addGaborStatistics(m, r)
		} else {
			addGaborHeads(m, r)
		}
		const images = 2
		f, err := network.Autoencoder(m.Architecture, images, side, side)
		if err != nil {
			t.Fatal(err)
		}
		j, err := f.Judge(m.Reference)
		if err != nil {
			t.Fatal(err)
		}
		pixels := randomValues(r, []int{images, 3, side, side}, 0, 1)
		inputs := map[*gorgonia.Node][]float32{f.Image: pixels}
		for i, n := range f.Parameters {
			inputs[n] = m.Weights[i].Data
		}
		for i, n := range j.Parameters {
			inputs[n] = m.Reference[i].Data
		}
		for _, fixed := range j.Filters {
			inputs[fixed.Node] = fixed.Data
		}
		want := runGorgonia(t, f.Graph, inputs, gorgonia.Nodes{j.Score, f.Error, j.Map})

		onnx, err := InferenceModel(m)
		if err != nil {
			t.Fatal(err)
		}
		names := []string{network.ErrorName, network.MSEName, network.MapName}
		s, err := engine.NewSession(onnx, []string{network.ImageName}, names, ort.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		in, out := orttest.Tensor(t, pixels, images, 3, side, side), []*ort.Tensor{
			orttest.Tensor(t, nil, images), orttest.Tensor(t, nil, images), orttest.Tensor(t, nil, images, side, side)}
		if err := s.Run(t.Context(), []*ort.Tensor{in}, out); err != nil {
			t.Fatal(err)
		}
		for i, name := range names {
			for k, v := range out[i].Data() {
				if w := want[i][k]; math.Abs(float64(v-w)) > 1e-4*math.Abs(float64(w)) {
					t.Fatalf("%d px: %s[%d] is %v in ONNX Runtime and %v in Gorgonia", side, name, k, v, w)
				}
			}
		}
		// The score is the map's maximum before the interpolation between patches.
		highest := float32(0)
		for _, v := range out[2].Data()[:side*side] {
			highest = max(highest, v)
		}
		if score := out[0].Data()[0]; highest > score*1.0001 || highest < score/4 {
			t.Errorf("%d px: the score is %v and the map's maximum %v", side, score, highest)
		}
	}
}
