package decision

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/heads"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// These values were tuned on several data sets together; see docs/detection.md.
const (
	// maxImages and maxFeatureBytes bound the images to learn from. More images add
	// little, and their features are kept in memory.
	maxImages       = 1000
	maxFeatureBytes = 256 << 20
	// featureShare is the share of the time left after reading the images that
	// extracting features may take.
	featureShare = 0.2
	// headGain is the weight of the heads if the other members find no synthetic
	// anomaly, in standard deviations of their weighted mean.
	headGain = 0.75
)

// memberWeights are the weights of each kind of member by tap, stride 16 and stride 32.
// The weight of the heads depends on the data set; see headWeight.
var memberWeights = map[models.MemberKind][]float64{
	models.PatchGaussian: {1.2, 1.8}, models.PooledGaussian: {0.5, 1}, models.PooledNeighbour: {0.25, 0.5},
}

// Stage is a part of Learn, as text for a person to read.
type Stage string

// The stages of Learn, in their order.
const (
	StageExtractingFeatures     Stage = "extracting features"
	StageTrainingHeads          Stage = "training defect heads"
	StageScoringTiles           Stage = "scoring tiles" // of images that are cut into tiles only
	StageMeasuringDetectability Stage = "measuring detectability"
)

// Options of Learn.
type Options struct {
	Seed int64
	// HeadSteps is the number of steps of each defect head; 0 for no heads.
	HeadSteps int
	// FalseAlarmRate is the share of normal images that may be above the threshold.
	FalseAlarmRate float64
	// Deadline is when the whole training must end; zero means no limit.
	Deadline time.Time
	// Stop, when closed, ends the training of heads and leaves them out.
	Stop    <-chan struct{}
	Workers workers.Pool
	// Tiles is how the images are cut into tiles; nil if they are not. Its Statistics may be
	// empty: Learn then chooses them.
	Tiles *models.Tiles
	// Without is the ingredient to leave out; the zero value leaves out nothing.
	Without Ablation
	// Ablated, if not nil, is called with each ablation that shares the statistics of
	// Without.
	Ablated func([]*Ablated)
	// Stage, if not nil, is called when a stage begins.
	Stage func(Stage)
}

// begin reports that a stage begins.
func (o Options) begin(s Stage) {
	if o.Stage != nil {
		o.Stage(s)
	}
}

// HasHeads reports whether defect heads are trained on that number of normal images.
func (o Options) HasHeads(images int) bool {
	return o.HeadSteps > 0 && images >= heads.MinImages && !o.Without.heads
}

// Learned is the result of Learn. The zero value belongs to a model that decides by its
// mean squared error.
type Learned struct {
	Tensors       models.StateDict
	Decision      *models.Decision
	Detectability *models.Detectability
	// HeadSteps is the smallest number of training steps of a head; 0 without heads.
	HeadSteps int
	// Tiles is Options.Tiles with the statistics that were chosen.
	Tiles *models.Tiles
}

