package models

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// More field numbers of internal/onnx/onnx.proto and of ONNX's own schema that
// are walked by hand.
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

// Bounds on a graph, beside the Limits' MaxNodes.
const (
	maxNodeFields = 1024 // inputs, outputs or attributes of one node
	maxValues     = 8192 // named in the graph: inputs, initializers, results
	maxValueName  = 1024 // bytes
)

// graphValue is what is known of a tensor in the graph.
type graphValue struct {
	// input and initializer say where it comes from; it is a node's result when
	// neither is set. Older files list their initializers as inputs too.
	input, initializer bool
	// fed says that it is computed from an input of the graph, rebuilt that it
	// is computed from the network's result.
	fed, rebuilt bool
	// aside says that a fixed filter was convolved with what it comes from: it
	// belongs to what judges the image, and the network must not see it.
	aside bool
	// step is how far along the network's chain it is, 0 outside of it.
	step int
	used bool
}

// onnxGraph follows the values of an ONNX graph from node to node, to tell
// whether it computes the network that its weights are those of. The network is
// a chain: each convolution, transposed ones behind plain ones, is a step, and
// so is the activation that follows it. A value within the chain is used by the
// next step and by nothing else. What is done to an image before the chain, and
// with the reconstruction behind it, may be any plainOps.
type onnxGraph struct {
	layers int
	values map[string]graphValue
	nodes  int
	limit  int // of nodes
	// reached is the farthest step there is.
	reached int
	// rebuilt says that an output of the graph comes from the reconstruction.
	rebuilt bool
	node    onnxNode // the one being looked at, its slices used again
}

// define enters a value of the graph under its name.
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
		v.fed = !v.initializer
	}
	g.values[string(name)] = v
	return nil
}

// check follows the nodes of an encoded graph whose inputs and initializers are
// defined, and then its outputs.
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
		return g.follow()
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
			return fmt.Errorf("%w: the ONNX graph gives %.80q, which no node makes", ErrFormat, name)
		}
		if g.within(v) {
			return fmt.Errorf("%w: the ONNX graph gives %.80q from within the network, expected the reconstruction only", ErrArchitecture, name)
		}
		g.rebuilt = g.rebuilt || v.rebuilt
		return nil
	})
	if err == nil && !g.rebuilt {
		err = fmt.Errorf("%w: no output of the ONNX graph is computed from the network's reconstruction", ErrArchitecture)
	}
	return err
}

// last is the number of the chain's last step, the Sigmoid.
func (g *onnxGraph) last() int { return 4 * g.layers }

// within reports whether only the next step of the chain may use the value.
func (g *onnxGraph) within(v graphValue) bool { return v.step > 0 && v.step < g.last() }

// operatorOf is the operator of a step.
func (g *onnxGraph) operatorOf(step int) string {
	switch {
	case step == g.last():
		return "Sigmoid"
	case step%2 == 0:
		return "Relu"
	case step < 2*g.layers:
		return "Conv"
	}
	return "ConvTranspose"
}

// layerOf is the name that the parameters of a convolution's step begin with.
func (g *onnxGraph) layerOf(step int) string {
	if step < 2*g.layers {
		return fmt.Sprintf("encoder.%d", step-1)
	}
	return fmt.Sprintf("decoder.%d", step-1-2*g.layers)
}

// expected names a step for a message.
func (g *onnxGraph) expected(step int) string {
	op := g.operatorOf(step)
	if step%2 == 0 {
		return "a " + op
	}
	return fmt.Sprintf("a %s with %s.weight and .bias", op, g.layerOf(step))
}

// follow works out what the results of the node are.
func (g *onnxGraph) follow() error {
	n := &g.node
	if !standardDomain(n.domain) {
		return fmt.Errorf("%w: the ONNX graph's %.40q is an operator of %.40q, expected ONNX's own operators", ErrArchitecture, n.op, n.domain)
	}
	if !plainOps[string(n.op)] {
		return fmt.Errorf("%w: the ONNX graph has a node of type %.40q, expected convolutions with ReLU, a Sigmoid at the end and plain operators around them",
			ErrArchitecture, n.op)
	}
	var result graphValue
	step := 0 // of what the node takes from within the chain
	for _, name := range n.inputs {
		if len(name) == 0 {
			continue // an optional input that is left out
		}
		v, ok := g.values[string(name)]
		if !ok {
			return fmt.Errorf("%w: the ONNX graph's %s takes %.80q, which is no input, no initializer and no earlier node's result",
				ErrFormat, n.op, name)
		}
		result.fed = result.fed || v.fed
		result.rebuilt = result.rebuilt || v.rebuilt
		result.aside = result.aside || v.aside
		parameter := v.initializer && parameterName.Match(name)
		if g.within(v) {
			step = max(step, v.step)
		} else if !parameter {
			continue
		}
		if v.used {
			return fmt.Errorf("%w: the ONNX graph uses %.80q twice, expected the network's next step to be its only use", ErrArchitecture, name)
		}
		v.used = true
		g.values[string(name)] = v
		if parameter && !n.convolves() {
			return fmt.Errorf("%w: the ONNX graph's %s takes %.80q, expected its convolution to be the only one that does", ErrArchitecture, n.op, name)
		}
	}
	switch {
	case step == 0 && !result.rebuilt && g.filters(n):
		result.aside = true
	case n.convolves(), step > 0 && string(n.op) != "Identity":
		if err := g.advance(step+1, result.fed); err != nil {
			return err
		}
		result.step = step + 1
	case step > 0 && len(n.inputs) != 1:
		return fmt.Errorf("%w: the ONNX graph's Identity has %d inputs, expected one", ErrFormat, len(n.inputs))
	case step > 0:
		result.step = step
	}
	if result.step > 0 && (len(n.outputs) != 1 || len(n.outputs[0]) == 0) {
		return fmt.Errorf("%w: the ONNX graph's %s has %d results, expected one", ErrFormat, n.op, len(n.outputs))
	}
	g.reached = max(g.reached, result.step)
	result.rebuilt = result.rebuilt || result.step == g.last()
	for _, name := range n.outputs {
		if len(name) == 0 {
			continue // an optional result that nobody wants
		}
		if err := g.define(name, result); err != nil {
			return err
		}
	}
	return nil
}

