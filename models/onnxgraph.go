package models

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// Further field numbers, of internal/onnx/onnx.proto and of ONNX's full schema, that
// are parsed without the protobuf library.
const (
	graphOutput            = 12
	graphSparseInitializer = 15

	nodeInput     = 1
	nodeOutput    = 2
	nodeAttribute = 5
	nodeDomain    = 7

	attributeName          = 1
	attributeInt           = 3
	attributeString        = 4
	attributeTensor        = 5
	attributeGraph         = 6
	attributeInts          = 8
	attributeTensors       = 10
	attributeGraphs        = 11
	attributeType          = 20
	attributeReference     = 21
	attributeSparseTensor  = 22
	attributeSparseTensors = 23

	attributeTypeInt    = 2
	attributeTypeString = 3
	attributeTypeInts   = 7
)

// Bounds on a graph, in addition to Limits.MaxNodes.
const (
	maxNodeFields = 1024 // inputs, outputs or attributes of one node
	maxValues     = 8192 // named values: inputs, initializers and results
	maxValueName  = 1024 // bytes
)

// graphValue describes a value of the graph.
type graphValue struct {
	// input and initializer report the source of the value; both are false for the
	// result of a node. Both are true for an initializer that is listed as an input,
	// as in older files.
	input, initializer bool
	// fromInput reports whether the value depends on an input of the graph,
	// fromReconstruction whether it depends on the autoencoder's result.
	fromInput, fromReconstruction bool
	// fromFilter reports whether the value depends on a convolution with an
	// auxiliary kernel (see auxiliaryPrefixes). Such a value belongs to the anomaly
	// score and must not be an input of the autoencoder.
	fromFilter bool
	// stage is the number of the autoencoder's stage that computes the value, from 1
	// on; 0 for a value outside of the autoencoder.
	stage int
	used  bool
}

// onnxGraph follows the values of an ONNX graph from node to node, to check that the
// graph computes the autoencoder that the weights belong to.
//
// The autoencoder is a chain of stages: each convolution (Conv, then ConvTranspose)
// is a stage, and so is the activation after it. The result of a stage may only be
// used by the next stage. Before the first stage and after the reconstruction, any
// of plainOps are allowed.
type onnxGraph struct {
	layers int
	values map[string]graphValue
	nodes  int
	limit  int // maximum number of nodes
	// reached is the highest stage found.
	reached int
	// rebuilt reports whether an output of the graph depends on the reconstruction.
	rebuilt bool
	node    onnxNode // the current node; its slices are reused
}

// define adds a named value. A name may be defined twice only as an initializer and
// an input. It returns ErrFormat or ErrTooLarge, wrapped.
func (g *onnxGraph) define(name []byte, v graphValue) error {
	old, ok := g.values[string(name)]
	overridable := old.initializer && !old.input && v.input || old.input && !old.initializer && v.initializer
	switch {
	case len(name) == 0:
		return fmt.Errorf("%w: the ONNX graph has an input or an initializer without a name", ErrFormat)
	case len(name) > maxValueName:
		return fmt.Errorf("%w: the ONNX graph has a name of %d bytes, at most %d are read", ErrTooLarge, len(name), maxValueName)
	case ok && !overridable:
		return fmt.Errorf("%w: the ONNX graph defines %.80q twice", ErrFormat, name)
	case !ok && len(g.values) == maxValues:
		return fmt.Errorf("%w: an ONNX graph of more than %d named values", ErrTooLarge, maxValues)
	}
	if ok {
		v.input, v.initializer = true, true
	}
	if v.input {
		v.fromInput = !v.initializer
	}
	g.values[string(name)] = v
	return nil
}

