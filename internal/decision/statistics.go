package decision

import (
	"context"
	"slices"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/heads"
	"github.com/deepmed/anomaly/internal/patches"
	"github.com/deepmed/anomaly/models"
)

// statistics are the reference statistics of normal images' features, by tap of
// models.Taps and fold. The last fit is to all images.
type statistics struct {
	gaussians  [][]*patches.Gaussian
	pooled     [][]*patches.Pooled
	neighbours [][]*patches.Neighbours
}

// firstTap returns the index of the feature map of the first of models.Taps. Only heads
// use earlier maps.
func firstTap() int { return len(models.HeadTaps()) - len(models.Taps()) }

// insideMap returns the patches of a map that are judged, by image; nil for all.
func (x *reference) insideMap(i int) (out [][]bool) {
	for _, of := range x.inside {
		out = append(out, of[i])
	}
	return out
}

// describe fits statistics to the images' features: without each fold, and to all.
func (x *reference) describe(ctx context.Context, o Options) (*statistics, error) {
	s := &statistics{}
	for i := firstTap(); i < len(x.maps); i++ {
		m := patches.Map{Channels: x.maps[i].Channels, W: x.maps[i].W, H: x.maps[i].H}
		maps := make([][]float32, x.len())
		for k, f := range x.features {
			maps[k] = f[i]
		}
		inside := x.insideMap(i)
		gaussians, err := patches.FitGaussians(ctx, m, maps, inside, x.folds, models.PatchRank, o.Workers)
		if err != nil {
			return nil, err
		}
		o.Without.removeDirections(gaussians)
		pooled, err := patches.FitPooled(m, maps, inside, x.folds, o.Workers)
		if err != nil {
			return nil, err
		}
		neighbours, err := patches.FitNeighbours(m, maps, inside, x.folds, models.MaxNeighbours, o.Workers)
		if err != nil {
			return nil, err
		}
		s.gaussians, s.pooled, s.neighbours = append(s.gaussians, gaussians), append(s.pooled, pooled), append(s.neighbours, neighbours)
	}
	return s, nil
}

// members returns an image's member scores without the heads, in the order of
// models.Members, by the statistics fitted without the fold. inside are the patches that are
// judged, by map; nil for all.
func (s *statistics) members(fold int, maps [][]float32, inside [][]bool) []float64 {
	var out []float64
	if inside == nil {
		inside = make([][]bool, len(maps))
	}
	first := firstTap()
	for i, fits := range s.gaussians {
		out = append(out, logarithm(fits[fold].Peak(maps[first+i], inside[first+i])))
	}
	for i, fits := range s.pooled {
		out = append(out, logarithm(fits[fold].Distance(maps[first+i], inside[first+i])))
	}
	for i, fits := range s.neighbours {
		out = append(out, logarithm(fits[fold].Distance(maps[first+i], inside[first+i])))
	}
	return out
}

// tensors returns the tensors of models.PatchParameters by the statistics of all images.
func (s *statistics) tensors(size models.Size, h *heads.Heads, c *calibration.Calibration) models.StateDict {
	var data [][]float32
	last := len(s.gaussians[0]) - 1
	for _, fits := range s.gaussians {
		g := fits[last]
		data = append(data, g.Mean, g.Whitening, g.Scale, g.Directions)
	}
	for _, fits := range s.pooled {
		p := fits[last]
		data = append(data, p.Mean, p.Precision, p.Whitening)
	}
	bank := 0
	for i, fits := range s.neighbours {
		n := fits[last]
		data = append(data, n.Mean, n.Whitening, n.Bank)
		bank = len(n.Bank) / models.Taps()[i].Channels
	}
	if h != nil {
		for _, head := range h.Tensors {
			for _, t := range head {
				data = append(data, t.Data)
			}
		}
	}
	data = append(data, c.Offsets, c.Slopes, c.Weights)
	var sd models.StateDict
	for i, p := range models.PatchParameters(size, h != nil, bank) {
		sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: slices.Clip(data[i])})
	}
	return sd
}
