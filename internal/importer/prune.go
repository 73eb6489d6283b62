package importer

import (
	"slices"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	"google.golang.org/protobuf/proto"
)

// pruneToAutoencoder removes everything except the autoencoder from a file that has the
// output mse, and renames mse to reconstruction_error. The operators that compute other
// anomaly scores have no single counterparts in Gorgonia. Any other data is returned
// unchanged.
func pruneToAutoencoder(data []byte) []byte {
	var m onnx.ModelProto
	if err := (proto.UnmarshalOptions{RecursionLimit: maxDepth}).Unmarshal(data, &m); err != nil {
		return data // checkEnvelope returns the error
	}
	g := m.GetGraph()
	var outputs []*onnx.ValueInfoProto
	hasMSE := false
	for _, o := range g.GetOutput() {
		switch o.GetName() {
		case network.MSEName:
			hasMSE = true
			o.Name = proto.String(network.ErrorName)
			outputs = append(outputs, o)
		case network.ReconstructionName:
			outputs = append(outputs, o)
		}
	}
	if !hasMSE {
		return data
	}
	g.Output = outputs
	needed := map[string]bool{network.ReconstructionName: true, network.MSEName: true}
	var nodes []*onnx.NodeProto
	for i := len(g.Node) - 1; i >= 0; i-- { // operands precede their users
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
	g.Input = slices.DeleteFunc(g.Input, func(v *onnx.ValueInfoProto) bool { return v.GetName() == network.PlaceName })
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
