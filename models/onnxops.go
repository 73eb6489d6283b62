package models

// plainOps are the operators that an ONNX graph may have before and after the
// autoencoder, for preprocessing and the anomaly score. None of them has a nested
// graph, calls a function, is random or keeps state. Whether such an operator
// changes the autoencoder itself is checked by onnxGraph.
var plainOps = func() map[string]bool {
	m := make(map[string]bool)
	for _, op := range []string{
		// Arithmetic, comparison and logic, element by element.
		"Abs", "Add", "And", "Ceil", "Clip", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual", "HardSigmoid", "IsInf", "IsNaN",
		"Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round",
		"Sigmoid", "Sign", "Softplus", "Sqrt", "Sub", "Sum", "Where", "Xor",
		// Reductions and products.
		"ArgMax", "ArgMin", "CumSum", "Einsum", "MatMul", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
		"ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "TopK",
		// Pooling and resizing, without weights.
		"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Resize", "Upsample",
		// Types, shapes and indexing.
		"Cast", "CastLike", "CenterCropPad", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather",
		"GatherElements", "GatherND", "Identity", "NonZero", "Pad", "Range", "Reshape", "ReverseSequence", "Shape", "Size", "Slice",
		"ScatterElements", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
		// Convolutions of the autoencoder, the backbone and the heads.
		"Conv", "ConvTranspose",
	} {
		m[op] = true
	}
	return m
}()
