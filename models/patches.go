package models

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/deepmed/anomaly/internal/backbone"
)

// MeasurePatchMahalanobis is an anomaly score based on the distance of an image's
// patch features, from a backbone trained on ImageNet, from normal images.
// It is an ensemble of Members. The score of a member is the logarithm of a squared
// distance, or a logit of the defect heads. The member scores are standardized by
// mean and standard deviation over held-out normal images; z is their weighted mean.
// The anomaly score is ln(1 + exp z), which is positive: 0.7 is usual, 2 is rare.
const MeasurePatchMahalanobis = "patch_mahalanobis"

// PatchRank is the number of principal directions that are kept of each patch's own
// covariance, in addition to the covariance shared by all patches.
const PatchRank = 16

// MaxNeighbours is the largest number of normal images in the bank of a
// PooledNeighbour.
const MaxNeighbours = 500

// Taps returns the blocks of the backbone whose outputs the reference statistics
// describe, at strides of 16 and 32 pixels. Later blocks did not improve detection and
// are not part of the program; see docs/detection.md.
func Taps() []Tap { return []Tap{tapOf(10), tapOf(12)} }

// HeadTaps returns the blocks whose outputs are the input of the defect heads, the
// finest first: a block of stride 8, then Taps.
func HeadTaps() []Tap { return append([]Tap{tapOf(4)}, Taps()...) }

// Tap is a block of the backbone whose output is used.
type Tap struct {
	Block    int
	Channels int
	// Stride is the side of a patch, in pixels of the backbone's input.
	Stride int
}

func tapOf(block int) Tap {
	t := backbone.Lite0().Tap(block)
	return Tap{block, t.Channels, t.Stride}
}

// Patches returns the number of patches along each side, for a model's input.
func (t Tap) Patches(input Size) Size {
	s := BackboneInputOf(input).Size
	return Size{s.W / t.Stride, s.H / t.Stride}
}

// minBackboneSide is the smallest side of the backbone's input, in pixels. The side
// is a multiple of backboneStride, the stride of the last block.
const (
	minBackboneSide = 128
	backboneStride  = 32
)

// BackboneInput describes how a model's image is converted to the backbone's input:
// it is enlarged by the factor Times, then padded with its edge pixels by Border.W
// pixels left and right and Border.H pixels above and below, to Size.
type BackboneInput struct {
	Times        int
	Border, Size Size
}

// BackboneInputOf returns the conversion for images of that size, whose sides are
// multiples of 16. Images whose smaller side has fewer than 128 pixels are enlarged because
// the backbone was trained on objects of that size and larger.
func BackboneInputOf(size Size) BackboneInput {
	side := min(size.W, size.H)
	times := (minBackboneSide + side - 1) / side
	in := BackboneInput{Times: times, Size: Size{size.W * times, size.H * times}}
	for _, axis := range []struct{ side, border *int }{{&in.Size.W, &in.Border.W}, {&in.Size.H, &in.Border.H}} {
		if rest := *axis.side % backboneStride; rest != 0 {
			*axis.border = (backboneStride - rest) / 2
			*axis.side += 2 * *axis.border
		}
	}
	return in
}

// Member is a member of the ensemble of MeasurePatchMahalanobis.
type Member struct {
	// Kind is the kind of score. Block is the backbone's block that it is computed
	// from, 0 for Heads.
	Kind  MemberKind
	Block int
}

// MemberKind is the kind of a Member.
type MemberKind string

// The kinds of members.
const (
	// PatchGaussian is the largest Mahalanobis distance of a patch's features from
	// the Gaussian at its position (PaDiM, Defard et al., 2020).
	PatchGaussian MemberKind = "patch"
	// Heads is the largest logit of the defect heads.
	Heads MemberKind = "heads"
	// PooledGaussian is the Mahalanobis distance of the pooled features, the mean
	// over all patches (Rippel et al., 2021).
	PooledGaussian MemberKind = "pooled"
	// PooledNeighbour is the distance of the pooled features from the nearest of the
	// normal images (DN2, Bergman et al., 2020).
	PooledNeighbour MemberKind = "neighbour"
)

// Members returns the members of a model with or without heads, in the order of
// JoinParameters. The members that localize anomalies are the first PatchMembers.
func Members(heads bool) []Member {
	var ms []Member
	each := func(k MemberKind) {
		for _, t := range Taps() {
			ms = append(ms, Member{k, t.Block})
		}
	}
	each(PatchGaussian)
	if heads {
		ms = append(ms, Member{Kind: Heads})
	}
	each(PooledGaussian)
	each(PooledNeighbour)
	return ms
}

// PatchMembers returns the number of members, from the first on, that have a score
// for each patch.
func PatchMembers(heads bool) int {
	n := len(Taps())
	if heads {
		n++
	}
	return n
}

func (m Member) parameter(name string, shape ...int) Parameter {
	return Parameter{fmt.Sprintf("%s%s.%d.%s", referencePrefix, m.Kind, m.Block, name), shape}
}

const (
	referencePrefix = "normality."
	patchPrefix     = referencePrefix + string(PatchGaussian) + "."
	headPrefix      = referencePrefix + "head."
	memberPrefix    = referencePrefix + "member."
)

