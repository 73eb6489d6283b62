package importer

import (
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	"google.golang.org/protobuf/proto"
)

// networkOf gives a file whose reconstruction_error is more than the network's
// own error as one that holds the network alone: what its outputs reconstruction
// and mse come from, the latter as reconstruction_error. What judges the image
// beside the network is made of operators that Gorgonia has no counterpart of one
// by one. Any other file, and what is no file, is given as it is.
func networkOf(data []byte) []byte {
	var m onnx.ModelProto
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(data, &m); err != nil {
		return data // for checkEnvelope to say what is wrong
	}
	g := m.GetGraph()
	var outputs []*onnx.ValueInfoProto
	plain := false
	for _, o := range g.GetOutput() {
		switch o.GetName() {
		case network.MSEName:
			plain = true
			o.Name = proto.String(network.ErrorName)
			outputs = append(outputs, o)
		case network.ReconstructionName:
			outputs = append(outputs, o)
		}
	}
	if !plain {
		return data
	}
	g.Output = outputs
	needed := map[string]bool{network.ReconstructionName: true, network.MSEName: true}
	var nodes []*onnx.NodeProto
	for i := len(g.Node) - 1; i >= 0; i-- { // operands come before
		n := g.Node[i]
		wanted := false
		for k, name := range n.Output {
			wanted = wanted || needed[name]
			if name == network.MSEName {
				n.Output[k] = network.ErrorName
			}
		}
		if !wanted {
			continue
		}
		for _, name := range n.Input {
			needed[name] = true
		}
		nodes = append([]*onnx.NodeProto{n}, nodes...)
	}
	g.Node = nodes
	var initializers []*onnx.TensorProto
	for _, t := range g.Initializer {
		if needed[t.GetName()] {
			initializers = append(initializers, t)
		}
	}
	g.Initializer = initializers
	pruned, err := proto.Marshal(&m)
	if err != nil {
		return data
	}
	return pruned
}