// besidePrefixes begin the names of kernels that judge an image beside the network:
// the fixed ones of earlier versions, the backbone's, and what was learnt of normal
// images.
var besidePrefixes = []string{"filters.", "backbone.", normalityPrefix}

// filters reports whether the node convolves with such a kernel, which must be an
// initializer.
func (g *onnxGraph) filters(n *onnxNode) bool {
	if string(n.op) != "Conv" || len(n.inputs) < 2 {
		return false
	}
	beside := slices.ContainsFunc(besidePrefixes, func(p string) bool { return bytes.HasPrefix(n.inputs[1], []byte(p)) })
	return beside && g.values[string(n.inputs[1])].initializer
}

// advance returns ErrArchitecture, wrapped, when the node is not the given step
// of the chain.
func (g *onnxGraph) advance(step int, fed bool) error {
	n := &g.node
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: the ONNX graph's %s %s", ErrArchitecture, n.op, fmt.Sprintf(format, args...))
	}
	if op := g.operatorOf(step); string(n.op) != op {
		return wrong("is step %d of the network, expected %s", step, g.expected(step))
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
	if !fed {
		return wrong("convolves no input of the graph, expected the image")
	}
	if v := g.values[string(n.inputs[0])]; v.aside {
		return wrong("convolves %.80q, which comes from a fixed filter, expected the image", n.inputs[0])
	} else if v.step != step-1 {
		return wrong("convolves %.80q, expected the network's step %d", n.inputs[0], step-1)
	}
	for i, name := range []string{g.layerOf(step) + ".weight", g.layerOf(step) + ".bias"} {
		if string(n.inputs[i+1]) != name {
			return wrong("is step %d of the network with %.80q, expected %s", step, n.inputs[i+1], name)
		}
	}
	return n.window(g.layerOf(step))
}

// onnxNode is an encoded node taken apart; everything points into the file.
type onnxNode struct {
	op, domain                  []byte
	inputs, outputs, attributes [][]byte
}

func (n *onnxNode) convolves() bool {
	return string(n.op) == "Conv" || string(n.op) == "ConvTranspose"
}

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
		if err := n.plain(a); err != nil {
			return err
		}
	}
	return nil
}

// plain returns an error for an attribute that is more than numbers and text in
// this file.
func (n *onnxNode) plain(attribute []byte) error {
	return walk(attribute, func(num protowire.Number, typ protowire.Type, value []byte) error {
		if typ != protowire.BytesType {
			return nil
		}
		switch num {
		case attributeGraph, attributeGraphs:
			return fmt.Errorf("%w: the ONNX graph's %.40q holds a graph of its own, expected plain operators", ErrArchitecture, n.op)
		case attributeReference:
			return fmt.Errorf("%w: the ONNX graph's %.40q refers to a function's attribute, expected no functions", ErrArchitecture, n.op)
		case attributeSparseTensor, attributeSparseTensors:
			return fmt.Errorf("%w: the ONNX graph's %.40q holds a sparse tensor, expected dense ones", ErrArchitecture, n.op)
		case attributeTensor, attributeTensors:
			return inside(value, n.op)
		}
		return nil
	})
}

// window checks the attributes of a convolution of the chain: 3×3, stride 2,
// padding 1, and when it is transposed one more row and column at the end.
func (n *onnxNode) window(layer string) error {
	want := map[string]string{"strides": "[2 2]", "pads": "[1 1 1 1]", "kernel_shape": "[3 3]", "dilations": "[1 1]", "group": "1", "auto_pad": "NOTSET"}
	// These are not the default.
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

// attributeText reads the name of an attribute and, as text, its value: a whole
// number, a few of them, or a string.
func attributeText(b []byte) (name, value string, err error) {
	const few = 8 // no window has more numbers
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
