package trainer

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
)

// scores are what a model computes for an image.
type scores struct {
	// anomaly is the anomaly score that the model decides by, mse the mean squared
	// error.
	anomaly, mse float64
	// members are the member scores before offset and slope, as many for each image
	// and in the same order; nil for a model without members.
	members []float64
}

// gauge computes the scores of prepared images.
type gauge struct {
	// score returns the scores of a prepared image.
	score func(ctx context.Context, pixels []byte) (scores, error)
	// weights are the members' weights in the anomaly score; nil means equal weights.
	weights []float64
	// standardize sets the offsets and slopes of the model's members. It must replace
	// tensors and not change them, because other models share them.
	standardize func(m *models.Model, offsets, slopes []float32) error
}

// newGauge returns the gauge of a detector.
func newGauge(d *inference.Detector) (gauge, error) {
	measure, _ := d.Model().Metadata.Measure()
	if d.HasMembers() {
		return newMemberGauge(d, measure)
	}
	return gauge{score: func(ctx context.Context, pixels []byte) (s scores, err error) {
		if s.mse, err = d.MSE(ctx, pixels); err != nil {
			return scores{}, err
		}
		if s.anomaly = s.mse; measure != models.MeasureMSE {
			s.anomaly, err = d.Score(ctx, pixels)
		}
		return s, err
	}}, nil
}

// newMemberGauge returns the gauge of a model with members. Its scores are all outputs
// of one run of the graph.
func newMemberGauge(d *inference.Detector, measure string) (gauge, error) {
	weights, err := joinTensor(d.Model().Reference, joinWeights)
	if err != nil {
		return gauge{}, err
	}
	g := gauge{standardize: standardize, score: func(ctx context.Context, pixels []byte) (s scores, err error) {
		s.members, s.anomaly, s.mse, err = d.Members(ctx, pixels)
		if measure == models.MeasureMSE {
			s.anomaly = s.mse
		}
		return s, err
	}}
	for _, w := range weights.Data {
		g.weights = append(g.weights, float64(w))
	}
	return g, nil
}

// Indexes into models.JoinParameters.
const joinOffsets, joinSlopes, joinWeights = 0, 1, 2

// joinTensor returns the tensor of models.JoinParameters with that index.
func joinTensor(reference models.StateDict, index int) (*models.Tensor, error) {
	p := models.JoinParameters(models.HasHeads(reference))[index]
	at := slices.IndexFunc(reference, func(t models.Tensor) bool { return t.Name == p.Name })
	if at < 0 || len(reference[at].Data) != p.Size() {
		return nil, fmt.Errorf("trainer: the model has no tensor %s of shape %v", p.Name, p.Shape)
	}
	return &reference[at], nil
}

// standardize sets the offsets and slopes of the model's members.
func standardize(m *models.Model, offsets, slopes []float32) error {
	m.Reference = slices.Clone(m.Reference)
	for index, data := range map[int][]float32{joinOffsets: offsets, joinSlopes: slopes} {
		t, err := joinTensor(m.Reference, index)
		if err != nil {
			return err
		}
		if len(t.Data) != len(data) {
			return fmt.Errorf("trainer: %d numbers for tensor %s of shape %v", len(data), t.Name, t.Shape)
		}
		t.Data = data
	}
	return nil
}

// scoreAll returns the scores of the images in a random order given by the seed. Each
// of o.Threads workers scores an image on one thread. When MaxTime is over, scoreAll
// returns the scores of the images done, calibration.MinImages at least. It returns
// inference.ErrNotFinite if a score is not finite.
func (g gauge) scoreAll(ctx context.Context, data *dataset.Dataset, o Options) ([]scores, error) {
	order := streams.New(o.Seed, streams.Calibration).Perm(data.Len())
	out := make([]scores, len(order))
	var until time.Time
	if o.MaxTime > 0 {
		until = time.Now().Add(o.MaxTime)
	}
	n, err := eachInTime(ctx, data, order, calibration.MinImages, until, o, func(running context.Context, i int, image []byte) (err error) {
		if out[i], err = g.score(running, image); err != nil {
			return err
		}
		if !out[i].finite() {
			return inference.ErrNotFinite
		}
		return nil
	})
	return out[:n], err
}

// finite reports whether all scores are finite.
func (s scores) finite() bool {
	return !slices.ContainsFunc(append([]float64{s.anomaly, s.mse}, s.members...), func(v float64) bool {
		return math.IsNaN(v) || math.IsInf(v, 0)
	})
}