// check checks the nodes of an encoded graph and then its outputs. Inputs and
// initializers must have been defined.
func (g *onnxGraph) check(graph []byte) error {
	err := walk(graph, func(num protowire.Number, typ protowire.Type, value []byte) error {
		if num != graphNode || typ != protowire.BytesType {
			return nil
		}
		if g.nodes++; g.nodes > g.limit {
			return fmt.Errorf("%w: an ONNX graph of more than %d nodes", ErrTooLarge, g.limit)
		}
		if err := g.node.parse(value); err != nil {
			return err
		}
		return g.checkNode()
	})
	if err != nil {
		return err
	}
	if last := g.last(); g.reached != last {
		return fmt.Errorf("%w: the ONNX graph ends after %d of the network's %d convolutions and activations, expected %s",
			ErrArchitecture, g.reached, last, g.expected(g.reached+1))
	}
	err = walk(graph, func(num protowire.Number, typ protowire.Type, value []byte) error {
		if num != graphOutput || typ != protowire.BytesType {
			return nil
		}
		name, err := nameOf(value, valueInfoName)
		if err != nil {
			return err
		}
		v, ok := g.values[string(name)]
		if !ok {
			return fmt.Errorf("%w: the ONNX graph has the output %.80q, which no node computes", ErrFormat, name)
		}
		if g.within(v) {
			return fmt.Errorf("%w: the ONNX graph has the output %.80q from inside the network, expected the reconstruction only", ErrArchitecture, name)
		}
		g.rebuilt = g.rebuilt || v.fromReconstruction
		return nil
	})
	if err == nil && !g.rebuilt {
		err = fmt.Errorf("%w: no output of the ONNX graph is computed from the network's reconstruction", ErrArchitecture)
	}
	return err
}

// last returns the number of the last stage, the Sigmoid.
func (g *onnxGraph) last() int { return 4 * g.layers }

// within reports whether v is the result of a stage other than the last, so that
// only the next stage may use it.
func (g *onnxGraph) within(v graphValue) bool { return v.stage > 0 && v.stage < g.last() }

// operatorOf returns the operator of a stage.
func (g *onnxGraph) operatorOf(stage int) string {
	switch {
	case stage == g.last():
		return "Sigmoid"
	case stage%2 == 0:
		return "Relu"
	case stage < 2*g.layers:
		return "Conv"
	}
	return "ConvTranspose"
}

// layerOf returns the prefix of the parameter names of a convolution's stage.
func (g *onnxGraph) layerOf(stage int) string {
	if stage < 2*g.layers {
		return fmt.Sprintf("encoder.%d", stage-1)
	}
	return fmt.Sprintf("decoder.%d", stage-1-2*g.layers)
}

// expected describes a stage for an error message.
func (g *onnxGraph) expected(stage int) string {
	op := g.operatorOf(stage)
	if stage%2 == 0 {
		return "a " + op
	}
	return fmt.Sprintf("a %s with %s.weight and .bias", op, g.layerOf(stage))
}

// checkNode checks the current node and defines its results.
func (g *onnxGraph) checkNode() error {
	n := &g.node
	if !standardDomain(n.domain) {
		return fmt.Errorf("%w: the ONNX graph's %.40q is an operator of %.40q, expected ONNX's own operators", ErrArchitecture, n.op, n.domain)
	}
	if !plainOps[string(n.op)] {
		return fmt.Errorf("%w: the ONNX graph has a node of type %.40q, expected convolutions with ReLU, a Sigmoid at the end and plain operators around them",
			ErrArchitecture, n.op)
	}
	var result graphValue
	stage := 0 // highest stage among the node's inputs from inside the chain
	for _, name := range n.inputs {
		if len(name) == 0 {
			continue // an omitted optional input
		}
		v, ok := g.values[string(name)]
		if !ok {
			return fmt.Errorf("%w: the ONNX graph's %s has the input %.80q, which is not a graph input, an initializer or an earlier node's result",
				ErrFormat, n.op, name)
		}
		result.fromInput = result.fromInput || v.fromInput
		result.fromReconstruction = result.fromReconstruction || v.fromReconstruction
		result.fromFilter = result.fromFilter || v.fromFilter
		parameter := v.initializer && parameterName.Match(name)
		if g.within(v) {
			stage = max(stage, v.stage)
		} else if !parameter {
			continue
		}
		if v.used {
			return fmt.Errorf("%w: the ONNX graph uses %.80q twice, expected the network's next stage to be its only use", ErrArchitecture, name)
		}
		v.used = true
		g.values[string(name)] = v
		if parameter && !n.convolves() {
			return fmt.Errorf("%w: the ONNX graph's %s has the input %.80q, expected only its convolution to use it", ErrArchitecture, n.op, name)
		}
	}
	switch {
	case stage == 0 && !result.fromReconstruction && g.isAuxiliary(n):
		result.fromFilter = true
	case n.convolves(), stage > 0 && string(n.op) != "Identity":
		if err := g.checkStage(stage+1, result.fromInput); err != nil {
			return err
		}
		result.stage = stage + 1
	case stage > 0 && len(n.inputs) != 1:
		return fmt.Errorf("%w: the ONNX graph's Identity has %d inputs, expected one", ErrFormat, len(n.inputs))
	case stage > 0:
		result.stage = stage
	}
	if result.stage > 0 && (len(n.outputs) != 1 || len(n.outputs[0]) == 0) {
		return fmt.Errorf("%w: the ONNX graph's %s has %d results, expected one", ErrFormat, n.op, len(n.outputs))
	}
	g.reached = max(g.reached, result.stage)
	result.fromReconstruction = result.fromReconstruction || result.stage == g.last()
	for _, name := range n.outputs {
		if len(name) == 0 {
			continue // an omitted optional result
		}
		if err := g.define(name, result); err != nil {
			return err
		}
	}
	return nil
}