// Learn fits the reference statistics, trains the heads and calibrates the threshold.
// With fewer than calibration.MinImages images it returns the zero value and adds a
// warning to the data set, or calibration.ErrTooFew, wrapped, for images that are cut into
// tiles. ErrPlaces is returned, wrapped, if the images have no statistics by place.
func Learn(ctx context.Context, engine *ort.Engine, data *dataset.Dataset, o Options) (Learned, error) {
	if o.Tiles != nil {
		return learnTiles(ctx, engine, data, o)
	}
	order := drawImages(data, o.Seed)
	if len(order) < calibration.MinImages {
		data.Warn("%d images are too few to learn what is normal, at least %d are needed: the model decides by its mean squared error, which finds few defects", len(order), calibration.MinImages)
		return Learned{}, nil
	}
	var left time.Duration // after reading the images
	until := time.Time{}
	if !o.Deadline.IsZero() {
		left = max(1, time.Until(o.Deadline))
		until = time.Now().Add(time.Duration(featureShare * float64(left)))
	}
	o.begin(StageExtractingFeatures)
	e, err := extractor.New(engine, data.Layout)
	if err != nil {
		return Learned{}, err
	}
	defer e.Close()
	x := &reference{data: data, order: order, maps: e.Maps()}
	if err := x.extract(ctx, e, o, until); err != nil {
		return Learned{}, err
	}
	s, err := x.describe(ctx, o)
	if err != nil {
		return Learned{}, err
	}
	scores, err := x.crossFit(ctx, s, o)
	if err != nil {
		return Learned{}, err
	}
	excess, err := x.excess(ctx, scores, o)
	if err != nil {
		return Learned{}, err
	}
	h, err := x.trainHeads(ctx, engine, e, s, left, o)
	if err != nil {
		return Learned{}, err
	}
	if o.Ablated != nil {
		all, err := x.ablated(scores, h, o)
		if err != nil {
			return Learned{}, err
		}
		o.Ablated(all)
	}
	c, err := x.calibrate(scores, h, o)
	if err != nil {
		return Learned{}, err
	}
	d := c.Decision(models.MeasurePatchMahalanobis)
	d.Backbone = models.EmbeddedBackbone()
	if d.MinFalseAlarmRate > d.FalseAlarmRate {
		data.Warn("%d normal images support a false alarm rate of %.3f at best, not %.3f: the threshold is the highest they allow", x.len(), d.MinFalseAlarmRate, d.FalseAlarmRate)
	}
	out := Learned{Tensors: s.tensors(data.Layout.Size, h, lowered(c, excess)), Decision: &d}
	if h != nil {
		out.HeadSteps = h.Steps
	}
	if until.IsZero() && !workers.Closed(o.Stop) {
		o.begin(StageMeasuringDetectability)
		out.Detectability, err = x.detectable(ctx, e, s, h, c, o)
	}
	return out, err
}

// drawImages returns the indexes of the images to learn from, in random order.
func drawImages(data *dataset.Dataset, seed int64) []int {
	floats := 0
	for _, m := range extractor.MapsOf(data.Layout.Size) {
		floats += m.Floats()
	}
	order := streams.New(seed, streams.ReferenceImages).Perm(data.Len())
	return order[:min(len(order), maxImages, max(calibration.MinImages, maxFeatureBytes/(4*floats)))]
}

// crossFit returns the member scores of each image, without the heads, by statistics
// fitted without the image (cross-fitting).
func (x *reference) crossFit(ctx context.Context, s *statistics, o Options) ([][]float64, error) {
	members := make([][]float64, x.len())
	return members, o.Workers.Each(ctx, x.len(), func(_ context.Context, k int) error {
		members[k] = s.members(k%x.folds, x.features[k], x.insideOf(k))
		return nil
	})
}

// excess returns by how much the cross-fitted member scores, without the heads, are higher
// on average than those of later images. A later image is scored by the statistics of
// all n images, which describe it better than those of fewer. A mean score changes about
// as 1/m with the number m of images, so it is extrapolated to n from that of the
// cross-fitted scores and that of half as many folds. It returns nil from fewImages images
// on, where the difference is small.
func (x *reference) excess(ctx context.Context, members [][]float64, o Options) ([]float64, error) {
	if x.len() >= fewImages {
		return nil, nil
	}
	fewer := *x
	fewer.folds = max(x.folds/2, 2)
	if fewer.folds == x.folds {
		return nil, nil
	}
	s, err := fewer.describe(ctx, o)
	if err != nil {
		return nil, err
	}
	others, err := fewer.crossFit(ctx, s, o)
	if err != nil {
		return nil, err
	}
	part := func(folds int) float64 { return float64(folds) / float64(folds-1) } // n/m
	ratio := (part(x.folds) - 1) / (part(fewer.folds) - part(x.folds))
	out := make([]float64, len(members[0]))
	for k, row := range members {
		for i, v := range row {
			out[i] += ratio * (others[k][i] - v) / float64(len(members))
		}
	}
	return out, nil
}

