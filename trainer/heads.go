package trainer

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// How heads are trained. The figures were chosen on data sets of several kinds
// together, see docs/detection.md.
const (
	// minForHeads is how many normal images it takes: each head learns from half of
	// them.
	minForHeads = 16
	// minHeadSteps is how many steps a head must have come to: one of fewer is worse
	// than none.
	minHeadSteps = 100
	// headShare is the part that both heads may take of the time that is left of
	// MaxTime when the images are read.
	headShare = 0.25
	// headGain is what heads count, in standard deviations of what all other members
	// are joined to, where those find no synthetic anomaly at all.
	headGain = 0.75
	// mostMissed is how many synthetic anomalies of each head tell how many the other
	// members find.
	mostMissed = 150
)

// heads are trained heads; see models.HeadParameters.
type heads struct {
	engine    *ort.Engine
	maps      []extractor.Map
	imageSide int
	tensors   [models.HeadCount]models.StateDict
	// peaks are by image twice its highest logit, by the head that has not learnt
	// from it: the sum of both is what counts.
	peaks []float64
	// weight is what the heads count beside memberWeights.
	weight float64
	// steps are those of the head that came to the fewest.
	steps int
}

// hasHeads says whether a training of the level has heads, of so many normal images.
func (o Options) hasHeads(level Level, normals int) bool {
	return level.HeadSteps > 0 && normals >= minForHeads && !o.without.heads
}

// learntBy is the head that learns from normal image k, unseenBy one that does not.
func learntBy(k int) int { return k % models.HeadCount }

func unseenBy(k int) int { return (k + 1) % models.HeadCount }

