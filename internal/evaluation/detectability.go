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
	// detectabilitySeed is fixed: the same images and the same model give the same
	// shares.
	detectabilitySeed = 1
	// detectabilityImages bounds the normal images that are kept in memory: 50 of
	// 1024 pixels a side take 150 MB.
	detectabilityImages = 50
	// detectabilityPerCell is how many painted images each share is of: its standard
	// error is 0.1 at most.
	detectabilityPerCell = 24
	// detectabilityBudget bounds the time; on two cores 890 verdicts of 256 px take
	// about 5 s.
	detectabilityBudget = 30 * time.Second
)

// Detectability measures which synthetic anomalies the model finds on the set's
// normal images, which were not learnt from. At most 50 of them, spread over the
// set, are painted on; it takes half a minute at most, and the time of one image of
// each size and contrast.
func Detectability(ctx context.Context, d *inference.Detector, s *Set, threads int) (*models.Detectability, error) {
	n := min(len(s.Good), detectabilityImages)
	files, prepared := make([]string, n), make([][]byte, n)
	for i := range files {
		files[i] = s.Good[i*len(s.Good)/n]
	}
	err := eachFile(ctx, files, threads, func(_ context.Context, i int, data []byte) (err error) {
		if prepared[i], err = imagefile.Prepare(data, d.Side(), imagefile.DefaultLimits()); err != nil {
			return fmt.Errorf("%s: %w", files[i], err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	measure, threshold := d.Model().Metadata.Measure()
	judge := d.Score
	if measure == models.MeasureMSE {
		judge = d.MSE
	}
	return detectability.Measure(ctx,
		detectability.Images{Count: n, Side: d.Side(), At: func(i int, _ *[]byte) ([]byte, error) { return prepared[i], nil }},
		func(ctx context.Context, _ int, pixels []byte) (float64, error) { return judge(ctx, pixels) },
		threshold, rand.New(rand.NewPCG(detectabilitySeed, 0)),
		detectability.Options{PerCell: detectabilityPerCell, Threads: threads, Budget: detectabilityBudget})
}

// found is what a report tells of a Detectability.
type found struct {
	Summary, Caveat string
	Diameters       []string
	Rows            []foundRow
}

type foundRow struct {
	Name   string
	Shares []string
}

// tellFound returns what the report tells of the painted defects that were found, nil
// for nothing.
func tellFound(d *models.Detectability) *found {
	if d == nil {
		return nil
	}
	f := &found{Summary: detectability.Summary(d), Caveat: detectability.Caveat}
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
