package trainer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"gonum.org/v1/gonum/mat"
)

// How normal images are described. The figures were chosen on data sets of
// several kinds together, see docs/detection.md.
const (
	// minNormals is how many images it takes to tell what is usual among them.
	// With fewer a model decides by its plain error.
	minNormals = 8
	// maxNormals and maxFeatureBytes bound how many images are described: more
	// add little, and their features are held in memory.
	maxNormals      = 1000
	maxFeatureBytes = 256 << 20
	// featureShare is the part that collecting features may take of the time that
	// is left of MaxTime when the images are read.
	featureShare = 0.2
	// commonVariance is the share that the mean over all places has in the
	// variance of a feature at one of them.
	commonVariance = 0.2
	// varianceFloor is the deviation that is added to any: what never varied may
	// still do so by rounding and noise.
	varianceFloor = 0.05
	// roundingShare is what is added to the threshold, of itself: above what one
	// runtime's rounding differs by from another's (docs/interop.md), below what
	// images differ by. Without it, of images that are all alike some would be
	// anomalous by rounding.
	roundingShare = 1e-4
	// shrinkage pulls the correlations towards none, so that few images give a
	// matrix that can be inverted (Ledoit and Wolf, 2004).
	shrinkage = 0.1
	// Images that were not learnt from are judged in folds: manyFolds of less
	// than fewImages images, fewFolds of more.
	manyFolds, fewFolds, fewImages = 10, 5, 100
)

// features are what is seen of images, by scale and image: D×P×P numbers.
type features [][][]float32

// collect computes the features of those images, until so many or the time is
// over; at least minNormals are. It gives those of them that it came to.
func collect(ctx context.Context, e *energies, data *Dataset, order []int, o Options, until time.Time) (x features, seen []int, err error) {
	of, err := e.observe(ctx, o, len(order), minNormals, len(e.scales), until, func() func(int) ([]byte, error) {
		var buffer []byte
		return func(i int) ([]byte, error) { return data.Image(order[i], &buffer) }
	})
	if err != nil {
		return nil, nil, err
	}
	x = make(features, len(e.scales))
	for i, image := range of {
		if image == nil { // there was no time for it
			continue
		}
		seen = append(seen, order[i])
		for s, f := range image {
			x[s] = append(x[s], f)
		}
	}
	return x, seen, nil
}

