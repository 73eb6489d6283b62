package exporter

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/network"
	"gorgonia.org/gorgonia"
)

// FeaturesName is the output that has what comes out of that block of a backbone.
func FeaturesName(block int) string { return fmt.Sprintf("features.%d", block) }

// FeaturesModel lowers a backbone alone, with the weights that the program holds:
// input `image` (N×3×S×S, RGB in 0…1, any N, S a multiple of
// network.BackboneStride), and for each of the blocks that taps names an output of
// the name FeaturesName gives it, N×C×P×P by Spec.Tap. It returns
// backbone.ErrNotEmbedded, wrapped, for a network whose weights the program does
// not hold.
func FeaturesModel(side int, spec backbone.Spec, taps []int, with Operators) (*StepModel, error) {
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

// features finishes a graph whose outputs are those features, of the blocks.
func (l *lowering) features(features gorgonia.Nodes, blocks []int) (*StepModel, error) {
	// All are lowered before any is made an output, in ONNX's layout: what comes behind a
	// block takes its result as it lies.
	for _, n := range features {
		if _, err := l.lower(n); err != nil {
			return nil, err
		}
	}
	s := &StepModel{Inputs: []string{network.ImageName}}
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

// backbone declares a backbone's parameters with the weights that the program
// holds.
func (l *lowering) backbone(name string, parameters gorgonia.Nodes) error {
	weights, err := backbone.Weights(name)
	if err != nil {
		return err
	}
	if len(parameters) > len(weights) {
		return fmt.Errorf("exporter: the graph has %d parameters of %s, the program holds %d", len(parameters), name, len(weights))
	}
	for i, n := range parameters {
		l.parameter(n.Name(), n.Shape(), weights[i].Data)
		l.source(n, n.Name())
	}
	return nil
}