// auxiliaryPrefixes are the name prefixes of convolution kernels outside of the
// autoencoder: the Gabor filter bank of earlier versions, the backbone and the
// reference statistics. They compute the anomaly score.
var auxiliaryPrefixes = []string{"filters.", "backbone.", referencePrefix}

// isAuxiliary reports whether the node is a convolution with an auxiliary kernel that
// is an initializer.
func (g *onnxGraph) isAuxiliary(n *onnxNode) bool {
	if string(n.op) != "Conv" || len(n.inputs) < 2 {
		return false
	}
	auxiliary := slices.ContainsFunc(auxiliaryPrefixes, func(p string) bool { return bytes.HasPrefix(n.inputs[1], []byte(p)) })
	return auxiliary && g.values[string(n.inputs[1])].initializer
}

// checkStage returns ErrArchitecture, wrapped, unless the current node is the given
// stage of the autoencoder. fromInput reports whether an input of the node depends
// on an input of the graph.
func (g *onnxGraph) checkStage(stage int, fromInput bool) error {
	n := &g.node
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: the ONNX graph's %s %s", ErrArchitecture, n.op, fmt.Sprintf(format, args...))
	}
	if op := g.operatorOf(stage); string(n.op) != op {
		return wrong("is stage %d of the network, expected %s", stage, g.expected(stage))
	}
	want := 1
	if n.convolves() {
		want = 3
	}
	if len(n.inputs) != want {
		return wrong("has %d inputs, expected %d", len(n.inputs), want)
	}
	if !n.convolves() {
		if len(n.attributes) > 0 {
			return wrong("has %d attributes, expected none", len(n.attributes))
		}
		return nil
	}
	if !fromInput {
		return wrong("convolves no input of the graph, expected the image")
	}
	if v := g.values[string(n.inputs[0])]; v.fromFilter {
		return wrong("convolves %.80q, which comes from a fixed filter, expected the image", n.inputs[0])
	} else if v.stage != stage-1 {
		return wrong("convolves %.80q, expected the network's stage %d", n.inputs[0], stage-1)
	}
	for i, name := range []string{g.layerOf(stage) + ".weight", g.layerOf(stage) + ".bias"} {
		if string(n.inputs[i+1]) != name {
			return wrong("is stage %d of the network with %.80q, expected %s", stage, n.inputs[i+1], name)
		}
	}
	return n.checkAttributes(g.layerOf(stage))
}

// onnxNode holds the fields of an encoded node, as slices of the file.
type onnxNode struct {
	op, domain                  []byte
	inputs, outputs, attributes [][]byte
}

// convolves reports whether the node is a convolution, plain or transposed.
func (n *onnxNode) convolves() bool {
	return string(n.op) == "Conv" || string(n.op) == "ConvTranspose"
}

