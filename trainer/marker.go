package trainer

import (
	"context"
	"time"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// How markers are trained. The figures were chosen on data sets of several kinds
// together, see docs/detection.md.
const (
	// minMarked is how many normal images it takes: each marker learns from half
	// of them.
	minMarked = 16
	// minMarkerSteps is how many steps a marker must have come to: one of fewer is
	// worse than none.
	minMarkerSteps = 100
	// markerShare is the part that both markers may take of the time that is left
	// of MaxTime when the images are read.
	markerShare = 0.25
	// spoiltShare is the part of a marker's time for painting defects, the rest
	// is for its steps.
	spoiltShare = 0.4
	// samplesPerStep is how many spoilt images are painted for each step, which sees
	// twelve of all of them; two were no better. maxSampleBytes bounds what they take in
	// memory.
	samplesPerStep = 1
	maxSampleBytes = 160 << 20
	// A batch comes in parts of so many spoilt and normal images each: four, so that two
	// threads are both busy to the end, when one of them was held up.
	markerParts              = 4
	spoiltImages, goodImages = 3, 1
	partImagesOfMarker       = spoiltImages + goodImages
	// The learning rate rises to markerRate over the first markerRise of the
	// steps, from 1/25 of it, and falls to nothing along a cosine (Smith and
	// Topin, "Super-Convergence", 2018; PyTorch's OneCycleLR).
	markerRate, markerRise, markerStart = 3e-3, 0.3, 1.0 / 25
)

// marking is what markers learn from: the images' numbers in the data set, their
// features, and by scale and fold what is known of places, the last of all.
type marking struct {
	order []int
	x     features
	known [][]place
}

// fold gives what is known of places without image k.
func (m marking) fold(k int) []place {
	folds := len(m.known[0]) - 1
	at := make([]place, len(m.known))
	for i := range at {
		at[i] = m.known[i][k%folds]
	}
	return at
}

// marked are trained markers, and by image how far its highest place is from
// those of other images, by the marker that has not learnt from it.
type marked struct {
	tensors    models.StateDict
	deviations []float32
	// steps are those of the marker that came to the fewest.
	steps int
}

// hasMarkers says whether a training of the level has markers, of so many normal
// images.
func (o Options) hasMarkers(level Level, normals int) bool {
	return level.MarkerSteps > 0 && normals >= minMarked && !o.without.markers
}

// markers trains the markers of defects for so many steps, each on half of the
// images. What is left of the training's time bounds them; 0 is for no bound.
// Where there is no time, and when the caller asks for an end, it gives none.
//
// Markers have nothing to do with each other. Where there are several threads they are
// trained side by side, as none then waits for another at the end of each step.
func markers(ctx context.Context, engine *ort.Engine, e *energies, data *Dataset, m marking, steps int, left time.Duration, o Options) (*marked, error) {
	n := len(m.order)
	began := time.Now()
	peaks := make([]float64, n)
	var tensors [models.Markers]models.StateDict
	var came [models.Markers]int // to so many steps
	own := o
	own.Threads = (o.Threads + models.Markers - 1) / models.Markers
	err := o.inParallel(ctx, models.Markers, func(running context.Context, k int) (err error) {
		deadline := time.Time{}
		if left > 0 {
			share := markerShare * float64(left)
			if o.Threads == 1 { // one after the other
				share *= float64(k+1) / models.Markers
			}
			deadline = began.Add(time.Duration(share))
		}
		t := &markerTraining{engine: engine, energies: e, data: data, marking: m, options: own, number: k, scales: models.MarkerScales(data.Side)}
		tensors[k], err = t.train(running, steps, deadline)
		t.Close()
		if err != nil || tensors[k] == nil {
			return err
		}
		came[k] = t.steps
		return t.judge(running, tensors[k], peaks)
	})
	if err != nil {
		return nil, err
	}
	out := &marked{steps: steps}
	for k, ts := range tensors {
		if ts == nil {
			return nil, nil
		}
		out.tensors = append(out.tensors, ts...)
		out.steps = min(out.steps, came[k])
	}
	mean, std := meanStd(peaks)
	offset, slope := float32(mean), float32(1/max(std, 1e-3))
	for _, p := range peaks {
		out.deviations = append(out.deviations, (float32(p)-offset)*slope)
	}
	ps := models.MarkersParameters(data.Side)
	for i, v := range []float32{offset, slope} {
		p := ps[len(ps)-2+i]
		out.tensors = append(out.tensors, models.Tensor{Name: p.Name, Shape: p.Shape, Data: []float32{v}})
	}
	return out, nil
}
