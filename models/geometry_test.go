package models

import (
	"errors"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestParseSize_ReadsASideOrTwo(t *testing.T) {
	for text, want := range map[string]Size{"256": {256, 256}, "512x128": {512, 128}, "64X96": {64, 96}, " 64 × 32 ": {64, 32}} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", "12x", "x12", "1x2x3", "ten", "1e3", "12.5", strings.Repeat("9", 100)} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestFrameOf_KeepsTheAspectRatio(t *testing.T) {
	for _, input := range []Size{{64, 64}, {128, 32}, {16, 4096}} {
		for _, image := range []Size{{64, 64}, {1, 1}, {65535, 1}, {1, 65535}, {300, 200}, {201, 17}, {4000, 3000}} {
			whole := FrameOf(input, FitSquash, image.W, image.H)
			if whole.From != (Box{0, 0, image.W, image.H}) || whole.To != (Box{0, 0, input.W, input.H}) {
				t.Errorf("squash: %+v", whole)
			}
			for _, fit := range []Fit{FitPad, FitCrop} {
				f := FrameOf(input, fit, image.W, image.H)
				from, to := f.From.Size(), f.To.Size()
				if f.From.X0 < 0 || f.From.Y0 < 0 || f.From.X1 > image.W || f.From.Y1 > image.H || from.W < 1 || from.H < 1 ||
					f.To.X0 < 0 || f.To.Y0 < 0 || f.To.X1 > input.W || f.To.Y1 > input.H || to.W < 1 || to.H < 1 {
					t.Fatalf("%s, %v in %v: %+v", fit, image, input, f)
				}
				if fit == FitPad && (from != image || to.W != input.W && to.H != input.H) || fit == FitCrop && (to != input || from.W != image.W && from.H != image.H) {
					t.Errorf("%s, %v in %v: %+v", fit, image, input, f)
				}
				// A pixel of the input is as wide as high, up to the rounding of a side, which has at
				// least one pixel.
				across, down := float64(from.W)/float64(to.W), float64(from.H)/float64(to.H)
				rounding := 1 / float64(min(from.W, from.H, to.W, to.H))
				if rounding < 1 && math.Abs(across/down-1) > 1.01*rounding {
					t.Errorf("%s, %v in %v: pixels of %v×%v", fit, image, input, across, down)
				}
				for _, edge := range []int{f.From.X0, f.From.X1 - 1} {
					if at, ok := f.At(edge, f.From.Y0); !ok || at%input.W < f.To.X0 || at%input.W >= f.To.X1 {
						t.Errorf("%s, %v in %v: column %d is at %d", fit, image, input, edge, at%input.W)
					}
				}
				if got := f.Original(f.To); got != f.From {
					t.Errorf("%s, %v in %v: the whole input is %+v of the image, expected %+v", fit, image, input, got, f.From)
				}
			}
		}
	}
}

func TestRegion_ReadsItsMaskBack(t *testing.T) {
	size := Size{7, 5}
	for name, in := range map[string]func(i int) bool{
		"all": func(int) bool { return true }, "one": func(i int) bool { return i == 17 }, "first": func(i int) bool { return i == 0 },
		"last": func(i int) bool { return i == 34 }, "stripes": func(i int) bool { return i%2 == 0 },
	} {
		mask := make([]bool, size.Area())
		for i := range mask {
			mask[i] = in(i)
		}
		r := NewRegion(size, mask)
		if got, err := r.Mask(); err != nil || !slices.Equal(got, mask) {
			t.Errorf("%s: %q is %v, %v", name, r.Runs, got, err)
		}
		placed := r.Place(FrameOf(size, "", 700, 500), mask)
		if !slices.Equal(placed, mask) {
			t.Errorf("%s: at its own size it is %v", name, placed)
		}
	}
}

func TestRegion_RejectsRunsThatDoNotFit(t *testing.T) {
	for name, r := range map[string]Region{
		"too few": {2, 2, "1 2"}, "too many": {2, 2, "1 4"}, "negative": {2, 2, "5 -1"}, "a word": {2, 2, "1 two 1"},
		"nothing inside": {2, 2, "4"}, "nothing": {2, 2, ""}, "no pixels": {0, 2, "0"}, "huge": {1 << 30, 1 << 30, "1 1"},
		"an overflow": {2, 2, "1 9223372036854775807 1"}, "too long": {2, 2, strings.Repeat("0 ", maxRegionRuns)},
	} {
		if _, err := r.Mask(); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseWindow_ReadsTwoAscendingNumbers(t *testing.T) {
	if w, err := ParseWindow("-1000, 400.5"); err != nil || *w != (Window{-1000, 400.5}) {
		t.Errorf("%v, %v", w, err)
	}
	for _, text := range []string{"", "5", "1,1", "2,1", "1,2,3", "a,b", "nan,1", "0,inf", "0,1e300", "1000000000,1000000001"} {
		if w, err := ParseWindow(text); err == nil {
			t.Errorf("%q: %v", text, w)
		}
	}
}

// Programs of before version 2 of the format accept only these orientations; the other keys
// are new, and they ignore them.
func TestPreprocessing_IsRefusedByProgramsThatDoNotKnowItsKeys(t *testing.T) {
	for name, p := range map[string]Preprocessing{
		"size": {Width: 64, Height: 32}, "fit": {Fit: FitPad}, "window": {Window: &Window{0, 4095}}, "region": {Region: &Region{2, 1, "1 1"}},
	} {
		for _, orientation := range []string{"", OrientationEXIF} {
			p := p
			p.Orientation = orientation
			if err := p.Validate(); !errors.Is(err, ErrMetadata) {
				t.Errorf("%s: a version 1 with a key of version 2 is accepted: %v", name, err)
			}
			p.Settle()
			if p.Orientation == "" || p.Orientation == OrientationEXIF || p.Upright() != (orientation == OrientationEXIF) || p.FormatVersion() != FramedFormatVersion {
				t.Errorf("%s: orientation %q, version %d", name, p.Orientation, p.FormatVersion())
			}
			if err := p.Validate(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	plain := StandardPreprocessing()
	plain.Settle()
	if !reflect.DeepEqual(plain, StandardPreprocessing()) || plain.FormatVersion() != FormatVersion {
		t.Errorf("a plain model has %+v", plain)
	}
	if _, err := ParseMetadata([]byte(`{"threshold": 1, "format_version": 3}`)); !errors.Is(err, ErrMetadata) {
		t.Errorf("version 3: %v", err)
	}
}

func TestPreprocessing_RejectsUnusableKeys(t *testing.T) {
	for name, p := range map[string]Preprocessing{
		"a square of two sides": {Width: 64, Height: 64}, "one side": {Width: 64}, "a negative side": {Width: -64, Height: 32}, "a huge side": {Width: 1 << 20, Height: 32},
		"fit": {Fit: "stretch"}, "window": {Window: &Window{5, 5}}, "infinite window": {Window: &Window{0, math.Inf(1)}}, "window of one float32": {Window: &Window{1e9, 1e9 + 1}}, "region": {Region: &Region{2, 2, "9"}},
	} {
		p.Settle()
		if err := p.Validate(); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Gabor features have no mask: such a model would fail once it is used.
func TestReferenceFor_RejectsAMeasureThatCannotLeaveOutPixels(t *testing.T) {
	for name, p := range map[string]*Preprocessing{"pad": {Fit: FitPad}, "region": {Region: &Region{2, 1, "1 1"}}} {
		p.Settle()
		md := Metadata{Threshold: 1, Preprocessing: p, Decision: &Decision{Measure: MeasureBandMahalanobis, Threshold: 1}}
		var reference StateDict
		for _, p := range GaborParameters(64) {
			reference = append(reference, Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())})
		}
		c := contents{reference: reference}
		if _, err := c.referenceFor(md, Square(64)); !errors.Is(err, ErrMetadata) {
			t.Errorf("%s: %v", name, err)
		}
		md.Preprocessing = StandardPreprocessing()
		if _, err := c.referenceFor(md, Square(64)); err != nil {
			t.Errorf("%s, without it: %v", name, err)
		}
	}
}
