package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// FeaturesName returns the name of the output, or input, with the features of a block of a
// backbone, "features.4" for block 4.
func FeaturesName(block int) string { return fmt.Sprintf("features.%d", block) }

// FeaturesModel lowers a backbone with its embedded weights. Input: `image` (N×3×S×S, RGB
// in 0…1, any N; S, the side, must be a multiple of network.BackboneStride). Outputs: for
// each block in taps the output FeaturesName(block), N×C×P×P with the sizes of Spec.Tap.
// FeaturesModel returns backbone.ErrNotEmbedded, wrapped, if the program does not embed the
// weights of spec.
func FeaturesModel(side int, spec backbone.Spec, taps []int, with Operators) (*SessionModel, error) {
	image, features, parameters, err := network.Features(1, side, spec, taps)
	if err != nil {
		return nil, err
	}
	l := newLowering("features", false)
	l.batch = "N"
	l.processor, l.fixed = with == Processor, true
	l.input(l.source(image, network.ImageName), "")
	if err := l.backbone(spec.Name, parameters); err != nil {
		return nil, err
	}
	return l.features(features, taps)
}

// PatchFeaturesModel lowers the patch features of a model for images of that size. If masked,
// pixels below 0 are outside. Input: `image` (N×3×H×W in 0…1, any N). Outputs: FeaturesName of
// each block of models.HeadTaps.
func PatchFeaturesModel(size models.Size, masked bool, with Operators) (*SessionModel, error) {
	image, p, err := network.PatchFeatures(1, size, masked)
	if err != nil {
		return nil, err
	}
	l := newLowering("features", false)
	l.batch = "N"
	l.processor, l.fixed = with == Processor, true
	l.input(l.source(image, network.ImageName), "")
	l.fixedTensors(p.Backbone)
	var blocks []int
	for _, t := range models.HeadTaps() {
		blocks = append(blocks, t.Block)
	}
	return l.features(p.Features, blocks)
}

// features declares the features of each block as outputs and returns the model.
func (l *lowering) features(features gorgonia.Nodes, blocks []int) (*SessionModel, error) {
	// Lower every block before declaring an output: declaring one converts it to N×C×H×W,
	// and later blocks must use the unconverted value.
	for _, n := range features {
		if _, err := l.lower(n); err != nil {
			return nil, err
		}
	}
	s := &SessionModel{Inputs: []string{network.ImageName}}
	for i, n := range features {
		name := FeaturesName(blocks[i])
		if err := l.result(n, name, ""); err != nil {
			return nil, err
		}
		s.Outputs = append(s.Outputs, name)
	}
	s.Kernels = l.kernels
	var err error
	s.ONNX, err = l.model("", nil)
	return s, err
}

// backbone declares a backbone's parameters as initializers with the embedded weights.
func (l *lowering) backbone(name string, parameters gorgonia.Nodes) error {
	weights, err := backbone.Weights(name)
	if err != nil {
		return err
	}
	if len(parameters) > len(weights) {
		return fmt.Errorf("exporter: the graph has %d parameters of %s, the program embeds %d", len(parameters), name, len(weights))
	}
	for i, n := range parameters {
		l.parameter(n.Name(), n.Shape(), weights[i].Data)
		l.source(n, n.Name())
	}
	return nil
}
