package backbone

import (
	"errors"
	"testing"
)

// The channels are those of the published checkpoints.
func TestSpec_HasTheBlocksOfTheCheckpoint(t *testing.T) {
	for _, c := range []struct {
		spec     Spec
		out      []int
		size     int // number of weights and biases
		residual int
	}{
		{Lite0(), []int{16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320}, 2_939_120, 9},
		{Lite2(), []int{16, 24, 24, 24, 48, 48, 48, 88, 88, 88, 88, 120, 120, 120, 120, 208, 208, 208, 208, 208, 352}, 4_330_184, 14},
	} {
		t.Run(c.spec.Name, func(t *testing.T) {
			if len(c.spec.Blocks) != len(c.out) {
				t.Fatalf("%d blocks, expected %d", len(c.spec.Blocks), len(c.out))
			}
			in, residual, size := StemChannels, 0, 0
			for i, b := range c.spec.Blocks {
				if b.In != in || b.Out != c.out[i] {
					t.Errorf("block %d maps %d to %d channels, expected %d to %d", i, b.In, b.Out, in, c.out[i])
				}
				in = b.Out
				if b.Residual {
					residual++
				}
			}
			for _, p := range c.spec.Parameters(len(c.out) - 1) {
				n := 1
				for _, d := range p.Shape {
					n *= d
				}
				size += n
			}
			if size != c.size || residual != c.residual {
				t.Errorf("%d numbers and %d residual blocks, expected %d and %d", size, residual, c.size, c.residual)
			}
			named, err := Named(c.spec.Name)
			if err != nil || named.Name != c.spec.Name || len(named.Blocks) != len(c.out) {
				t.Errorf("Named(%q): %v, %v", c.spec.Name, named, err)
			}
		})
	}
	if _, err := Named("efficientnet-b0"); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown network: %v", err)
	}
}

func TestTap_MultipliesTheStridesOfAllBlocks(t *testing.T) {
	for i, want := range map[int]Tap{0: {16, 2}, 2: {24, 4}, 4: {40, 8}, 5: {80, 16}, 10: {112, 16}, 11: {192, 32}, 15: {320, 32}} {
		if got := Lite0().Tap(i); got != want {
			t.Errorf("block %d: %+v, expected %+v", i, got, want)
		}
	}
}
