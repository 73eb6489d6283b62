package models

// plainOps are the operators that may stand before and behind the network in an
// ONNX file: they bring an image into form, and make figures of an error. None
// holds a graph, calls a function, draws at random or keeps a state. What an
// activation, a pooling or a convolution would add to the network is not told
// here but by following the network's values.
var plainOps = func() map[string]bool {
	m := make(map[string]bool)
	for _, op := range []string{
		// Arithmetic, comparison and logic, element by element.
		"Abs", "Add", "And", "Ceil", "Clip", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN",
		"Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round",
		"Sigmoid", "Sign", "Softplus", "Sqrt", "Sub", "Sum", "Where", "Xor",
		// Reductions and products.
		"ArgMax", "ArgMin", "CumSum", "Einsum", "MatMul", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
		"ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "TopK",
		// Neighbourhoods without weights.
		"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize", "Upsample",
		// Types, shapes and places.
		"Cast", "CastLike", "CenterCropPad", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather",
		"GatherElements", "GatherND", "Identity", "NonZero", "Pad", "Range", "Reshape", "ReverseSequence", "Shape", "Size", "Slice",
		"SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
		// The network's own.
		"Conv", "ConvTranspose",
	} {
		m[op] = true
	}
	return m
}()
