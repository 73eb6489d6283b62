package network

import (
	"fmt"
	"hash"
	"math"

	"github.com/chewxy/hm"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

// TargetName is the input of a marker's training that says where defects are.
const TargetName = "target"

// PlacesName is the input that has what is known of scale i's places.
func PlacesName(i int) string { return fmt.Sprintf("places.%d", i) }

// inputs adds the parameters as inputs of the graph.
func (b *builder) inputs(ps []models.Parameter) gorgonia.Nodes {
	nodes := make(gorgonia.Nodes, len(ps))
	for i, p := range ps {
		nodes[i] = b.input(p.Name, p.Shape...)
	}
	return nodes
}

// markers adds what marks synthetic defects: from the features of the places, and
// mean and precision of each scale's, to the sum of both markers' logits in
// standard deviations (N×1×P×P). It gives the parameters that it needs.
func (b *builder) markers(features gorgonia.Nodes, learnt []gorgonia.Nodes, side int) (marks *gorgonia.Node, ps gorgonia.Nodes) {
	var known gorgonia.Nodes
	for i := range models.MarkerScales(side) {
		known = append(known, b.step(Join, 0, features[i], b.step(Deviation, 0, features[i], learnt[i][0], learnt[i][1])))
	}
	seen := b.places(known, side)
	for k := range models.Markers {
		own := b.inputs(models.MarkerParameters(side, k))
		ps = append(ps, own...)
		logit := b.marker(seen, own)
		if k == 0 {
			marks = logit
		} else {
			marks = b.node(gorgonia.Add(b.checked(marks), b.checked(logit)))
		}
	}
	all := models.MarkersParameters(side)
	scale := b.inputs(all[len(all)-2:])
	ps = append(ps, scale...)
	return b.step(Standardize, 0, marks, scale[0], scale[1]), ps
}

// places puts what is known of the places of each scale over each other, at the finest
// scale's places.
func (b *builder) places(known gorgonia.Nodes, side int) *gorgonia.Node {
	scales := models.MarkerScales(side)
	seen := known[0]
	for i, s := range scales[1:] {
		seen = b.step(Join, 0, seen, b.step(Enlarge, scales[0].Places/s.Places, known[i+1]))
	}
	return seen
}

// marker is one of them: logits (N×1×P×P) of places (N×C×P×P).
func (b *builder) marker(x *gorgonia.Node, parameters gorgonia.Nodes) *gorgonia.Node {
	for i := 0; i < len(parameters); i += 2 {
		weight := parameters[i]
		if b.err != nil {
			return b.checked(nil)
		}
		kernel := weight.Shape()[3]
		x = b.node(Convolve(b.checked(x), weight, parameters[i+1], Window{Kernel: kernel, Stride: 1, Padding: kernel / 2}))
		if i+2 < len(parameters) {
			x = b.node(Rectify(b.checked(x)))
		}
	}
	return x
}

// MarkerGradient is a marker with its loss and the loss's derivatives.
type MarkerGradient struct {
	Graph *gorgonia.ExprGraph
	// Places are, for each of models.MarkerScales, N×2F×P×P: the features, then their
	// deviations. Target is N×1×P×P with the finest scale's P: 1 where a defect was
	// painted, 0 where none was.
	Places gorgonia.Nodes
	Target *gorgonia.Node
	// Weight is the share of the whole batch that these images are.
	Weight *gorgonia.Node
	// Parameters are in the order of models.MarkerParameters and bear its names.
	Parameters gorgonia.Nodes
	// Logits are N×1×P×P; Loss is Weight times their mean LogisticLoss.
	Logits, Loss *gorgonia.Node
	// Gradients are in the order of Parameters.
	Gradients gorgonia.Nodes
}

// DifferentiateMarker builds marker k for n images of that side, and
// differentiates it.
func DifferentiateMarker(n, side, k int) (*MarkerGradient, error) {
	b := newBuilder()
	scales := models.MarkerScales(side)
	p := scales[0].Places
	g := &MarkerGradient{
		Graph: b.graph, Target: b.input(TargetName, n, 1, p, p),
		Weight: b.input(WeightName), Parameters: b.inputs(models.MarkerParameters(side, k)),
	}
	for i, s := range scales {
		g.Places = append(g.Places, b.input(PlacesName(i), n, 2*s.Features(), s.Places, s.Places))
	}
	g.Logits = b.marker(b.places(g.Places, side), g.Parameters)
	loss := b.node(gorgonia.ApplyOp(LogisticLoss{}, b.checked(g.Logits), g.Target))
	rows := b.node(gorgonia.Mean(b.checked(loss), 3)) // by rows first, as in Autoencoder
	images := b.node(gorgonia.Mean(b.checked(rows), 1, 2))
	g.Loss = b.node(gorgonia.HadamardProd(b.node(gorgonia.Mean(b.checked(images))), g.Weight))
	if b.err != nil {
		return nil, fmt.Errorf("network: a marker: %w", b.err)
	}
	var err error
	if g.Gradients, err = gorgonia.Grad(g.Loss, g.Parameters...); err != nil {
		return nil, fmt.Errorf("network: differentiating a marker: %w", err)
	}
	return g, nil
}

// LogisticLoss is the cross-entropy of a logit y and a target t in 0…1, element
// by element: ln(1 + exp y) − t·y, PyTorch's BCEWithLogitsLoss without reduction.
type LogisticLoss struct{ pair }

// InferShape gives the logits'.
func (op LogisticLoss) InferShape(in ...gorgonia.DimSizer) (tensor.Shape, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	y, err := dims4(op.String(), "logits", in[0])
	if err != nil {
		return nil, err
	}
	if t, err := dims4(op.String(), "target", in[1]); err != nil || t != y {
		return nil, fmt.Errorf("%v: logits %v and target %v", op, y, in[1])
	}
	return y[:], nil
}

// Do is the reference implementation.
func (op LogisticLoss) Do(in ...gorgonia.Value) (gorgonia.Value, error) {
	if err := arity(op, len(in)); err != nil {
		return nil, err
	}
	y, s, err := dense(op.String(), "logits", in[0])
	if err != nil {
		return nil, err
	}
	t, _, err := dense(op.String(), "target", in[1])
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(y))
	for i, v := range y {
		out[i] = max(v, 0) + float32(math.Log1p(math.Exp(-math.Abs(float64(v))))) - t[i]*v
	}
	return newDense(out, s...), nil
}

// DiffWRT is true for the logits only.
func (LogisticLoss) DiffWRT(int) []bool { return []bool{true, false} }

// SymDiff gives (sigmoid(y) − t)·gradient for the logits.
func (LogisticLoss) SymDiff(in gorgonia.Nodes, _, grad *gorgonia.Node) (gorgonia.Nodes, error) {
	b := &builder{}
	apart := b.node(gorgonia.Sub(b.node(gorgonia.Sigmoid(in[0])), in[1]))
	dy := b.node(gorgonia.HadamardProd(apart, grad))
	return gorgonia.Nodes{dy, nil}, b.err
}

// Type is Tensor-4 a → Tensor-4 a → Tensor-4 a.
func (LogisticLoss) Type() hm.Type { return hm.NewFnType(tensorOf(4), tensorOf(4), tensorOf(4)) }

// WriteHash writes what tells this operator from others.
func (op LogisticLoss) WriteHash(h hash.Hash) { writeHash(op, h) }

// Hashcode is the hash of the description.
func (op LogisticLoss) Hashcode() uint32 { return hashcode(op) }

func (LogisticLoss) String() string { return "LogisticLoss" }
