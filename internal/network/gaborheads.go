package network

import (
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// gaborHeads adds the defect heads on Gabor features. statistics are the
// reference statistics of each scale, mean and precision first. It returns the
// standardized sum of the heads' logits (N×1×P×P), and the parameters.
func (b *builder) gaborHeads(features gorgonia.Nodes, statistics []gorgonia.Nodes, side int) (logits *gorgonia.Node, ps gorgonia.Nodes) {
	var inputs gorgonia.Nodes
	for i := range models.GaborHeadScales(side) {
		inputs = append(inputs, b.apply(Join, 0, features[i], b.apply(Deviation, 0, features[i], statistics[i][0], statistics[i][1])))
	}
	x := b.joinTaps(inputs)
	for k := range models.GaborHeads {
		own := b.inputs(models.GaborHeadParameters(side, k))
		ps = append(ps, own...)
		logit := b.head(x, own)
		if k == 0 {
			logits = logit
		} else {
			logits = b.node(gorgonia.Add(b.checked(logits), b.checked(logit)))
		}
	}
	all := models.GaborHeadsParameters(side)
	scale := b.inputs(all[len(all)-2:])
	ps = append(ps, scale...)
	return b.apply(Standardize, 0, logits, scale[0], scale[1]), ps
}
