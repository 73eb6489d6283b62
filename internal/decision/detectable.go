package decision

import (
	"context"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/heads"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
)

// perCell is the number of synthetic anomalies of each size and contrast in the table of
// detectability.
const perCell = 6

// detectable measures which synthetic anomalies are found. Each is painted on a normal
// image and scored by statistics and a head that were fitted without this image.
func (x *reference) detectable(ctx context.Context, e *extractor.Extractor, s *statistics, h *heads.Heads, c *calibration.Calibration, o Options) (*models.Detectability, error) {
	plan, err := detectability.NewPlan(detectability.Images{Count: x.len(), Layout: x.data.Layout, At: x.image},
		perCell, streams.New(o.Seed, streams.Detectability))
	if err != nil {
		return nil, err
	}
	first := firstTap()
	if h != nil {
		first = 0
	}
	scores := make([]float64, plan.Len())
	threads := max(o.Workers.Threads, 1)
	err = o.Workers.Each(ctx, threads, func(running context.Context, worker int) error {
		observer, err := e.Observer()
		if err != nil {
			return err
		}
		defer observer.Close()
		var scorer *heads.Scorer
		if h != nil {
			if scorer, err = h.Scorer(); err != nil {
				return err
			}
			defer scorer.Close()
		}
		paint := plan.Painter()
		for i := worker; i < len(scores); i += threads {
			image, err := paint(i)
			if err != nil {
				return err
			}
			maps, err := observer.See(running, image, first)
			if err != nil {
				return err
			}
			k := plan.Image(i)
			members := s.members(k%x.folds, x.deviations(k, k%x.folds, maps), x.insideOf(k))
			if scorer != nil {
				peak, err := scorer.Peak(running, heads.Unseen(k), maps, x.finestOf(k))
				if err != nil {
					return err
				}
				members = withHead(members, peak)
			}
			scores[i] = c.Join(members)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return plan.Result(scores, c.Threshold)
}
