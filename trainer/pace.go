package trainer

import (
	"errors"
	"math"
	"time"
)

// ErrTooLittleTime is returned when MaxTime has passed before the first step
// could be taken.
var ErrTooLittleTime = errors.New("the time given is too little for this data set; give more, fewer images or a smaller image size")

// ErrStopped is returned when a training was told to stop before its first
// step: there is no model yet.
var ErrStopped = errors.New("stopped before there was a model")

const (
	// finishShare is the part of MaxTime that is left for what follows the
	// calibration, beside finishTime: writing the model and sending it.
	finishShare = 0.01
	finishTime  = 500 * time.Millisecond
	// calibrationShare is what measuring an image takes of the time that
	// training on it does: a forward pass of three that are alike, and the half
	// of it again for images that come one at a time.
	calibrationShare = 0.5
	// calibrationLimit is the part of MaxTime that measuring may take: of a large
	// data set a part is measured, evenly spread, because steps are worth more.
	calibrationLimit = 0.1
	// minCalibrated is how many images are measured whatever the time.
	minCalibrated = 30
	// lowestRate is the share of the learning rate that a shortened training
	// ends at.
	lowestRate = 0.01
)

// pace says when a training ends and how fast it learns until then. Without a
// limit it takes all its steps at the level's learning rate. When the steps will
// not fit in the time, it takes as many as do, the learning rate falling along a
// half cosine over the second half of what is left from the moment that shows.
type pace struct {
	steps  int // of the whole plan
	images int // of the data set
	batch  int
	limit  time.Duration // from began; 0 for none
	began  time.Time
	now    func() time.Time

	done    int
	first   time.Duration // the first step, in which memory is got
	rest    time.Duration // the others
	short   bool
	shortAt time.Duration
}

func newPace(steps, images, batch int, began time.Time, limit time.Duration) *pace {
	return &pace{steps: steps, images: images, batch: batch, limit: limit, began: began, now: time.Now}
}

// took counts a step.
func (p *pace) took(d time.Duration) {
	if p.done == 0 {
		p.first = d
	} else {
		p.rest += d
	}
	p.done++
}

// step is what a step takes.
func (p *pace) step() time.Duration {
	if p.done > 1 {
		return p.rest / time.Duration(p.done-1)
	}
	return p.first
}

// end is when the last step must be done, counted from began.
func (p *pace) end() time.Duration {
	return p.calibrated() - p.calibration()
}

// calibration is how long measuring images will take.
func (p *pace) calibration() time.Duration {
	image := calibrationShare * float64(p.step()) / float64(p.batch)
	all := image * float64(p.images)
	least := image * float64(min(p.images, minCalibrated))
	return time.Duration(min(all, max(least, calibrationLimit*float64(p.limit))))
}

// calibrated is when the model must have been measured, counted from began.
func (p *pace) calibrated() time.Duration { return finishBy(p.limit) }

// finishBy is the part of a limit after which only writing and sending follow.
func finishBy(limit time.Duration) time.Duration {
	return limit - finishTime - time.Duration(finishShare*float64(limit))
}

// more reports whether there is time for another step. The first is always
// taken, and the second unless the first took all the time there is: one step
// says little of the others.
func (p *pace) more() bool {
	if p.done == p.steps {
		return false
	}
	if p.limit == 0 || p.done == 0 {
		return true
	}
	elapsed := p.now().Sub(p.began)
	if p.done == 1 {
		return elapsed+p.first <= p.calibrated()
	}
	return elapsed+p.step() <= p.end()
}

// rate is the share of the level's learning rate that the next step learns at.
func (p *pace) rate() float64 {
	if p.limit == 0 || p.done < 2 { // one step, the first, says little of the others
		return 1
	}
	elapsed, end := p.now().Sub(p.began), p.end()
	fits := elapsed+time.Duration(p.steps-p.done)*p.step() <= end
	if !p.short && fits {
		return 1
	}
	if !p.short {
		p.short, p.shortAt = true, elapsed
	}
	// The share of the time since then that has passed, of its second half.
	f := 2*float64(elapsed-p.shortAt)/float64(max(end-p.shortAt, 1)) - 1
	if f <= 0 {
		p.short = !fits // a pause of the machine is no reason to end early
		return 1
	}
	return max(lowestRate, (1+math.Cos(math.Pi*min(f, 1)))/2)
}

// left is how long the rest will take.
func (p *pace) left() time.Duration {
	all := time.Duration(p.steps-p.done) * p.step()
	if p.limit == 0 {
		return all
	}
	return max(0, min(all, p.end()-p.now().Sub(p.began)))
}
