package network

import (
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// markers adds what marks synthetic defects: from the features of the places, and
// mean and precision of each scale's, to the sum of both markers' logits in
// standard deviations (N×1×P×P). It gives the parameters that it needs.
func (b *builder) markers(features gorgonia.Nodes, learnt []gorgonia.Nodes, side int) (marks *gorgonia.Node, ps gorgonia.Nodes) {
	var known gorgonia.Nodes
	for i := range models.GaborHeadScales(side) {
		known = append(known, b.step(Join, 0, features[i], b.step(Deviation, 0, features[i], learnt[i][0], learnt[i][1])))
	}
	seen := b.joinTaps(known)
	for k := range models.GaborHeads {
		own := b.inputs(models.GaborHeadParameters(side, k))
		ps = append(ps, own...)
		logit := b.head(seen, own)
		if k == 0 {
			marks = logit
		} else {
			marks = b.node(gorgonia.Add(b.checked(marks), b.checked(logit)))
		}
	}
	all := models.GaborHeadsParameters(side)
	scale := b.inputs(all[len(all)-2:])
	ps = append(ps, scale...)
	return b.step(Standardize, 0, marks, scale[0], scale[1]), ps
}
