package models

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// patchModel returns a model for images of 16 pixels that decides by
// MeasurePatchMahalanobis, with reference statistics of zeros.
func patchModel(heads bool, bank int) *Model {
	m := &Model{ImageSize: 16, Metadata: Metadata{Threshold: 1,
		Decision: &Decision{Measure: MeasurePatchMahalanobis, Threshold: 1, Backbone: EmbeddedBackbone()}}}
	for _, p := range PatchParameters(Square(16), heads, bank) {
		m.Reference = append(m.Reference, Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())})
	}
	return m
}

// set edits a tensor of the reference statistics.
func (m *Model) set(name string, edit func(t *Tensor)) {
	i := slices.IndexFunc(m.Reference, func(t Tensor) bool { return t.Name == name })
	edit(&m.Reference[i])
}

func TestCheckReference_RejectsWrongPatchTensors(t *testing.T) {
	shape := func(name string, shape ...int) func(m *Model) {
		return func(m *Model) { m.set(name, func(t *Tensor) { t.Shape = shape }) }
	}
	without := func(prefix string) func(m *Model) {
		return func(m *Model) {
			m.Reference = slices.DeleteFunc(m.Reference, func(t Tensor) bool { return strings.HasPrefix(t.Name, prefix) })
		}
	}
	for name, c := range map[string]struct {
		edit    func(m *Model)
		want    error // nil for a valid model
		message string
	}{
		"unchanged":                     {func(*Model) {}, nil, ""},
		"a mean of another image size":  {shape("normality.patch.10.mean", 112, 10, 10), ErrArchitecture, "normality.patch.10.mean has shape [112 10 10], expected [112 8 8]"},
		"a whitening that isn't square": {shape("normality.patch.12.whitening", 192, 112, 1, 1), ErrArchitecture, "expected [192 192 1 1]"},
		"a scale without its axis":      {shape("normality.patch.10.scale", 8, 8), ErrArchitecture, "expected [1 8 8]"},
		"directions of another rank":    {shape("normality.patch.10.directions", 64, 15, 112), ErrArchitecture, "expected [64 16 112]"},
		"a precision of another block":  {shape("normality.pooled.12.precision", 112, 1, 1), ErrArchitecture, "expected [192 1 1]"},
		"banks of different sizes":      {shape("normality.neighbour.12.bank", 4, 192), ErrArchitecture, "expected [3 192]"},
		"an empty bank":                 {shape("normality.neighbour.10.bank", 0, 112), ErrArchitecture, "0 reference images"},
		"a bank with an extra axis":     {shape("normality.neighbour.10.bank", 3, 112, 1), ErrArchitecture, "0 reference images"},
		"a head of another width":       {shape("normality.head.1.2.weight", 32, 16, 3, 3), ErrArchitecture, "normality.head.1.2.weight has shape"},
		"weights of another number":     {shape("normality.member.weight", 6, 1, 1), ErrArchitecture, "expected [7 1 1]"},
		"no mean":                       {without("normality.patch.10.mean"), ErrArchitecture, "tensors of reference statistics, expected"},
		"no offsets":                    {without("normality.member.offset"), ErrArchitecture, "tensors of reference statistics, expected"},
		"one head":                      {without("normality.head.1."), ErrArchitecture, "tensors of reference statistics, expected"},
		"heads in the join only":        {without("normality.head."), ErrArchitecture, "expected [6 1 1]"},
		"no patches":                    {without("normality.patch."), ErrArchitecture, "it decides by patch_mahalanobis but has no tensors for that"},
		"no tensors":                    {without(""), ErrArchitecture, "it decides by patch_mahalanobis but has no tensors for that"},
		"another name": {func(m *Model) {
			m.set("normality.pooled.10.mean", func(t *Tensor) { t.Name = "normality.pooled.11.mean" })
		},
			ErrArchitecture, "normality.pooled.10.mean is missing"},
		"NaN": {func(m *Model) {
			m.set("normality.member.slope", func(t *Tensor) { t.Data[6] = float32(math.NaN()) })
		}, ErrFormat, "normality.member.slope has elements that are not finite"},
		"infinite":        {func(m *Model) { m.Reference[0].Data[0] = float32(math.Inf(-1)) }, ErrFormat, "normality.patch.10.mean has elements"},
		"another measure": {func(m *Model) { m.Metadata.Decision.Measure = MeasureBandMahalanobis }, ErrArchitecture, "it decides by band_mahalanobis but has no tensors for that"},
		"MSE":             {func(m *Model) { m.Metadata.Decision = nil }, ErrMetadata, "decides by mse"},
		"tensors of an earlier version": {func(m *Model) {
			m.Reference = nil
			for _, p := range GaborParameters(16) {
				m.Reference = append(m.Reference, Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())})
			}
		}, ErrArchitecture, "it decides by patch_mahalanobis but has no tensors for that"},
		"an additional tensor of an earlier version": {func(m *Model) {
			p := GaborParameters(16)[0]
			m.Reference = append(m.Reference, Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())})
		}, ErrArchitecture, "tensors of reference statistics, expected"},
	} {
		m := patchModel(true, 3)
		c.edit(m)
		if err := m.CheckReference(); !errors.Is(err, c.want) || err != nil && (c.want == nil || !strings.Contains(err.Error(), c.message)) {
			t.Errorf("%s: %v, expected %v with %q", name, err, c.want, c.message)
		}
	}
	for bank, want := range map[int]error{1: nil, MaxNeighbours: nil, MaxNeighbours + 1: ErrArchitecture} {
		if err := patchModel(false, bank).CheckReference(); !errors.Is(err, want) || want != nil && !strings.Contains(err.Error(), "501 reference images, expected 1 to 500") {
			t.Errorf("a bank of %d: %v", bank, err)
		}
	}
}