// normality describes the data set's images, and decides on a threshold above
// which that share of images like them lies. Of fewer than minNormals images it
// gives neither. It says how many steps each marker took at least.
func normality(ctx context.Context, engine *ort.Engine, data *Dataset, order []int, level Level, o Options, began time.Time) (models.StateDict, *models.Decision, int, error) {
	scales := models.NormalityScales(data.Side)
	bytes := 0
	for _, s := range scales {
		bytes += 4 * s.Features() * s.Places * s.Places
	}
	order = order[:min(len(order), maxNormals, max(minNormals, maxFeatureBytes/bytes))]
	if len(order) < minNormals {
		data.warn("%d images are too few to tell what is usual among them, %d are needed: the model decides by its plain error, which finds few defects", len(order), minNormals)
		return nil, nil, 0, nil
	}
	var left time.Duration // of MaxTime, once the images are read
	until := time.Time{}
	if o.MaxTime > 0 {
		left = max(1, time.Until(began.Add(o.MaxTime)))
		until = time.Now().Add(time.Duration(featureShare * float64(left)))
	}
	e, err := newEnergies(engine, data.Side)
	if err != nil {
		return nil, nil, 0, err
	}
	defer e.Close()
	x, order, err := collect(ctx, e, data, order, o, until)
	if err != nil {
		return nil, nil, 0, err
	}
	n := len(x[0])
	folds := manyFolds
	if n >= fewImages {
		folds = fewFolds
	}
	folds = min(folds, n)

	peaks := make([][]float64, len(scales)) // of images that were not learnt from
	known := make([][]place, len(scales))   // by scale and fold, and then of all
	for i := range scales {
		peaks[i], known[i] = make([]float64, n), make([]place, folds+1)
	}
	err = o.inParallel(ctx, len(scales)*(folds+1), func(_ context.Context, task int) error {
		i, fold := task/(folds+1), task%(folds+1) // the last is no fold but all
		s := scales[i]
		var learnt, others []int
		for k := range n {
			if fold < folds && k%folds == fold {
				others = append(others, k)
			} else {
				learnt = append(learnt, k)
			}
		}
		p, err := describe(s, x[i], learnt)
		if err == nil {
			err = o.without.leave(&p, s, x[i], learnt)
		}
		if err != nil {
			return err
		}
		known[i][fold] = p
		for _, k := range others {
			peaks[i][k] = math.Log(p.peak(s, x[i][k]) + network.LogarithmOffset)
		}
		return nil
	})
	if err != nil {
		return nil, nil, 0, err
	}
	var sd models.StateDict
	highest := make([]float64, n)
	for i, s := range scales {
		mean, std := meanStd(peaks[i])
		slope := o.without.slope(s, data.Side, std)
		for k, v := range peaks[i] {
			z := float32((v - mean) * slope)
			if i > 0 {
				z = network.SmoothMaximum(float32(highest[k]), z)
			}
			highest[k] = float64(z)
		}
		ps := s.Parameters()
		for k, data := range [][]float32{known[i][folds].mean, known[i][folds].precision, known[i][folds].whitening, {float32(mean)}, {float32(slope)}} {
			sd = append(sd, models.Tensor{Name: ps[k].Name, Shape: ps[k].Shape, Data: data})
		}
	}
	var marks *marked
	if o.hasMarkers(level, n) {
		marks, err = markers(ctx, engine, e, data, marking{order: order, x: x, known: known}, level.MarkerSteps, left, o)
		switch {
		case err != nil:
			return nil, nil, 0, err
		case marks == nil:
			reason := "there was no time for %d steps of each of them"
			if o.stopped() {
				reason = "it was stopped before %d steps of each of them"
			}
			data.warn("the model has no markers of defects: "+reason, min(level.MarkerSteps, minMarkerSteps))
		}
	}
	steps := 0
	if marks != nil {
		steps = marks.steps
		sd = append(sd, marks.tensors...)
		for k, z := range marks.deviations {
			highest[k] = float64(network.SmoothMaximum(float32(highest[k]), z))
		}
	}
	scores := highest
	for k, z := range highest {
		scores[k] = max(z, 0) + math.Log1p(math.Exp(-math.Abs(z)))
	}
	d := conformal(scores, o.FalseAlarmRate)
	d.Threshold *= 1 + roundingShare
	if d.SupportedRate > d.FalseAlarmRate {
		data.warn("%d normal images support a false alarm rate of %.3f at best, not %.3f: the threshold is the highest they allow", n, d.SupportedRate, d.FalseAlarmRate)
	}
	return sd, &d, steps, nil
}

// conformal draws the threshold from the scores of normal images that were not
// learnt from: of another such image the chance to be above the ⌈(n+1)(1−rate)⌉th
// smallest of n is at most the rate, whatever the distribution (Vovk et al.,
// 2005). Too few images for the rate give the largest of them, and the rate that
// stands for.
func conformal(scores []float64, rate float64) models.Decision {
	n := len(scores)
	sorted := slices.Sorted(slices.Values(scores))
	rank := int(math.Ceil(float64(n+1) * (1 - rate)))
	return models.Decision{
		Measure: models.MeasureBandMahalanobis, Threshold: sorted[min(max(rank, 1), n)-1],
		FalseAlarmRate: rate, Normals: n, SupportedRate: 1 / float64(n+1),
	}
}

// place is what is known of the places of a scale: see
// models.NormalityScale.Parameters.
type place struct{ mean, precision, whitening []float32 }

var errCorrelation = errors.New("trainer: the features' correlation matrix cannot be inverted")

