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

// PatchFeatures builds the graph that computes the patch features of n images of that size
// (N×3×H×W in 0…1). If masked, pixels below 0 are outside; see Forward.Masked.
func PatchFeatures(n int, size models.Size, masked bool) (image *gorgonia.Node, p *Patches, err error) {
	b := newBuilder()
	image = b.input(ImageName, n, models.InputChannels, size.H, size.W)
	p = b.patches(image, masked)
	if b.err != nil {
		return nil, nil, fmt.Errorf("network: %w", b.err)
	}
	return image, p, nil
}

// sizeOf returns the width and height of images.
func sizeOf(image *gorgonia.Node) models.Size {
	s := image.Shape()
	return models.Size{W: s[3], H: s[2]}
}

// pad adds the border of the backbone's input.
func (b *builder) pad(x *gorgonia.Node, border models.Size) *gorgonia.Node {
	if border.W == border.H && border.W > 0 {
		return b.apply(PadEdge, border.W, x)
	}
	if border.W > 0 {
		x = b.apply(PadWidth, border.W, x)
	}
	if border.H > 0 {
		x = b.apply(PadHeight, border.H, x)
	}
	return x
}

// crop removes the border of the backbone's input.
func (b *builder) crop(x *gorgonia.Node, border models.Size) *gorgonia.Node {
	if border.W == border.H && border.W > 0 {
		return b.apply(Crop, border.W, x)
	}
	if border.W > 0 {
		x = b.apply(CropWidth, border.W, x)
	}
	if border.H > 0 {
		x = b.apply(CropHeight, border.H, x)
	}
	return x
}

// patches resizes images for the backbone, and adds the backbone.
func (b *builder) patches(image *gorgonia.Node, masked bool) *Patches {
	in := models.BackboneInputOf(sizeOf(image))
	x := image
	if masked {
		x = b.node(Rectify(image))
	}
	if in.Times > 1 {
		x = b.apply(Enlarge, in.Times, x)
	}
	x = b.pad(x, in.Border)
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
//
// With f.Masked, a patch is judged if any of its pixels is inside. Others do not count
// in pooled features.
func (f *Forward) judgePatches(heads bool, bank, places int) (*Judgement, error) {
	b := &builder{graph: f.Graph}
	size := sizeOf(f.Image)
	features := b.patches(f.Image, f.Masked)
	if b.err != nil {
		return nil, fmt.Errorf("network: %w", b.err)
	}
	j := &Judgement{Filters: features.Backbone, Features: features.Features}
	inputs := func(ps []models.Parameter) gorgonia.Nodes {
		ns := b.inputs(ps)
		j.Parameters = append(j.Parameters, ns...)
		return ns
	}
	ofBlock, inside := map[int]*gorgonia.Node{}, map[int]*gorgonia.Node{}
	for i, t := range models.HeadTaps() {
		ofBlock[t.Block] = features.Features[i]
		inside[t.Block] = b.patchesInside(f, t)
	}
	if places > 0 {
		j.Place = b.input(PlaceName, f.Image.Shape()[0])
		ps := inputs(models.PlaceParameters(size, places))
		for i, t := range models.Taps() {
			ofBlock[t.Block] = b.apply(PlaceDeviation, 0, ofBlock[t.Block], j.Place, ps[2*i], ps[2*i+1])
		}
	}
	var scores, maps gorgonia.Nodes
	headMember := -1 // index of the defect heads among the members
	for i, m := range models.Members(heads) {
		ps := inputs(m.Parameters(size, bank))
		x := ofBlock[m.Block]
		switch m.Kind {
		case models.PatchGaussian:
			distance := b.within(0, b.apply(PatchDistance, 0, x, ps[0], ps[1], ps[2], ps[3]), inside[m.Block])
			maps = append(maps, b.apply(Logarithm, 0, distance))
			scores = append(scores, b.logarithm(b.apply(Peak, 0, distance)))
		case models.PooledGaussian:
			pooled := b.pooled(x, inside[m.Block])
			scores = append(scores, b.logarithm(b.apply(Mahalanobis, 1, pooled, ps[0], ps[1], ps[2])))
		case models.PooledNeighbour:
			pooled := b.pooled(x, inside[m.Block])
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
		logits = b.within(outsideLogit, logits, inside[models.HeadTaps()[0].Block])
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
	j.Map = b.anomalyMap(f, maps, join)
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
func (b *builder) anomalyMap(f *Forward, maps, join gorgonia.Nodes) *gorgonia.Node {
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
	in := models.BackboneInputOf(sizeOf(f.Image))
	x := b.crop(b.apply(Enlarge, in.Size.H/finest, z), in.Border)
	if in.Times > 1 {
		x = b.apply(AveragePool, in.Times, x)
	}
	x = b.apply(Softplus, 0, x)
	if f.Masked {
		x = b.within(0, x, b.apply(Inside, 1, f.Image))
	}
	return b.apply(Plane, 0, x)
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
