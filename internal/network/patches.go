package network

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// MembersName is the name of the output with the member scores of
// models.MeasurePatchMahalanobis.
const MembersName = "members"

// PlaceName is the name of the input with the index of the place of each tile, for models
// with models.TilesByPlace.
const PlaceName = "place"

// Patches is the patch features of images.
type Patches struct {
	// Backbone is the weights of the backbone.
	Backbone []Fixed
	// Features are the backbone's results at models.HeadTaps, N×C×P×P each, the
	// finest first.
	Features gorgonia.Nodes
}

// PatchFeatures builds the graph that computes the patch features of n images
// (N×3×S×S in 0…1).
func PatchFeatures(n, side int) (image *gorgonia.Node, p *Patches, err error) {
	b := newBuilder()
	image = b.input(ImageName, n, models.InputChannels, side, side)
	p = b.patches(image, side)
	if b.err != nil {
		return nil, nil, fmt.Errorf("network: %w", b.err)
	}
	return image, p, nil
}

// patches resizes images for the backbone, and adds the backbone.
func (b *builder) patches(image *gorgonia.Node, side int) *Patches {
	in := models.BackboneInputOf(side)
	x := image
	if in.Times > 1 {
		x = b.apply(Enlarge, in.Times, x)
	}
	if in.Border > 0 {
		x = b.apply(PadEdge, in.Border, x)
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

// judgePatches adds the scoring graph of models.MeasurePatchMahalanobis, with or
// without defect heads, with a bank of the features of `bank` normal images, and with the
// statistics of places if there are any.
func (f *Forward) judgePatches(heads bool, bank, places int) (*Judgement, error) {
	b := &builder{graph: f.Graph}
	side := f.Image.Shape()[2]
	features := b.patches(f.Image, side)
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	j := &Judgement{Filters: features.Backbone, Features: features.Features}
	inputs := func(ps []models.Parameter) gorgonia.Nodes {
		ns := b.inputs(ps)
		j.Parameters = append(j.Parameters, ns...)
		return ns
	}
	ofBlock := map[int]*gorgonia.Node{}
	for i, t := range models.HeadTaps() {
		ofBlock[t.Block] = features.Features[i]
	}
	if places > 0 {
		j.Place = b.input(PlaceName, f.Image.Shape()[0])
		ps := inputs(models.PlaceParameters(side, places))
		for i, t := range models.Taps() {
			ofBlock[t.Block] = b.apply(PlaceDeviation, 0, ofBlock[t.Block], j.Place, ps[2*i], ps[2*i+1])
		}
	}
	var scores, maps gorgonia.Nodes
	headMember := -1 // index of the defect heads among the members
	for i, m := range models.Members(heads) {
		ps := inputs(m.Parameters(side, bank))
		x := ofBlock[m.Block]
		switch m.Kind {
		case models.PatchGaussian:
			distance := b.apply(PatchDistance, 0, x, ps[0], ps[1], ps[2], ps[3])
			maps = append(maps, b.apply(Logarithm, 0, distance))
			scores = append(scores, b.logarithm(b.apply(Peak, 0, distance)))
		case models.PooledGaussian:
			pooled := b.apply(AveragePool, x.Shape()[2], x)
			scores = append(scores, b.logarithm(b.apply(Mahalanobis, 1, pooled, ps[0], ps[1], ps[2])))
		case models.PooledNeighbour:
			pooled := b.apply(AveragePool, x.Shape()[2], x)
			scores = append(scores, b.logarithm(b.apply(Nearest, 0, pooled, ps[0], ps[1], ps[2])))
		case models.Heads:
			headMember = i
			maps, scores = append(maps, nil), append(scores, nil)
		}
		if b.err != nil {
			return nil, fmt.Errorf("network: %s %d: %w", m.Kind, m.Block, b.err)
		}
	}
	if heads {
		patches := b.joinTaps(features.Features)
		var logits *gorgonia.Node
		for k := range models.HeadCount {
			l := b.head(patches, inputs(models.HeadParameters(k)))
			if k == 0 {
				logits = l
			} else {
				logits = b.node(gorgonia.Add(b.checked(logits), b.checked(l)))
			}
		}
		maps[headMember], scores[headMember] = logits, b.apply(Peak, 0, logits)
	}
	join := inputs(models.JoinParameters(heads))
	members := scores[0]
	for _, n := range scores[1:] {
		members = b.apply(Join, 0, members, n)
	}
	j.Members = members
	// Whole vectors for each image, as in judgeGabor.
	z := b.apply(Enlarge, vectorSide, b.apply(WeightedMean, 0, members, join[0], join[1], join[2]))
	j.Score = b.apply(Single, 0, b.apply(Peak, 0, b.apply(Softplus, 0, z)))
	j.Map = b.anomalyMap(maps, join, side)
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	return j, nil
}

// logarithm adds the logarithm of one score for each image (N×1×1×1), with whole
// vectors for each image, as in judgeGabor.
func (b *builder) logarithm(x *gorgonia.Node) *gorgonia.Node {
	return b.apply(Peak, 0, b.apply(Logarithm, 0, b.apply(Enlarge, vectorSide, x)))
}

// anomalyMap adds the weighted mean of the members that score patches, enlarged to
// the finest patches, and then to the pixels of the image.
func (b *builder) anomalyMap(maps, join gorgonia.Nodes, side int) *gorgonia.Node {
	finest := 0
	for _, m := range maps {
		finest = max(finest, b.checked(m).Shape()[2])
	}
	var joined *gorgonia.Node
	for i, m := range maps {
		if times := finest / m.Shape()[2]; times > 1 {
			m = b.apply(Enlarge, times, m)
		}
		if i == 0 {
			joined = m
		} else {
			joined = b.apply(Join, 0, joined, m)
		}
	}
	local := make(gorgonia.Nodes, len(join))
	for i, n := range join {
		local[i] = b.apply(First, len(maps), n)
	}
	z := b.apply(WeightedMean, 0, joined, local[0], local[1], local[2])
	in := models.BackboneInputOf(side)
	x := b.apply(Enlarge, in.Side/finest, z)
	if in.Border > 0 {
		x = b.apply(Crop, in.Border, x)
	}
	if in.Times > 1 {
		x = b.apply(AveragePool, in.Times, x)
	}
	return b.apply(Plane, 0, b.apply(Softplus, 0, x))
}

// joinTaps concatenates the features of several blocks or scales along the
// channels, enlarged to the side of the first.
func (b *builder) joinTaps(features gorgonia.Nodes) *gorgonia.Node {
	x := features[0]
	for _, f := range features[1:] {
		if b.err != nil {
			return b.checked(nil)
		}
		x = b.apply(Join, 0, x, b.apply(Enlarge, features[0].Shape()[2]/f.Shape()[2], f))
	}
	return x
}
