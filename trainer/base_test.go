package trainer

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

func TestTrain_ContinuesFromBase(t *testing.T) {
	e := orttest.Open(t)
	first := withHeads(t, e)
	first.SHA256 = "known"
	first.Metadata.ClassNames = []string{"fine", "broken"}
	before := slices.Clone(first.Weights[0].Data)
	second, err := Train(t.Context(), e, folder(t), Options{Level: 1, Base: first})
	if err != nil {
		t.Fatal(err)
	}
	if second.ImageSize != 32 || second.Metadata.Training.Base != "known" || !slices.Equal(second.Metadata.ClassNames, first.Metadata.ClassNames) {
		t.Errorf("at %d px, from %q, classes %q", second.ImageSize, second.Metadata.Training.Base, second.Metadata.ClassNames)
	}
	if !slices.Equal(before, first.Weights[0].Data) {
		t.Error("the base model was changed")
	}
	// The first loss is near the base's last one and not that of random weights. It is
	// a little higher, because Adam's moments start at zero.
	began, random := second.Metadata.TrainingLosses[0], first.Metadata.TrainingLosses[0]
	if began > 0.7*random || math.IsNaN(began) {
		t.Errorf("first loss %v, of random weights %v", began, random)
	}
}

func TestSettle_RejectsUnsuitableBase(t *testing.T) {
	narrow := models.Architecture{Channels: []int{3, 4, 6, 8, 10}}
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"another network", Options{Base: &models.Model{Architecture: narrow, ImageSize: 64}}},
		{"another image size", Options{ImageSize: 128, Base: &models.Model{Architecture: models.DefaultArchitecture(), ImageSize: 64}}},
	} {
		if _, _, err := c.o.Settle(); !errors.Is(err, ErrBase) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
