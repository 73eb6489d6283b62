package exporter

import (
	"errors"
	"strings"
	"testing"

	"gorgonia.org/gorgonia"
	"gorgonia.org/tensor"
)

func TestLowering_NamesOperatorWithoutRule(t *testing.T) {
	g := gorgonia.NewGraph()
	x := gorgonia.NewTensor(g, tensor.Float32, 2, gorgonia.WithShape(2, 2), gorgonia.WithName("x"))
	y := gorgonia.Must(gorgonia.Tanh(x)) // has no rule
	l := newLowering("test", true)
	l.source(x, "x")
	_, err := l.lower(y)
	if !errors.Is(err, ErrNoLowering) || !strings.Contains(err.Error(), "tanh") {
		t.Errorf("the error is %v", err)
	}
}

// Operators that do not accept N×H×W×C must have transposed operands.
func TestLowering_ConvertsToNCHWForOtherOperators(t *testing.T) {
	g := gorgonia.NewGraph()
	x := gorgonia.NewTensor(g, tensor.Float32, 4, gorgonia.WithShape(1, 3, 8, 8), gorgonia.WithName("x"))
	plain := gorgonia.NewTensor(g, tensor.Float32, 4, gorgonia.WithShape(1, 3, 8, 8), gorgonia.WithName("plain"))
	for name, c := range map[string]struct {
		y          *gorgonia.Node
		transposed int
	}{
		"sum of rows":     {gorgonia.Must(gorgonia.Sum(x, 3)), 1},
		"another shape":   {gorgonia.Must(gorgonia.Reshape(x, tensor.Shape{3, 64})), 1},
		"both layouts":    {gorgonia.Must(gorgonia.Add(x, plain)), 1},
		"sum of all":      {gorgonia.Must(gorgonia.Sum(x)), 0},
		"one layout":      {gorgonia.Must(gorgonia.Add(x, x)), 0},
		"a single number": {gorgonia.Must(gorgonia.Mul(x, gorgonia.NewConstant(float32(2)))), 0},
	} {
		l := newLowering("test", true)
		l.processor = true
		l.done[x] = l.toNHWC(l.source(x, "x"))
		l.source(plain, "plain")
		v, err := l.lower(c.y)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		transposed := 0
		for _, n := range l.proto.GetNode() {
			if n.GetOpType() == "Transpose" {
				transposed++
			}
		}
		if transposed != c.transposed || v.nhwc != (c.transposed == 0 && len(v.shape) == 4) {
			t.Errorf("%s: %d operands were transposed, want %d; stored N×H×W×C: %v", name, transposed, c.transposed, v.nhwc)
		}
	}
}

func TestMicrosoftOp_IsRejectedInStandardGraph(t *testing.T) {
	if _, err := newGraph("test", false).microsoftOp("FusedMatMul", nil, nil); err == nil {
		t.Error("the error is nil")
	}
}
