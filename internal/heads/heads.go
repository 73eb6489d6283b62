package heads

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/extractor"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/optimizer"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

const (
	// MinImages is the smallest number of normal images. Each head learns from half of
	// them.
	MinImages = 16
	// MinSteps is the smallest number of steps of a head. A head of fewer steps is worse
	// than none.
	MinSteps = 100
	// timeShare is the share of Options.Left that both heads together may take.
	timeShare = 0.25
	// maxAnomalies bounds the synthetic anomalies of each head in Heads.Anomalies.
	maxAnomalies = 150
)

// Images are the normal images that heads learn from.
type Images struct {
	// Layout is that of the prepared images.
	Layout imagefile.Layout
	// Features are the feature maps, by image and map. Maps are their shapes.
	Features [][][]float32
	Maps     []extractor.Map
	// Inside are the patches of the finest map that are judged, by image; nil for all.
	Inside [][]bool
	// At returns image k, prepared. It may store them in the buffer.
	At func(k int, buffer *[]byte) ([]byte, error)
}

// inside returns the patches of the finest map that are judged in image k; nil for all.
func (x Images) inside(k int) []bool {
	if x.Inside == nil {
		return nil
	}
	return x.Inside[k]
}

// Options of the training of heads.
type Options struct {
	// Steps is the number of steps of each head.
	Steps int
	Seed  int64
	// Left is the time left for the whole training, of which heads take timeShare; 0
	// means no limit.
	Left time.Duration
	// Stop, when closed, ends the training without heads.
	Stop    <-chan struct{}
	Workers workers.Pool
	// Describe returns the element of Heads.Anomalies for the feature maps of a synthetic
	// anomaly on normal image k.
	Describe func(k int, maps [][]float32) []float64
}

// Heads are trained heads; see models.HeadParameters.
type Heads struct {
	// Tensors are the parameters of each head.
	Tensors [models.HeadCount]models.StateDict
	// Peaks are, by normal image, twice the highest logit of the head that did not learn
	// from the image. Twice, because a new image is scored by the sum of both heads'
	// logits.
	Peaks []float64
	// Anomalies are the results of Options.Describe for synthetic anomalies.
	Anomalies [][]float64
	// Steps is the smallest number of steps that a head took.
	Steps int

	engine *ort.Engine
	maps   []extractor.Map
	size   models.Size
}

// learnsFrom returns the head that learns from normal image k.
func learnsFrom(k int) int { return k % models.HeadCount }

// Unseen returns the head that does not learn from normal image k.
func Unseen(k int) int { return (k + 1) % models.HeadCount }

// Train trains the heads, each on half of the images. It returns nil if there is no time
// for MinSteps, or for Options.Steps if that is less, and if it is stopped.
//
// With several threads the heads are trained concurrently, so that threads do not wait
// for each other at the end of each step.
func Train(ctx context.Context, engine *ort.Engine, e *extractor.Extractor, x Images, o Options) (*Heads, error) {
	began := time.Now()
	h := &Heads{engine: engine, maps: x.Maps, size: x.Layout.Size, Peaks: make([]float64, len(x.Features)), Steps: o.Steps}
	var steps [models.HeadCount]int
	var anomalies [models.HeadCount][][]float64
	own := o
	own.Workers.Threads = (o.Workers.Threads + models.HeadCount - 1) / models.HeadCount
	err := o.Workers.Each(ctx, models.HeadCount, func(running context.Context, k int) (err error) {
		deadline := time.Time{}
		if o.Left > 0 {
			share := timeShare * float64(o.Left)
			if o.Workers.Threads <= 1 { // one after the other
				share *= float64(k+1) / models.HeadCount
			}
			deadline = began.Add(time.Duration(share))
		}
		t := &training{engine: engine, extractor: e, images: x, options: own, number: k}
		defer t.Close()
		if h.Tensors[k], err = t.train(running, deadline); err != nil || h.Tensors[k] == nil {
			return err
		}
		steps[k] = t.Steps()
		for _, p := range t.samples[:min(len(t.samples), maxAnomalies)] {
			anomalies[k] = append(anomalies[k], o.Describe(p.image, p.maps))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for k, ts := range h.Tensors {
		if ts == nil {
			return nil, nil
		}
		h.Steps = min(h.Steps, steps[k])
	}
	h.Anomalies = slices.Concat(anomalies[:]...)
	return h, h.setPeaks(ctx, x, o.Workers)
}

// setPeaks sets Peaks.
func (h *Heads) setPeaks(ctx context.Context, x Images, pool workers.Pool) error {
	threads := max(pool.Threads, 1)
	return pool.Each(ctx, threads, func(running context.Context, worker int) error {
		s, err := h.Scorer()
		if err != nil {
			return err
		}
		defer s.Close()
		for k := worker; k < len(h.Peaks); k += threads {
			if h.Peaks[k], err = s.Peak(running, Unseen(k), x.Features[k], x.inside(k)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Scorer applies heads to images. It is not safe for concurrent use and must be closed.
type Scorer struct {
	sessions [models.HeadCount]*ort.Session
	inputs   [models.HeadCount][]*ort.Tensor // parameters
	features []*ort.Tensor                   // shared by both heads
	logits   *ort.Tensor
}

// Scorer returns a scorer that applies the heads.
func (h *Heads) Scorer() (*Scorer, error) {
	s := &Scorer{}
	var err error
	fail := func(err error) (*Scorer, error) {
		s.Close()
		return nil, err
	}
	if s.features, err = featureTensors(h.maps, 1); err != nil {
		return fail(err)
	}
	for k, ts := range h.Tensors {
		m, err := exporter.HeadModel(h.size, k, inference.Operators(h.engine))
		if err != nil {
			return fail(err)
		}
		if s.sessions[k], err = optimizer.NewSession(h.engine, m, 1); err != nil {
			return fail(err)
		}
		for _, t := range ts {
			x, err := ort.NewTensor(t.Shape...)
			if err != nil {
				return fail(err)
			}
			copy(x.Data(), t.Data)
			s.inputs[k] = append(s.inputs[k], x)
		}
	}
	p := h.maps[0]
	if s.logits, err = ort.NewTensor(1, 1, p.H, p.W); err != nil {
		return fail(err)
	}
	return s, nil
}

// Peak returns twice the highest logit of an image by one head, of the patches inside; nil
// means all.
func (s *Scorer) Peak(ctx context.Context, head int, maps [][]float32, inside []bool) (float64, error) {
	for i, m := range maps {
		copy(s.features[i].Data(), m)
	}
	if err := s.sessions[head].Run(ctx, slices.Concat(s.features, s.inputs[head]), []*ort.Tensor{s.logits}); err != nil {
		return 0, err
	}
	if inside == nil {
		return 2 * float64(slices.Max(s.logits.Data())), nil
	}
	highest := float32(math.Inf(-1))
	for p, v := range s.logits.Data() {
		if inside[p] {
			highest = max(highest, v)
		}
	}
	return 2 * float64(highest), nil
}

// Close releases all sessions and tensors.
func (s *Scorer) Close() {
	closeAll(s.features)
	for k := range s.sessions {
		closeAll(s.inputs[k])
		s.sessions[k].Close()
	}
	s.logits.Close()
}

// featureTensors allocates tensors for the feature maps of a number of images.
func featureTensors(maps []extractor.Map, images int) ([]*ort.Tensor, error) {
	var ts []*ort.Tensor
	for _, m := range maps {
		t, err := ort.NewTensor(images, m.Channels, m.H, m.W)
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