// describe learns what the places of those images are like.
func describe(s models.NormalityScale, images [][]float32, learnt []int) (place, error) {
	d, size := s.Features(), s.Places*s.Places
	p := place{make([]float32, d*size), make([]float32, d*size), nil}
	n := float64(len(learnt))
	variance := make([]float64, size)
	for f := range d {
		common := 0.0
		for i := range size {
			at := f*size + i
			sum, squares := 0.0, 0.0
			for _, k := range learnt {
				sum += float64(images[k][at])
			}
			mean := sum / n
			for _, k := range learnt {
				e := float64(images[k][at]) - mean
				squares += e * e
			}
			p.mean[at], variance[i] = float32(mean), squares/n
			common += variance[i] / float64(size)
		}
		for i, v := range variance {
			v = (1-commonVariance)*v + commonVariance*common + varianceFloor*varianceFloor
			p.precision[f*size+i] = float32(1 / math.Sqrt(v))
		}
	}
	var err error
	p.whitening, err = p.correlate(s, images, learnt)
	return p, err
}

// correlate gives the whitening of each block: the inverse of the Cholesky factor
// of its correlation matrix. That is estimated from the block's places and from
// all, whose share is the larger the fewer images there are for so many features.
func (p place) correlate(s models.NormalityScale, images [][]float32, learnt []int) ([]float32, error) {
	d, blocks := s.Features(), s.Blocks()
	side := s.Places / blocks
	rows := len(learnt) * side * side
	own := make([]*mat.SymDense, blocks*blocks)
	all := mat.NewSymDense(d, nil)
	z := mat.NewDense(d, rows, nil)
	for b := range own {
		for r := range rows {
			x, y := b%blocks*side+r%side, b/blocks*side+r/side%side
			p.deviation(s, images[learnt[r/side/side]], x, y, func(f int, v float64) { z.Set(f, r, v) })
		}
		own[b] = mat.NewSymDense(d, nil)
		own[b].SymOuterK(1/float64(rows), z)
		all.AddSym(all, own[b])
	}
	common := float64(d) / float64(d+len(learnt))
	out := make([]float32, 0, len(own)*d*d)
	var chol mat.Cholesky
	var lower, inverse mat.TriDense
	for _, m := range own {
		for i := range d {
			for j := i; j < d; j++ {
				v := (1 - shrinkage) * ((1-common)*m.At(i, j) + common*all.At(i, j)/float64(len(own)))
				if i == j {
					v += shrinkage
				}
				m.SetSym(i, j, v)
			}
		}
		if !chol.Factorize(m) {
			return nil, fmt.Errorf("%w, of %d×%d places", errCorrelation, s.Places, s.Places)
		}
		chol.LTo(&lower)
		if err := inverse.InverseTri(&lower); err != nil {
			return nil, fmt.Errorf("%w: %w", errCorrelation, err)
		}
		for i := range d {
			for j := range d {
				out = append(out, float32(inverse.At(i, j)))
			}
		}
		lower.Reset()
		inverse.Reset()
	}
	return out, nil
}

// deviation calls set with each feature's deviation at a place, in standard
// deviations.
func (p place) deviation(s models.NormalityScale, image []float32, x, y int, set func(f int, v float64)) {
	size := s.Places * s.Places
	for f := range s.Features() {
		at := f*size + y*s.Places + x
		set(f, float64((image[at]-p.mean[at])*p.precision[at]))
	}
}

// peak is an image's largest squared distance.
func (p place) peak(s models.NormalityScale, image []float32) float64 {
	d, blocks := s.Features(), s.Blocks()
	side := s.Places / blocks
	z := make([]float64, d)
	highest := 0.0
	for i := range s.Places * s.Places {
		x, y := i%s.Places, i/s.Places
		p.deviation(s, image, x, y, func(f int, v float64) { z[f] = v })
		w := p.whitening[(y/side*blocks+x/side)*d*d:]
		sum := 0.0
		for r := range d {
			v := 0.0
			for c := 0; c <= r; c++ { // a lower triangle
				v += float64(w[r*d+c]) * z[c]
			}
			sum += v * v
		}
		highest = max(highest, sum)
	}
	return highest
}
