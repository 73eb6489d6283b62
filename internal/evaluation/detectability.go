package evaluation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

const (
	// detectabilitySeed is fixed, so that the same images and model result in the same
	// shares unless the time budget runs out.
	detectabilitySeed = 1
	// detectabilityImages bounds the normal images in memory: 50 images of 1024 pixels
	// a side take 150 MB.
	detectabilityImages = 50
	// detectabilityPerCell is the number of images from which each share is computed.
	// Its standard error is at most 0.1.
	detectabilityPerCell = 24
	// detectabilityBudget bounds the time. On two cores, 890 scores at 256 pixels take
	// about 5 s.
	detectabilityBudget = 30 * time.Second
)

// Detectability measures which synthetic anomalies the model detects on the set's normal
// images, which must not have been used for training. It uses at most 50 of them, spread
// over the set. It takes at most half a minute, or the time for one image of each size
// and contrast if that is longer.
func Detectability(ctx context.Context, d *inference.Detector, s *Set, threads int) (*models.Detectability, error) {
	n := min(len(s.Good), detectabilityImages)
	files, prepared, places := make([]string, n), make([][]byte, n), make([]int, n)
	for i := range files {
		files[i] = s.Good[i*len(s.Good)/n]
	}
	err := eachFile(ctx, files, threads, func(_ context.Context, i int, data []byte, err error) error {
		if err == nil {
			prepared[i], places[i], err = d.PrepareInput(data, imagefile.DefaultLimits(), true)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	measure, threshold := d.Model().Metadata.Measure()
	score := func(ctx context.Context, _ int, pixels []byte) (float64, error) { return d.Score(ctx, pixels) }
	switch {
	case measure == models.MeasureMSE:
		score = func(ctx context.Context, _ int, pixels []byte) (float64, error) { return d.MSE(ctx, pixels) }
	case d.Tiled():
		score = func(ctx context.Context, k int, pixels []byte) (float64, error) {
			s, err := d.ScoreTile(ctx, pixels, places[k])
			return s.Anomaly, err
		}
	}
	return detectability.Measure(ctx,
		detectability.Images{Count: n, Layout: d.Layout(), At: func(i int, _ *[]byte) ([]byte, error) { return prepared[i], nil }},
		score, threshold, rand.New(rand.NewPCG(detectabilitySeed, 0)),
		detectability.Options{PerCell: detectabilityPerCell, Threads: threads, Budget: detectabilityBudget})
}

// foundTable is the part of a report about a Detectability.
type foundTable struct {
	Summary, Caveat string
	Diameters       []string
	Rows            []foundRow
}

type foundRow struct {
	Name   string
	Shares []string
}

// newFoundTable returns the table of the synthetic anomalies that were detected, nil
// when d is nil.
func newFoundTable(d *models.Detectability) *foundTable {
	if d == nil {
		return nil
	}
	f := &foundTable{Summary: detectability.Summary(d), Caveat: detectability.Caveat}
	for _, v := range d.Diameters {
		f.Diameters = append(f.Diameters, fmt.Sprintf("%g px", v))
	}
	for _, row := range detectability.Rows(d) {
		var shares []string
		for _, share := range row.Found {
			shares = append(shares, detectability.Percent(share))
		}
		f.Rows = append(f.Rows, foundRow{row.Name, shares})
	}
	return f
}