// lowered returns the calibration for images whose member scores, without the heads, are
// lower by the excess.
func lowered(c *calibration.Calibration, excess []float64) *calibration.Calibration {
	out := *c
	out.Offsets = slices.Clone(c.Offsets)
	for i, v := range excess {
		if head := models.PatchMembers(false); i >= head && len(out.Offsets) > len(excess) {
			i++
		}
		out.Offsets[i] -= float32(v)
	}
	return &out
}

// trainHeads trains the defect heads. It returns nil if the options have none. It
// returns nil and adds a warning if there was no time for them.
func (x *reference) trainHeads(ctx context.Context, engine *ort.Engine, e *extractor.Extractor, s *statistics, left time.Duration, o Options) (*heads.Heads, error) {
	if !o.HasHeads(x.len()) {
		return nil, nil
	}
	o.begin(StageTrainingHeads)
	images := heads.Images{Layout: x.data.Layout, Features: x.features, Maps: x.maps, Inside: x.insideFinest(), At: x.image}
	h, err := heads.Train(ctx, engine, e, images, heads.Options{
		Steps: o.HeadSteps, Seed: o.Seed, Left: left, Stop: o.Stop, Workers: o.Workers,
		Describe: func(k int, maps [][]float32) []float64 {
			return s.members(k%x.folds, x.deviations(k, k%x.folds, maps), x.insideOf(k))
		},
	})
	if err == nil && h == nil {
		reason := "there was no time for %d steps of each"
		if workers.Closed(o.Stop) {
			reason = "it was stopped before %d steps of each"
		}
		x.data.Warn("the model has no defect heads: "+reason, min(o.HeadSteps, heads.MinSteps))
	}
	return h, err
}

// calibrate standardizes and joins the cross-fitted member scores of the normal images,
// including those of the heads, if any, and computes the threshold.
func (x *reference) calibrate(members [][]float64, h *heads.Heads, o Options) (*calibration.Calibration, error) {
	weights := o.Without.weights(models.Members(false))
	if h != nil {
		w, err := headWeight(members, h.Anomalies, o)
		if err != nil {
			return nil, err
		}
		weights = withHead(weights, w)
		for k := range members {
			members[k] = withHead(members[k], h.Peaks[k])
		}
	}
	if x.len() < fewImages {
		return calibration.FitCrossFitted(members, weights, o.FalseAlarmRate)
	}
	return calibration.Fit(members, weights, o.FalseAlarmRate)
}

// withHead returns the members with the heads' value inserted.
func withHead(others []float64, head float64) []float64 {
	return slices.Insert(slices.Clone(others), models.PatchMembers(false), head)
}

// headWeight returns the weight of the heads. It grows with the share of synthetic
// anomalies that the other members miss at their threshold. If they find nearly all, as
// on images of screws, heads add little but noise. If they find few, as on circuit
// boards, heads find most defects. normal are the cross-fitted member scores of normal
// images, anomalous the member scores of synthetic anomalies.
func headWeight(normal, anomalous [][]float64, o Options) (float64, error) {
	weights := o.Without.weights(models.Members(false))
	c, err := calibration.Fit(normal, weights, o.FalseAlarmRate)
	if err != nil {
		return 0, err
	}
	return headWeightBy(c, normal, anomalous, weights), nil
}

// headWeightBy is headWeight by a calibration of the other members, with their weights.
func headWeightBy(c *calibration.Calibration, normal, anomalous [][]float64, weights []float64) float64 {
	missed := 0
	for _, members := range anomalous {
		if c.Join(members) <= c.Threshold {
			missed++
		}
	}
	share := float64(missed) / float64(max(len(anomalous), 1))
	joined := make([]float64, len(normal))
	for k, members := range normal {
		for i, v := range members {
			joined[k] += (v - float64(c.Offsets[i])) * float64(c.Slopes[i]) * float64(c.Weights[i])
		}
	}
	_, deviation := calibration.MeanDeviation(joined)
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	return headGain * share * share * deviation * sum
}

// logarithm returns the member score of a squared distance.
func logarithm(squared float64) float64 { return math.Log(squared + network.LogarithmOffset) }