// parse sets n to the fields of an encoded node, and checks its attributes.
func (n *onnxNode) parse(b []byte) error {
	*n = onnxNode{inputs: n.inputs[:0], outputs: n.outputs[:0], attributes: n.attributes[:0]}
	err := walk(b, func(num protowire.Number, typ protowire.Type, value []byte) error {
		if typ != protowire.BytesType {
			return nil
		}
		switch num {
		case nodeOpType:
			n.op = value
		case nodeDomain:
			n.domain = value
		case nodeInput:
			n.inputs = append(n.inputs, value)
		case nodeOutput:
			n.outputs = append(n.outputs, value)
		case nodeAttribute:
			n.attributes = append(n.attributes, value)
		}
		if max(len(n.inputs), len(n.outputs), len(n.attributes)) > maxNodeFields {
			return fmt.Errorf("%w: a node of the ONNX graph has more than %d inputs, outputs or attributes", ErrTooLarge, maxNodeFields)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, a := range n.attributes {
		if err := n.checkPlain(a); err != nil {
			return err
		}
	}
	return nil
}

// checkPlain returns an error unless the attribute consists of numbers, text and
// dense tensors with embedded data.
func (n *onnxNode) checkPlain(attribute []byte) error {
	return walk(attribute, func(num protowire.Number, typ protowire.Type, value []byte) error {
		if typ != protowire.BytesType {
			return nil
		}
		switch num {
		case attributeGraph, attributeGraphs:
			return fmt.Errorf("%w: the ONNX graph's %.40q has a nested graph, expected plain operators", ErrArchitecture, n.op)
		case attributeReference:
			return fmt.Errorf("%w: the ONNX graph's %.40q refers to a function's attribute, expected no functions", ErrArchitecture, n.op)
		case attributeSparseTensor, attributeSparseTensors:
			return fmt.Errorf("%w: the ONNX graph's %.40q has a sparse tensor, expected dense ones", ErrArchitecture, n.op)
		case attributeTensor, attributeTensors:
			return rejectExternalData(value, n.op)
		}
		return nil
	})
}

// checkAttributes checks the attributes of a convolution of the autoencoder: kernel
// 3×3, stride 2, padding 1, and output padding 1 when it is transposed.
func (n *onnxNode) checkAttributes(layer string) error {
	want := map[string]string{"strides": "[2 2]", "pads": "[1 1 1 1]", "kernel_shape": "[3 3]", "dilations": "[1 1]", "group": "1", "auto_pad": "NOTSET"}
	// ONNX's defaults for these attributes have other values.
	required := []string{"strides", "pads"}
	if string(n.op) == "ConvTranspose" {
		want["output_padding"] = "[1 1]"
		required = append(required, "output_padding")
	}
	var seen []string
	for _, b := range n.attributes {
		name, value, err := attributeText(b)
		if err != nil {
			return err
		}
		expected, ok := want[name]
		if slices.Contains(seen, name) {
			return fmt.Errorf("%w: %s of %s in the ONNX graph is given twice", ErrFormat, name, layer)
		}
		if !ok || value != expected {
			return fmt.Errorf("%w: in the ONNX graph %.40q of %s is %.40s, expected %s", ErrArchitecture, name, layer, value, cmp.Or(expected, "no such attribute"))
		}
		seen = append(seen, name)
	}
	for _, name := range required {
		if !slices.Contains(seen, name) {
			return fmt.Errorf("%w: %s of %s is missing in the ONNX graph, expected %s", ErrArchitecture, name, layer, want[name])
		}
	}
	return nil
}

// attributeText returns the name of an attribute and its value as text. The value is
// an integer, up to few+1 integers, or a string.
func attributeText(b []byte) (name, value string, err error) {
	const few = 8 // no attribute of a convolution has more integers
	var number, kind uint64
	var numbers []int64
	var text []byte
	err = walk(b, func(num protowire.Number, typ protowire.Type, value []byte) error {
		switch {
		case num == attributeName && typ == protowire.BytesType:
			name = string(value[:min(len(value), maxValueName)])
		case num == attributeString && typ == protowire.BytesType:
			text = value
		case num == attributeInt && typ == protowire.VarintType:
			number, _ = protowire.ConsumeVarint(value)
		case num == attributeType && typ == protowire.VarintType:
			kind, _ = protowire.ConsumeVarint(value)
		case num == attributeInts && (typ == protowire.BytesType || typ == protowire.VarintType):
			for len(value) > 0 && len(numbers) <= few {
				v, n := protowire.ConsumeVarint(value)
				if n < 0 {
					return errTruncated
				}
				numbers, value = append(numbers, int64(v)), value[n:]
			}
		}
		return nil
	})
	switch kind {
	case attributeTypeInt:
		return name, fmt.Sprint(int64(number)), err
	case attributeTypeInts:
		return name, fmt.Sprint(numbers), err
	case attributeTypeString:
		return name, string(text[:min(len(text), maxValueName)]), err
	}
	return name, fmt.Sprintf("of type %d", kind), err
}
