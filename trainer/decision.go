package trainer

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// How normal images are described. The figures were chosen on data sets of several
// kinds together, see docs/detection.md.
const (
	// maxNormals and maxFeatureBytes bound how many images are described: more add
	// little, and their features are held in memory.
	maxNormals      = 1000
	maxFeatureBytes = 256 << 20
	// featureShare is the part that extracting features may take of the time that is
	// left of MaxTime when the images are read.
	featureShare = 0.2
	// Images that were not learnt from are judged in folds: manyFolds of less than
	// fewImages images, fewFolds of more.
	manyFolds, fewFolds, fewImages = 10, 5, 40
	// perCell is how many painted anomalies of each size and contrast are judged, to
	// tell what a model would find.
	perCell = 6
)

// memberWeights is what each kind of member counts, by its tap: what is seen at a
// stride of 32 pixels more than at 16. What heads count is found for each data set;
// see headWeight.
var memberWeights = map[models.MemberKind][]float64{
	models.PatchGaussian: {1.2, 1.8}, models.PooledGaussian: {0.5, 1}, models.PooledNeighbour: {0.25, 0.5},
}

// learnt is what a model decides by. The zero value is a model that decides by its
// plain error.
type learnt struct {
	tensors       models.StateDict
	decision      *models.Decision
	detectability *models.Detectability
	// headSteps is how many steps the head that came to the fewest took, 0 for none.
	headSteps int
}

// normals are the normal images that are learnt from, in that order, and what is
// seen of them: by image and feature map.
type normals struct {
	data     *Dataset
	order    []int
	features [][][]float32
	maps     []extractor.Map
	folds    int
}

func (x *normals) len() int { return len(x.order) }

// image is normal image k.
func (x *normals) image(k int, buffer *[]byte) ([]byte, error) {
	return x.data.Image(x.order[k], buffer)
}

// learn describes the data set's images, and decides on a threshold above which that
// share of images like them lies. Of fewer than calibration.MinImages images it gives
// neither.
func learn(ctx context.Context, engine *ort.Engine, data *Dataset, order []int, level Level, o Options, began time.Time) (learnt, error) {
	floats := 0
	for _, m := range extractor.MapsOf(data.Side) {
		floats += m.Floats()
	}
	order = order[:min(len(order), maxNormals, max(calibration.MinImages, maxFeatureBytes/(4*floats)))]
	if len(order) < calibration.MinImages {
		data.warn("%d images are too few to tell what is usual among them, %d are needed: the model decides by its plain error, which finds few defects", len(order), calibration.MinImages)
		return learnt{}, nil
	}
	var left time.Duration // of MaxTime, once the images are read
	until := time.Time{}
	if o.MaxTime > 0 {
		left = max(1, time.Until(began.Add(o.MaxTime)))
		until = time.Now().Add(time.Duration(featureShare * float64(left)))
	}
	e, err := extractor.New(engine, data.Side)
	if err != nil {
		return learnt{}, err
	}
	defer e.Close()
	x := &normals{data: data, order: order, maps: e.Maps()}
	withHeads := o.hasHeads(level, len(order))
	if err := x.extract(ctx, e, withHeads, o, until); err != nil {
		return learnt{}, err
	}
	withHeads = o.hasHeads(level, x.len())
	s, err := x.describe(ctx, o)
	if err != nil {
		return learnt{}, err
	}
	raw := make([][]float64, x.len())
	err = o.inParallel(ctx, x.len(), func(_ context.Context, k int) error {
		raw[k] = s.members(k%x.folds, x.features[k])
		return nil
	})
	if err != nil {
		return learnt{}, err
	}
	var h *heads
	if withHeads {
		if h, err = trainHeads(ctx, engine, e, x, s, raw, level.HeadSteps, left, o); err != nil {
			return learnt{}, err
		}
		if h == nil {
			reason := "there was no time for %d steps of each of them"
			if o.stopped() {
				reason = "it was stopped before %d steps of each of them"
			}
			data.warn("the model has no heads for synthetic anomalies: "+reason, min(level.HeadSteps, minHeadSteps))
		}
	}
	weights := o.without.weights(models.Members(false))
	if h != nil {
		weights = withHead(weights, h.weight)
		for k := range raw {
			raw[k] = withHead(raw[k], h.peaks[k])
		}
	}
	c, err := calibration.Fit(raw, weights, o.FalseAlarmRate)
	if err != nil {
		return learnt{}, err
	}
	d := c.Decision(models.MeasurePatchMahalanobis)
	d.Backbone = models.EmbeddedBackbone()
	if d.SupportedRate > d.FalseAlarmRate {
		data.warn("%d normal images support a false alarm rate of %.3f at best, not %.3f: the threshold is the highest they allow", x.len(), d.SupportedRate, d.FalseAlarmRate)
	}
	out := learnt{tensors: s.tensors(data.Side, h, c), decision: &d}
	if h != nil {
		out.headSteps = h.steps
	}
	out.detectability, err = x.detectable(ctx, e, s, h, c, o, until)
	return out, err
}

