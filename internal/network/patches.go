package network

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// MembersName is the output that has the figures which MeasurePatchMahalanobis joins.
const MembersName = "members"

// Patches is what the backbone sees of images of a model.
type Patches struct {
	// Backbone are its weights.
	Backbone []Fixed
	// Features are the results of models.HeadTaps, N×C×P×P each, the finest first.
	Features gorgonia.Nodes
}

// PatchFeatures builds the graph from n images of a model (N×3×S×S in 0…1) to their
// patch features.
func PatchFeatures(n, side int) (image *gorgonia.Node, p *Patches, err error) {
	b := newBuilder()
	image = b.input(ImageName, n, models.InputChannels, side, side)
	p = b.patches(image, side)
	if b.err != nil {
		return nil, nil, fmt.Errorf("network: %w", b.err)
	}
	return image, p, nil
}

// patches brings images to the backbone's size, and adds the backbone.
func (b *builder) patches(image *gorgonia.Node, side int) *Patches {
	in := models.BackboneInputOf(side)
	x := image
	if in.Times > 1 {
		x = b.step(Enlarge, in.Times, x)
	}
	if in.Border > 0 {
		x = b.step(PadEdge, in.Border, x)
	}
	var blocks []int
	for _, t := range models.HeadTaps() {
		blocks = append(blocks, t.Block)
	}
	weights, err := backbone.Weights(backbone.Embedded)
	if err != nil {
		b.node(nil, err)
		return nil
	}
	features, parameters := b.backbone(b.checked(x), backbone.Lite0(), blocks)
	p := &Patches{Features: features}
	for i, n := range parameters {
		p.Backbone = append(p.Backbone, Fixed{n, weights[i].Data})
	}
	return p
}

// JudgePatches adds to the network's graph what judges its images by the patch
// features of a backbone, with heads or without, against a bank of so many normal
// images.
func (f *Forward) JudgePatches(heads bool, bank int) (*Judgement, error) {
	b := &builder{graph: f.Graph}
	side := f.Image.Shape()[2]
	seen := b.patches(f.Image, side)
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	j := &Judgement{Filters: seen.Backbone, Features: seen.Features}
	inputs := func(ps []models.Parameter) gorgonia.Nodes {
		ns := b.inputs(ps)
		j.Parameters = append(j.Parameters, ns...)
		return ns
	}
	ofBlock := map[int]*gorgonia.Node{}
	for i, t := range models.HeadTaps() {
		ofBlock[t.Block] = seen.Features[i]
	}
	var figures, maps gorgonia.Nodes
	marked := -1 // the place of the heads among the members
	for i, m := range models.Members(heads) {
		ps := inputs(m.Parameters(side, bank))
		x := ofBlock[m.Block]
		switch m.Kind {
		case models.PatchGaussian:
			distance := b.step(PatchDistance, 0, x, ps[0], ps[1], ps[2], ps[3])
			maps = append(maps, b.step(Logarithm, 0, distance))
			figures = append(figures, b.logarithm(b.step(Peak, 0, distance)))
		case models.PooledGaussian:
			pooled := b.step(AveragePool, x.Shape()[2], x)
			figures = append(figures, b.logarithm(b.step(Mahalanobis, 1, pooled, ps[0], ps[1], ps[2])))
		case models.PooledNeighbour:
			pooled := b.step(AveragePool, x.Shape()[2], x)
			figures = append(figures, b.logarithm(b.step(Nearest, 0, pooled, ps[0], ps[1], ps[2])))
		case models.Heads:
			marked = i
			maps, figures = append(maps, nil), append(figures, nil)
		}
		if b.err != nil {
			return nil, fmt.Errorf("network: %s %d: %w", m.Kind, m.Block, b.err)
		}
	}
	if heads {
		patches := b.joinTaps(seen.Features)
		var logits *gorgonia.Node
		for k := range models.HeadCount {
			l := b.head(patches, inputs(models.HeadParameters(k)))
			if k == 0 {
				logits = l
			} else {
				logits = b.node(gorgonia.Add(b.checked(logits), b.checked(l)))
			}
		}
		maps[marked], figures[marked] = logits, b.step(Peak, 0, logits)
	}
	join := inputs(models.JoinParameters(heads))
	members := figures[0]
	for _, n := range figures[1:] {
		members = b.step(Join, 0, members, n)
	}
	j.Members = members
	// Elements of its own for each image, as in judgeBands.
	z := b.step(Enlarge, vectorSide, b.step(WeightedMean, 0, members, join[0], join[1], join[2]))
	j.Score = b.step(Single, 0, b.step(Peak, 0, b.step(Softplus, 0, z)))
	j.Map = b.placeMap(maps, join, side)
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	return j, nil
}

// logarithm is that of one figure for each image (N×1×1×1), with elements of its own for
// each, as in judgeBands: its bits do not depend on how many images there are.
func (b *builder) logarithm(x *gorgonia.Node) *gorgonia.Node {
	return b.step(Peak, 0, b.step(Logarithm, 0, b.step(Enlarge, vectorSide, x)))
}

// placeMap is the weighted mean of the members that have a figure for each place, at
// every pixel of the image: each is enlarged to the finest one's places.
func (b *builder) placeMap(maps, join gorgonia.Nodes, side int) *gorgonia.Node {
	finest := 0
	for _, m := range maps {
		finest = max(finest, b.checked(m).Shape()[2])
	}
	var places *gorgonia.Node
	for i, m := range maps {
		if times := finest / m.Shape()[2]; times > 1 {
			m = b.step(Enlarge, times, m)
		}
		if i == 0 {
			places = m
		} else {
			places = b.step(Join, 0, places, m)
		}
	}
	local := make(gorgonia.Nodes, len(join))
	for i, n := range join {
		local[i] = b.step(First, len(maps), n)
	}
	z := b.step(WeightedMean, 0, places, local[0], local[1], local[2])
	in := models.BackboneInputOf(side)
	x := b.step(Enlarge, in.Side/finest, z)
	if in.Border > 0 {
		x = b.step(Crop, in.Border, x)
	}
	if in.Times > 1 {
		x = b.step(AveragePool, in.Times, x)
	}
	return b.step(Plane, 0, b.step(Softplus, 0, x))
}

// joinTaps puts the features of several blocks, or scales, over each other, at the first
// one's places.
func (b *builder) joinTaps(features gorgonia.Nodes) *gorgonia.Node {
	x := features[0]
	for _, f := range features[1:] {
		if b.err != nil {
			return b.checked(nil)
		}
		x = b.step(Join, 0, x, b.step(Enlarge, features[0].Shape()[2]/f.Shape()[2], f))
	}
	return x
}
