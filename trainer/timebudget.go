package trainer

import (
	"errors"
	"math"
	"time"
)

var (
	// ErrTooLittleTime is returned when MaxTime passes before the first step.
	ErrTooLittleTime = errors.New("the time given is too little for this data set; give more, fewer images or a smaller image size")
	// ErrStopped is returned when Stop is closed before there is a model.
	ErrStopped = errors.New("stopped before there was a model")
)

const (
	// finishShare of MaxTime plus finishTime are reserved for writing and sending the
	// model after its calibration.
	finishShare = 0.01
	finishTime  = 500 * time.Millisecond
	// calibrationShare is the time of scoring an image as a share of the time of
	// training on it: one forward pass of three passes of equal cost, and half as much
	// again because images are scored one at a time.
	calibrationShare = 0.5
	// calibrationLimit is the share of MaxTime that calibration may take. Steps are
	// worth more, so a large data set is calibrated on a random part of its images.
	calibrationLimit = 0.1
	// minCalibrated is the number of images to calibrate on even if time is over.
	minCalibrated = 30
	// lowestDecay is the factor of the learning rate at the end of a shortened training.
	lowestDecay = 0.01
)

// timeBudget decides when a training ends, and the learning rate decay until then.
// Without a limit all steps are taken at the level's learning rate. If the steps do not
// fit into the limit, as many as fit are taken. From the moment this is noticed, the
// learning rate stays constant for half of the time left and then follows a half
// cosine down to lowestDecay (cosine annealing; Loshchilov and Hutter, "SGDR", 2017).
type timeBudget struct {
	steps  int // planned
	images int // of the data set
	batch  int
	limit  time.Duration // counted from began; 0 means none
	began  time.Time
	now    func() time.Time

	done    int
	resumed int           // of done, those of an earlier process, whose durations are not known
	first   time.Duration // duration of the first step, which allocates memory
	rest    time.Duration // duration of all other steps
	short   bool
	shortAt time.Duration
}

func newTimeBudget(steps, images, batch int, began time.Time, limit time.Duration) *timeBudget {
	return &timeBudget{steps: steps, images: images, batch: batch, limit: limit, began: began, now: time.Now}
}

// resume counts the steps of an earlier process.
func (b *timeBudget) resume(steps int) { b.done, b.resumed = steps, steps }

// timed returns the number of steps whose durations are known.
func (b *timeBudget) timed() int { return b.done - b.resumed }

// addStep counts a step of duration d.
func (b *timeBudget) addStep(d time.Duration) {
	if b.timed() == 0 {
		b.first = d
	} else {
		b.rest += d
	}
	b.done++
}

// stepTime returns the expected duration of a step.
func (b *timeBudget) stepTime() time.Duration {
	if n := b.timed(); n > 1 {
		return b.rest / time.Duration(n-1)
	}
	return b.first
}

// stepsEnd returns when the last step must be done, counted from began.
func (b *timeBudget) stepsEnd() time.Duration {
	return calibrationEnd(b.limit) - b.calibrationTime()
}

// calibrationTime returns the expected duration of the calibration.
func (b *timeBudget) calibrationTime() time.Duration {
	image := calibrationShare * float64(b.stepTime()) / float64(b.batch)
	all := image * float64(b.images)
	least := image * float64(min(b.images, minCalibrated))
	return time.Duration(min(all, max(least, calibrationLimit*float64(b.limit))))
}

// calibrationEnd returns when the calibration must be done. Only writing and sending
// the model follow.
func calibrationEnd(limit time.Duration) time.Duration {
	return limit - finishTime - time.Duration(finishShare*float64(limit))
}

// allowsStep reports whether there is time for another step. It always allows the
// first step. It allows the second unless a step like the first would take longer than
// all the time left, because the duration of the first predicts others poorly.
func (b *timeBudget) allowsStep() bool {
	if b.done == b.steps {
		return false
	}
	if b.limit == 0 || b.timed() == 0 {
		return true
	}
	elapsed := b.now().Sub(b.began)
	if b.timed() == 1 {
		return elapsed+b.first <= calibrationEnd(b.limit)
	}
	return elapsed+b.stepTime() <= b.stepsEnd()
}

// decay returns the factor of the level's learning rate for the next step, lowestDecay
// to 1.
func (b *timeBudget) decay() float64 {
	if b.limit == 0 || b.timed() < 2 { // the first step predicts others poorly
		return 1
	}
	elapsed, end := b.now().Sub(b.began), b.stepsEnd()
	fits := elapsed+time.Duration(b.steps-b.done)*b.stepTime() <= end
	if !b.short && fits {
		return 1
	}
	if !b.short {
		b.short, b.shortAt = true, elapsed
	}
	// The share that has passed of the second half of the time since then.
	f := 2*float64(elapsed-b.shortAt)/float64(max(end-b.shortAt, 1)) - 1
	if f <= 0 {
		b.short = !fits // a short pause of the machine must not shorten the training
		return 1
	}
	return max(lowestDecay, (1+math.Cos(math.Pi*min(f, 1)))/2)
}

// remaining returns the expected duration of the steps left.
func (b *timeBudget) remaining() time.Duration {
	all := time.Duration(b.steps-b.done) * b.stepTime()
	if b.limit == 0 {
		return all
	}
	return max(0, min(all, b.stepsEnd()-b.now().Sub(b.began)))
}
