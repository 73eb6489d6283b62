package bulk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// Counts are numbers of images.
type Counts struct {
	// Judged is the number of images with a verdict, Anomalous that of the anomalous ones
	// among them, and Unreadable that of images without one.
	Judged     int `json:"judged"`
	Anomalous  int `json:"anomalous"`
	Unreadable int `json:"unreadable"`
}

func (c *Counts) add(o Counts) {
	c.Judged += o.Judged
	c.Anomalous += o.Anomalous
	c.Unreadable += o.Unreadable
}

// imagesPerThread is how many images of a piece are under way for each thread: one is
// decoded or runs, others wait for its batch. More would delay the detections of requests,
// which wait in the same queues.
const imagesPerThread = 4

// judgement judges the images of pieces.
type judgement struct {
	scheduler *inference.Scheduler
	detector  *inference.Detector
	// meta replaces the model's metadata unless it is nil.
	meta    *models.Metadata
	limits  imagefile.Limits
	threads int
}

// lines returns the results of images in their order, one JSON object in each line, as
// they are stored. An error is one of the service or of ctx: that of an image is in its
// line.
func (j judgement) lines(ctx context.Context, images []image) ([]byte, Counts, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lines := make([]Line, len(images))
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(imagesPerThread*max(j.threads, 1), len(images)) {
		group.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					cancel(fmt.Errorf("bulk: panic: %v\n%s", v, debug.Stack()))
				}
			}()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(images) {
					return
				}
				var err error
				if lines[i], err = j.line(ctx, images[i]); err != nil {
					cancel(err)
				}
			}
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return nil, Counts{}, context.Cause(ctx)
	}
	var counts Counts
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	for _, l := range lines {
		if err := e.Encode(l); err != nil {
			return nil, Counts{}, err
		}
		if l.Verdict == nil {
			counts.Unreadable++
			continue
		}
		counts.Judged++
		if l.IsAnomaly {
			counts.Anomalous++
		}
	}
	return b.Bytes(), counts, nil
}

// line returns the result of an image.
func (j judgement) line(ctx context.Context, m image) (Line, error) {
	if m.reason != "" {
		return Line{File: m.name, Error: m.reason}, nil
	}
	v, err := j.scheduler.Detect(ctx, j.detector, inference.Task{Image: m.data, Metadata: j.meta, Limits: j.limits})
	if err == nil {
		return Line{File: m.name, Verdict: &v}, nil
	}
	if inference.IsImageError(err) {
		return Line{File: m.name, Error: err.Error()}, nil
	}
	return Line{}, err
}