// withHead puts what is the heads' among what is of all other members.
func withHead(others []float64, head float64) []float64 {
	return slices.Insert(slices.Clone(others), models.LocalMembers(false), head)
}

// extract sees the images, until the time is over; at least calibration.MinImages are.
// It keeps those that it came to. The finest map is for heads only.
func (x *normals) extract(ctx context.Context, e *extractor.Extractor, finest bool, o Options, until time.Time) error {
	first := firstTap()
	if finest {
		first = 0
	}
	seen, err := observe(ctx, e, o, x.len(), calibration.MinImages, first, until, func() func(int) ([]byte, error) {
		var buffer []byte
		return func(k int) ([]byte, error) { return x.image(k, &buffer) }
	})
	if err != nil {
		return err
	}
	var order []int
	for k, maps := range seen {
		if maps != nil { // there was time for it
			order = append(order, x.order[k])
			x.features = append(x.features, maps)
		}
	}
	x.order = order
	x.folds = manyFolds
	if x.len() >= fewImages {
		x.folds = fewFolds
	}
	x.folds = min(x.folds, x.len())
	return nil
}

// observe gives the feature maps of n images, from the map of number first on, by
// image. Beyond the least it leaves out images (nil) that there is no time for before
// until, which is zero for as long as it takes. Each goroutine gets a function from
// painter, which gives image i and may use its memory again for the next.
func observe(ctx context.Context, e *extractor.Extractor, o Options, n, least, first int, until time.Time, painter func() func(i int) ([]byte, error)) ([][][]float32, error) {
	seen := make([][][]float32, n)
	err := o.inParallel(ctx, o.Threads, func(running context.Context, worker int) error {
		observer, err := e.Observer()
		if err != nil {
			return err
		}
		defer observer.Close()
		paint := painter()
		for i := worker; i < n; i += o.Threads {
			if i >= least && !until.IsZero() && time.Now().After(until) {
				return nil
			}
			image, err := paint(i)
			if err != nil {
				return err
			}
			if seen[i], err = observer.See(running, image, first); err != nil {
				return err
			}
		}
		return nil
	})
	return seen, err
}

// detectable measures which painted anomalies are found, each on a normal image that
// what judges it has not learnt from. It is nil where there is no time for it.
func (x *normals) detectable(ctx context.Context, e *extractor.Extractor, s *statistics, h *heads, c *calibration.Calibration, o Options, until time.Time) (*models.Detectability, error) {
	if !until.IsZero() || o.stopped() {
		return nil, nil
	}
	plan, err := detectability.NewPlan(detectability.Images{Count: x.len(), Side: x.data.Side, At: x.image},
		perCell, rand.New(rand.NewPCG(uint64(o.Seed), streamDetectability)))
	if err != nil {
		return nil, err
	}
	first := firstTap()
	if h != nil {
		first = 0
	}
	scores := make([]float64, plan.Len())
	err = o.inParallel(ctx, o.Threads, func(running context.Context, worker int) error {
		observer, err := e.Observer()
		if err != nil {
			return err
		}
		defer observer.Close()
		var judge *headJudge
		if h != nil {
			if judge, err = h.judge(); err != nil {
				return err
			}
			defer judge.close()
		}
		paint := plan.Painter()
		for i := worker; i < len(scores); i += o.Threads {
			image, err := paint(i)
			if err != nil {
				return err
			}
			maps, err := observer.See(running, image, first)
			if err != nil {
				return err
			}
			k := plan.Image(i)
			figures := s.members(k%x.folds, maps)
			if judge != nil {
				peak, err := judge.peak(running, unseenBy(k), maps)
				if err != nil {
					return err
				}
				figures = withHead(figures, peak)
			}
			scores[i] = c.Join(figures)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return plan.Result(scores, c.Threshold)
}

// logarithm is what a member makes of a squared distance.
func logarithm(squared float64) float64 { return math.Log(squared + network.LogarithmOffset) }
