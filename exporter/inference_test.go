package exporter

import (
	"bytes"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
)

func TestLowerRefusesAModelThatIsNotTheNetworks(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(m *models.Model)
		says string
	}{
		{"another image size", func(m *models.Model) { m.ImageSize = 32 }, "32×32"},
		{"a weight too few", func(m *models.Model) { m.Weights = m.Weights[1:] }, "8 parameters and a model of 7"},
		{"weights in another order", func(m *models.Model) { m.Weights[0], m.Weights[2] = m.Weights[2], m.Weights[0] }, "encoder.2.weight"},
		{"weights of another width", func(m *models.Model) { m.Weights[1].Shape = []int{5} }, "encoder.0.bias of shape [5]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := sample()
			f, err := network.Autoencoder(m.Architecture, 2, m.ImageSize, m.ImageSize)
			if err != nil {
				t.Fatal(err)
			}
			c.edit(m)
			if data, err := Lower(f, m); err == nil || data != nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, expected an error that says %q", err, c.says)
			}
		})
	}
}

func TestLowerDoesNotDependOnTheBatchANetworkWasBuiltFor(t *testing.T) {
	want, err := InferenceModel(sample())
	if err != nil {
		t.Fatal(err)
	}
	f, err := network.Autoencoder(sample().Architecture, 5, 16, 16)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Lower(f, sample()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: %d bytes, expected the %d of InferenceModel", err, len(got), len(want))
	}
}