// Parameters returns the tensors of a member, for images of that size; Heads
// has none here. With C channels, P×Q patches, R = PatchRank and bank
// normal images:
//
//	patch      mean        C×P×Q     mean of the features of each patch
//	           whitening   C×C×1×1   inverse of the Cholesky factor of the
//	                                 covariance shared by all patches
//	           scale       1×P×Q     factor of the squared whitened deviation
//	           directions  PQ×R×C    directions in which a patch varies; the squared
//	                                 deviation along them is subtracted
//	pooled     mean        C×1×1     mean of the pooled features
//	           precision   C×1×1     reciprocal of their standard deviation
//	           whitening   1×C×C     inverse of the Cholesky factor of their
//	                                 correlation matrix
//	neighbour  mean        C×1×1     mean of the pooled features
//	           whitening   C×C×1×1   as for patch, for the pooled features
//	           bank        bank×C    whitened pooled features of normal images
func (m Member) Parameters(size Size, bank int) []Parameter {
	if m.Kind == Heads {
		return nil
	}
	tap := tapOf(m.Block)
	c, p := tap.Channels, tap.Patches(size)
	switch m.Kind {
	case PatchGaussian:
		return []Parameter{
			m.parameter("mean", c, p.H, p.W), m.parameter("whitening", c, c, 1, 1),
			m.parameter("scale", 1, p.H, p.W), m.parameter("directions", p.Area(), PatchRank, c),
		}
	case PooledGaussian:
		return []Parameter{m.parameter("mean", c, 1, 1), m.parameter("precision", c, 1, 1), m.parameter("whitening", 1, c, c)}
	default:
		return []Parameter{m.parameter("mean", c, 1, 1), m.parameter("whitening", c, c, 1, 1), m.parameter("bank", bank, c)}
	}
}

// The defect heads (discriminative heads, as in DRAEM) are two small convolutional
// networks on patch features, trained to segment synthetic anomalies; see
// docs/detection.md. Each is trained on one half of the images, so that every image
// can be scored by a head that was not trained on it.
const (
	// HeadCount is the number of heads.
	HeadCount = 2
	// headWidth is the number of channels of the hidden layers.
	headWidth = 32
)

// headKernels are the kernel sides, layer by layer.
var headKernels = []int{1, 3, 3, 1}

// headChannels returns the number of input channels: the sum over HeadTaps.
func headChannels() int {
	n := 0
	for _, t := range HeadTaps() {
		n += t.Channels
	}
	return n
}

// HeadParameters returns the tensors of head k: for each layer a weight (O×I×K×K) and
// a bias (O).
func HeadParameters(k int) []Parameter {
	var ps []Parameter
	in := headChannels()
	for i, kernel := range headKernels {
		out := headWidth
		if i == len(headKernels)-1 {
			out = 1
		}
		name := fmt.Sprintf("%s%d.%d.", headPrefix, k, i)
		ps = append(ps, Parameter{name + "weight", []int{out, in, kernel, kernel}}, Parameter{name + "bias", []int{out}})
		in = out
	}
	return ps
}

// JoinParameters returns the tensors that join the scores of M members, each M×1×1:
// offset, the mean over held-out normal images; slope, the reciprocal of the standard
// deviation; and weight, which sums to 1.
func JoinParameters(heads bool) []Parameter {
	n := len(Members(heads))
	return []Parameter{{memberPrefix + "offset", []int{n, 1, 1}}, {memberPrefix + "slope", []int{n, 1, 1}}, {memberPrefix + "weight", []int{n, 1, 1}}}
}

// PatchParameters returns the reference statistics of a model that decides by
// MeasurePatchMahalanobis, in file order.
func PatchParameters(size Size, heads bool, bank int) []Parameter {
	var ps []Parameter
	for _, m := range Members(heads) {
		ps = append(ps, m.Parameters(size, bank)...)
	}
	if heads {
		for k := range HeadCount {
			ps = append(ps, HeadParameters(k)...)
		}
	}
	return append(ps, JoinParameters(heads)...)
}

// HasPatches reports whether reference statistics belong to MeasurePatchMahalanobis.
func HasPatches(reference StateDict) bool { return reference.hasPrefix(patchPrefix) }

// HasHeads reports whether reference statistics include defect heads.
func HasHeads(reference StateDict) bool { return reference.hasPrefix(headPrefix) }

// hasPrefix reports whether the name of a tensor starts with prefix.
func (sd StateDict) hasPrefix(prefix string) bool {
	for _, t := range sd {
		if strings.HasPrefix(t.Name, prefix) {
			return true
		}
	}
	return false
}

// BankSize returns the number of normal images in the bank of the reference
// statistics, 0 when they do not belong to MeasurePatchMahalanobis.
func BankSize(reference StateDict) int {
	name := Member{PooledNeighbour, Taps()[0].Block}.parameter("bank").Name
	if t, ok := reference.Get(name); ok && len(t.Shape) == 2 {
		return t.Shape[0]
	}
	return 0
}

// Backbone identifies the network that extracts a model's features.
type Backbone struct {
	Name string `json:"name"`
	// SHA256 is the hash of the file with its weights, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// EmbeddedBackbone returns the backbone that is part of this program.
func EmbeddedBackbone() *Backbone {
	sum := backbone.SHA256()
	return &Backbone{Name: backbone.Embedded, SHA256: hex.EncodeToString(sum[:])}
}

// checkBackbone returns ErrMetadata, wrapped, when the decision requires another
// backbone than the embedded one.
func (d *Decision) checkBackbone() error {
	if !decidesByPatches(d.Measure) {
		return nil
	}
	own := EmbeddedBackbone()
	if d.Backbone == nil {
		return fmt.Errorf("%w: it decides by %s and names no backbone", ErrMetadata, d.Measure)
	}
	if *d.Backbone != *own {
		return fmt.Errorf("%w: it decides by features of %.40q with weights %.64q, this version has %s with %s; train it anew",
			ErrMetadata, d.Backbone.Name, d.Backbone.SHA256, own.Name, own.SHA256)
	}
	return nil
}
