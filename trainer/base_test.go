package trainer

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

func TestTrainingGoesOnFromAnEarlierModel(t *testing.T) {
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
		t.Error("the earlier model was changed")
	}
	// It begins where the earlier one ended, not where random weights do.
	// (Adam's moments start anew, which costs it a little at first.)
	began, random := second.Metadata.TrainingLosses[0], first.Metadata.TrainingLosses[0]
	if began > 0.7*random || math.IsNaN(began) {
		t.Errorf("its first loss is %v, that of random weights %v", began, random)
	}
}

func TestTrainingRefusesAModelThatDoesNotFit(t *testing.T) {
	narrow := models.Architecture{Channels: []int{3, 4, 6, 8, 10}}
	for _, c := range []struct {
		name string
		o    Options
	}{
		{"another network", Options{Base: &models.Model{Architecture: narrow, ImageSize: 64}}},
		{"another image size", Options{ImageSize: 128, Base: &models.Model{Architecture: models.DefaultArchitecture(), ImageSize: 64}}},
	} {
		if _, _, err := c.o.Settle(); !errors.Is(err, ErrBase) {
			t.Errorf("%s gives %v", c.name, err)
		}
	}
}
