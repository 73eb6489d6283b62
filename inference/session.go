package inference

import (
	"context"
	"slices"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// sessionKind selects one of a detector's sessions. All of them compute the anomaly
// score and the mean squared error.
type sessionKind int

const (
	// scoreSession uses the detector's number of threads.
	scoreSession sessionKind = iota
	// singleThreadSession uses one thread, for runs next to other work.
	singleThreadSession
	// reconstructionSession also computes the reconstruction.
	reconstructionSession
	// mapSession also computes the anomaly map, with one thread.
	mapSession
	// memberSession also computes the member scores, with one thread.
	memberSession
	sessionKinds
)

// job is the computation of one image.
type job struct {
	// image writes the network's input: three planes of values in 0…1, and
	// imagefile.Outside for pixels that are not judged. It is called
	// at most once.
	image func(dst []float32)
	// reconstruction receives the reconstruction, in the layout of the input;
	// reconstructionSession only.
	reconstruction []float32
	// anomaly receives the anomaly map, one value for each pixel; mapSession only.
	anomaly []float32
	// members receives the member scores; memberSession only.
	members []float32

	// shallow is imagefile.Prepared.Shallow.
	shallow bool
	// place is the index of a tile in its image, and tiles the number of tiles of an
	// image, for a model of tiles; else 0.
	place, tiles int

	mse float32
	// score is the anomaly score; mse if the model has no other measure.
	score float32

	ctx  context.Context // of a job in a queue
	left func()          // ends the count of a queue's job among the images in flight
	err  error
	done chan struct{} // closed once the results and err are set
}

// session returns the session of a kind. It creates the session on first use.
func (d *Detector) session(k sessionKind) (*ort.Session, error) {
	d.sessionMu.Lock()
	defer d.sessionMu.Unlock()
	if d.sessions[k] != nil {
		return d.sessions[k], nil
	}
	// Each session lowers the model again: a graph kept for later would take as much
	// memory as the weights.
	also := exporter.Results{Images: k == reconstructionSession || k == mapSession, Members: k == memberSession}
	m, err := exporter.ServedModel(d.model, also, d.operators)
	if err != nil {
		return nil, err
	}
	outputs, threads := m.Outputs, d.threads
	switch k {
	case singleThreadSession:
		threads = 1
	case reconstructionSession:
		outputs = append(outputs, network.ReconstructionName)
	case mapSession:
		outputs, threads = append(outputs, network.MapName), 1
	case memberSession:
		outputs, threads = append(outputs, network.MembersName), 1
	}
	s, err := d.engine.NewSession(m.ONNX, m.Inputs, outputs, ort.SessionOptions{Threads: threads, SharedArena: true, Spin: k == scoreSession, Kernels: m.Kernels})
	if err != nil {
		return nil, err
	}
	d.sessions[k] = s
	return s, nil
}

// run computes the jobs as one batch. The graph treats every image separately: its
// results have the same bits in a batch of any size and with any number of threads.
func (d *Detector) run(ctx context.Context, k sessionKind, jobs []*job) error {
	d.closing.RLock()
	defer d.closing.RUnlock()
	if d.closed {
		return ErrClosed
	}
	session, err := d.session(k)
	if err != nil {
		return err
	}
	b, err := d.takeBuffers(len(jobs), k)
	if err != nil {
		return err
	}
	defer d.keepBuffers(b)
	n := d.floats()
	for i, j := range jobs {
		j.image(b.image.Data()[i*n : (i+1)*n])
	}
	outputs := []*ort.Tensor{b.scores}
	if d.model.Reference != nil {
		outputs = append(outputs, b.mses)
	}
	if b.extra != nil {
		outputs = append(outputs, b.extra)
	}
	inputs := []*ort.Tensor{b.image}
	if b.places != nil {
		for i, j := range jobs {
			b.places.Data()[i] = float32(j.place)
		}
		inputs = append(inputs, b.places)
	}
	if err := session.Run(ctx, inputs, outputs); err != nil {
		return err
	}
	for i, j := range jobs {
		j.score = b.scores.Data()[i]
		j.mse = j.score
		if d.model.Reference != nil {
			j.mse = b.mses.Data()[i]
		}
		switch k {
		case reconstructionSession:
			copy(j.reconstruction, b.extra.Data()[i*n:(i+1)*n])
		case mapSession:
			n := n / models.InputChannels
			copy(j.anomaly, b.extra.Data()[i*n:(i+1)*n])
		case memberSession:
			n := len(j.members)
			copy(j.members, b.extra.Data()[i*n:(i+1)*n])
		}
	}
	return nil
}

// buffers is the memory of one run.
type buffers struct {
	image        *ort.Tensor
	places       *ort.Tensor // nil unless the model has models.TilesByPlace
	scores, mses *ort.Tensor
	// extra receives the reconstructions, maps or member scores; nil for the
	// sessions that compute none of them.
	extra *ort.Tensor
}

// A detector keeps up to maxIdle buffers of single images between runs. Larger buffers
// than maxIdleFloats values are not kept: their allocation is fast compared with their
// run.
const (
	maxIdle       = 2
	maxIdleFloats = 1 << 20
)

// takeBuffers returns idle or new buffers for n images.
func (d *Detector) takeBuffers(n int, k sessionKind) (*buffers, error) {
	if n == 1 && k < reconstructionSession {
		d.idleMu.Lock()
		if last := len(d.idle) - 1; last >= 0 {
			b := d.idle[last]
			d.idle = slices.Delete(d.idle, last, last+1)
			d.idleMu.Unlock()
			return b, nil
		}
		d.idleMu.Unlock()
	}
	b := &buffers{}
	var err error
	if b.image, err = ort.NewTensor(n, models.InputChannels, d.Size().H, d.Size().W); err == nil {
		b.mses, err = ort.NewTensor(n)
	}
	if err == nil {
		b.scores, err = ort.NewTensor(n)
	}
	if err == nil && models.PlaceCount(d.model.Reference) > 0 {
		b.places, err = ort.NewTensor(n)
	}
	if err == nil {
		switch k {
		case reconstructionSession:
			b.extra, err = ort.NewTensor(b.image.Shape()...)
		case mapSession:
			b.extra, err = ort.NewTensor(n, d.Size().H, d.Size().W)
		case memberSession:
			b.extra, err = ort.NewTensor(n, d.members(), 1, 1)
		}
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// keepBuffers keeps the buffers for the next run or releases them.
func (d *Detector) keepBuffers(b *buffers) {
	d.idleMu.Lock()
	kept := b.extra == nil && len(b.mses.Data()) == 1 && len(d.idle) < maxIdle && d.floats() <= maxIdleFloats
	if kept {
		d.idle = append(d.idle, b)
	}
	d.idleMu.Unlock()
	if !kept {
		b.close()
	}
}

func (b *buffers) close() {
	b.image.Close()
	b.places.Close()
	b.mses.Close()
	b.scores.Close()
	b.extra.Close()
}

// The memory of a session without its buffers: the weights, their copies in the
// layout of the operators (a Winograd convolution stores 25 products for 9 taps),
// and the graph. Measured as 2.5 times the weights of the default network.
const (
	sessionHalves = 5         // halves of the weights
	sessionGraph  = 512 << 10 // bytes
	bytesPerFloat = 4
)

// Bytes returns the memory that the detector holds between runs, in bytes: weights,
// sessions, buffers and the retained file. It grows as sessions are created. The
// working memory of runs is shared by all detectors and not included.
func (d *Detector) Bytes() int64 {
	weights := int64(0)
	for _, t := range slices.Concat(d.model.Weights, d.model.Reference) {
		weights += int64(len(t.Data)) * bytesPerFloat
	}
	if models.HasPatches(d.model.Reference) {
		weights += backbone.Bytes()
	}
	sessions := int64(0)
	d.sessionMu.Lock()
	for _, s := range d.sessions {
		if s != nil {
			sessions++
		}
	}
	d.sessionMu.Unlock()
	d.idleMu.Lock()
	idle := int64(len(d.idle))
	d.idleMu.Unlock()
	return weights + sessions*(sessionHalves*weights/2+sessionGraph) + idle*int64(d.floats())*bytesPerFloat + d.fileBytes()
}