func TestParseMetadata_RejectsOtherBackbone(t *testing.T) {
	own := EmbeddedBackbone()
	if len(own.SHA256) != 64 || own.Name != "efficientnet-lite0" {
		t.Errorf("%+v", own)
	}
	other := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		backbone any
		message  string // empty for valid metadata
	}{
		"the program's own": {own, ""},
		"none":              {nil, "it decides by patch_mahalanobis and names no backbone"},
		"other weights":     {Backbone{own.Name, other}, `it decides by features of "efficientnet-lite0" with weights "` + other + `", this version has efficientnet-lite0 with ` + own.SHA256 + "; train it anew"},
		"another network":   {Backbone{"efficientnet-lite2", own.SHA256}, `"efficientnet-lite2"`},
		"a long name":       {Backbone{strings.Repeat("x", 1000), strings.Repeat("y", 1000)}, "train it anew"},
		"an empty object":   {map[string]string{}, "train it anew"},
	} {
		text, err := json.Marshal(map[string]any{"threshold": 1, "decision": map[string]any{"measure": MeasurePatchMahalanobis, "threshold": 2, "backbone": c.backbone}})
		if err != nil {
			t.Fatal(err)
		}
		m, err := ParseMetadata(text)
		if c.message == "" {
			if measure, threshold := m.Measure(); err != nil || measure != MeasurePatchMahalanobis || threshold != 2 || *m.Decision.Backbone != *own {
				t.Errorf("%s: %v, %+v", name, err, m.Decision)
			}
		} else if !errors.Is(err, ErrMetadata) || !strings.Contains(err.Error(), c.message) || len(err.Error()) > 400 {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Other anomaly scores need no backbone.
	if _, err := ParseMetadata([]byte(`{"threshold":1,"decision":{"measure":"band_mahalanobis","threshold":2}}`)); err != nil {
		t.Error(err)
	}
}

func TestBackboneInputOf_FitsEveryImageSize(t *testing.T) {
	for side := 16; side <= MaxImageSize; side += 16 {
		in := BackboneInputOf(Square(side))
		if in.Times < 1 || in.Border.W < 0 || in.Size.W != side*in.Times+2*in.Border.W || in.Size.W < minBackboneSide || in.Size.W%backboneStride != 0 || in.Size.W >= side*in.Times+backboneStride {
			t.Errorf("%d px: %+v", side, in)
		}
		finest := HeadTaps()[0].Patches(Square(side)).W
		for _, tap := range HeadTaps() {
			if p := tap.Patches(Square(side)).W; p*tap.Stride != in.Size.W || finest%p != 0 {
				t.Errorf("%d px: %d patches of %d pixels in %d", side, p, tap.Stride, in.Size.W)
			}
		}
		if side >= minBackboneSide && in.Times != 1 || side < minBackboneSide && side*(in.Times-1) >= minBackboneSide {
			t.Errorf("%d px are enlarged %d times", side, in.Times)
		}
	}
	for side, want := range map[int]BackboneInput{
		16: {8, Square(0), Square(128)}, 48: {3, Square(8), Square(160)}, 64: {2, Square(0), Square(128)}, 144: {1, Square(8), Square(160)}, 256: {1, Square(0), Square(256)},
	} {
		if got := BackboneInputOf(Square(side)); got != want {
			t.Errorf("%d px: %+v, expected %+v", side, got, want)
		}
	}
}

// The names are unique and accepted by the reader, and the members that localize
// anomalies come first.
func TestPatchParameters_HaveUniqueReadableNames(t *testing.T) {
	for _, heads := range []bool{false, true} {
		names := map[string]bool{}
		for _, p := range PatchParameters(Square(64), heads, 10) {
			if names[p.Name] || !referenceName.MatchString(p.Name) {
				t.Errorf("%s, a duplicate: %v", p.Name, names[p.Name])
			}
			names[p.Name] = true
		}
		ms := Members(heads)
		for i, m := range ms {
			local := m.Kind == PatchGaussian || m.Kind == Heads
			if local != (i < PatchMembers(heads)) {
				t.Errorf("member %d is %v", i, m)
			}
		}
		if got := fmt.Sprint(JoinParameters(heads)[2].Shape); got != fmt.Sprintf("[%d 1 1]", len(ms)) {
			t.Errorf("weights of shape %s for %d members", got, len(ms))
		}
	}
}