// trainHeads trains the heads for so many steps, each on half of the images. What is
// left of the training's time bounds them; 0 is for no bound. Where there is no time,
// and when the caller asks for an end, it gives none.
//
// Heads have nothing to do with each other. Where there are several threads they are
// trained side by side, as none then waits for another at the end of each step.
func trainHeads(ctx context.Context, engine *ort.Engine, e *extractor.Extractor, x *normals, s *statistics, raw [][]float64, steps int, left time.Duration, o Options) (*heads, error) {
	began := time.Now()
	h := &heads{engine: engine, maps: x.maps, imageSide: x.data.Side, peaks: make([]float64, x.len()), steps: steps}
	var came [models.HeadCount]int
	var painted [models.HeadCount][][]float64 // members of synthetic anomalies
	own := o
	own.Threads = (o.Threads + models.HeadCount - 1) / models.HeadCount
	err := o.inParallel(ctx, models.HeadCount, func(running context.Context, k int) (err error) {
		deadline := time.Time{}
		if left > 0 {
			share := headShare * float64(left)
			if o.Threads == 1 { // one after the other
				share *= float64(k+1) / models.HeadCount
			}
			deadline = began.Add(time.Duration(share))
		}
		t := &headTraining{engine: engine, extractor: e, normals: x, options: own, number: k}
		defer t.Close()
		if h.tensors[k], err = t.train(running, steps, deadline); err != nil || h.tensors[k] == nil {
			return err
		}
		came[k] = t.steps
		for _, p := range t.samples[:min(len(t.samples), mostMissed)] {
			painted[k] = append(painted[k], s.members(p.image%x.folds, p.maps))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for k, ts := range h.tensors {
		if ts == nil {
			return nil, nil
		}
		h.steps = min(h.steps, came[k])
	}
	if err := h.judgeNormals(ctx, x, o); err != nil {
		return nil, err
	}
	h.weight, err = headWeight(raw, slices.Concat(painted[:]...), o)
	return h, err
}

// headWeight is what heads count beside the other members: the more, the fewer
// synthetic anomalies those find at the threshold. Where they find nearly all, as of
// screws, heads have nothing to add but noise; where they find few, as on circuit
// boards, heads find most of what is found. raw are members of normal images that
// were not learnt from, painted those of synthetic anomalies.
func headWeight(raw, painted [][]float64, o Options) (float64, error) {
	weights := o.without.weights(models.Members(false))
	c, err := calibration.Fit(raw, weights, o.FalseAlarmRate)
	if err != nil {
		return 0, err
	}
	missed := 0
	for _, p := range painted {
		if c.Join(p) <= c.Threshold {
			missed++
		}
	}
	share := float64(missed) / float64(max(len(painted), 1))
	joined := make([]float64, len(raw))
	for k, figures := range raw {
		for i, v := range figures {
			joined[k] += (v - float64(c.Offsets[i])) * float64(c.Slopes[i]) * float64(c.Weights[i])
		}
	}
	_, deviation := calibration.MeanDeviation(joined)
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	return headGain * share * share * deviation * sum, nil
}

// judgeNormals finds the peaks.
func (h *heads) judgeNormals(ctx context.Context, x *normals, o Options) error {
	return o.inParallel(ctx, o.Threads, func(running context.Context, worker int) error {
		j, err := h.judge()
		if err != nil {
			return err
		}
		defer j.close()
		for k := worker; k < x.len(); k += o.Threads {
			if h.peaks[k], err = j.peak(running, unseenBy(k), x.features[k]); err != nil {
				return err
			}
		}
		return nil
	})
}

// headJudge is one goroutine's memory for what heads say of images.
type headJudge struct {
	sessions [models.HeadCount]*ort.Session
	inputs   [models.HeadCount][]*ort.Tensor // features, which all share, then parameters
	features []*ort.Tensor
	logits   *ort.Tensor
}

func (h *heads) judge() (*headJudge, error) {
	j := &headJudge{}
	var err error
	fail := func(err error) (*headJudge, error) {
		j.close()
		return nil, err
	}
	if j.features, err = featureTensors(h.maps, 1); err != nil {
		return fail(err)
	}
	for k, ts := range h.tensors {
		m, err := exporter.HeadModel(h.imageSide, k, inference.Operators(h.engine))
		if err != nil {
			return fail(err)
		}
		if j.sessions[k], err = newSession(h.engine, m, 1); err != nil {
			return fail(err)
		}
		for _, t := range ts {
			x, err := ort.NewTensor(t.Shape...)
			if err != nil {
				return fail(err)
			}
			copy(x.Data(), t.Data)
			j.inputs[k] = append(j.inputs[k], x)
		}
	}
	p := h.maps[0].Side
	if j.logits, err = ort.NewTensor(1, 1, p, p); err != nil {
		return fail(err)
	}
	return j, nil
}

// peak is twice the highest logit of an image by that head.
func (j *headJudge) peak(ctx context.Context, head int, maps [][]float32) (float64, error) {
	for i, m := range maps {
		copy(j.features[i].Data(), m)
	}
	if err := j.sessions[head].Run(ctx, slices.Concat(j.features, j.inputs[head]), []*ort.Tensor{j.logits}); err != nil {
		return 0, err
	}
	return 2 * float64(slices.Max(j.logits.Data())), nil
}

func (j *headJudge) close() {
	closeAll(j.features)
	for k := range j.sessions {
		closeAll(j.inputs[k])
		j.sessions[k].Close()
	}
	j.logits.Close()
}

// featureTensors makes inputs for so many images' feature maps.
func featureTensors(maps []extractor.Map, images int) ([]*ort.Tensor, error) {
	var ts []*ort.Tensor
	for _, m := range maps {
		t, err := ort.NewTensor(images, m.Channels, m.Side, m.Side)
		if err != nil {
			closeAll(ts)
			return nil, err
		}
		ts = append(ts, t)
	}
	return ts, nil
}

func closeAll(ts []*ort.Tensor) {
	for _, t := range ts {
		t.Close()
	}
}

// oneCycle is the learning rate at that share of the steps.
func oneCycle(progress float64) float64 {
	wave := func(from, to, at float64) float64 { return to + (from-to)*(1+math.Cos(math.Pi*at))/2 }
	if progress < headRise {
		return wave(headRate*headStart, headRate, progress/headRise)
	}
	return wave(headRate, 0, (progress-headRise)/(1-headRise))
}
