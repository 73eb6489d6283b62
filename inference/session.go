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

// kind is which of a detector's sessions a run takes.
type kind int

const (
	// alone gives the errors, by as many threads as the detector was made for.
	alone kind = iota
	// beside gives the errors by one thread: for runs beside others.
	beside
	// rebuilding gives the reconstructions, too.
	rebuilding
	// mapping gives the anomaly maps, too.
	mapping
	// measuring gives the members of the measure, too.
	measuring
	kinds
)

// job is one image on its way through a session.
type job struct {
	// image writes the network's input: three planes of values in 0…1.
	image func(dst []float32)
	// rebuilt takes the reconstruction, in the same layout; nil where nobody
	// asks for it.
	rebuilt []float32
	// anomaly takes the anomaly map, side×side; nil where nobody asks for it.
	anomaly []float32
	// members takes the members of the measure; nil where nobody asks for them.
	members []float32
	mse     float32
	// figure is what the model decides by: the mse, or another measure.
	figure float32

	ctx  context.Context // of a job that waits in a queue
	err  error
	done chan struct{} // closed once mse and err are set
}

// session is the session of a kind, made when it is first asked for.
func (d *Detector) session(k kind) (*ort.Session, error) {
	d.making.Lock()
	defer d.making.Unlock()
	if d.sessions[k] != nil {
		return d.sessions[k], nil
	}
	// Made anew for each session, because it is as large as the weights it is made of.
	also := exporter.Results{Images: k == rebuilding || k == mapping, Members: k == measuring}
	m, err := exporter.ServedModel(d.model, also, d.with)
	if err != nil {
		return nil, err
	}
	outputs, threads := m.Outputs, d.threads
	switch k {
	case beside:
		threads = 1
	case rebuilding:
		outputs = append(outputs, network.ReconstructionName)
	case mapping:
		outputs, threads = append(outputs, network.MapName), 1
	case measuring:
		outputs, threads = append(outputs, network.MembersName), 1
	}
	s, err := d.engine.NewSession(m.ONNX, m.Inputs, outputs, ort.SessionOptions{Threads: threads, SharedArena: true, Spin: k == alone, Kernels: m.Kernels})
	if err != nil {
		return nil, err
	}
	d.sessions[k] = s
	return s, nil
}

// run computes the jobs as one batch. The graph treats each image by itself, and
// its error has the same bits in a batch of any size, on any number of threads.
func (d *Detector) run(ctx context.Context, k kind, jobs []*job) error {
	d.closing.RLock()
	defer d.closing.RUnlock()
	if d.closed {
		return ErrClosed
	}
	session, err := d.session(k)
	if err != nil {
		return err
	}
	b, err := d.take(len(jobs), k)
	if err != nil {
		return err
	}
	defer d.keep(b)
	n := d.floats()
	for i, j := range jobs {
		j.image(b.image.Data()[i*n : (i+1)*n])
	}
	outputs := []*ort.Tensor{b.figures}
	if d.model.Reference != nil {
		outputs = append(outputs, b.errors)
	}
	switch k {
	case rebuilding, mapping, measuring:
		outputs = append(outputs, b.rebuilt)
	}
	if err := session.Run(ctx, []*ort.Tensor{b.image}, outputs); err != nil {
		return err
	}
	for i, j := range jobs {
		j.figure = b.figures.Data()[i]
		j.mse = j.figure
		if d.model.Reference != nil {
			j.mse = b.errors.Data()[i]
		}
		switch k {
		case rebuilding:
			copy(j.rebuilt, b.rebuilt.Data()[i*n:(i+1)*n])
		case mapping:
			n := n / models.InputChannels
			copy(j.anomaly, b.rebuilt.Data()[i*n:(i+1)*n])
		case measuring:
			n := len(j.members)
			copy(j.members, b.rebuilt.Data()[i*n:(i+1)*n])
		}
	}
	return nil
}

// buffers is the memory of one run.
type buffers struct {
	image           *ort.Tensor
	figures, errors *ort.Tensor
	rebuilt         *ort.Tensor // or maps or members; nil but for rebuilding, mapping and measuring
}

// A detector keeps mostIdle buffers between runs, those of single images of at
// most largestIdle floats: beyond that, making them anew is little beside the run.
const (
	mostIdle    = 2
	largestIdle = 1 << 20
)

func (d *Detector) take(n int, k kind) (*buffers, error) {
	if n == 1 && k < rebuilding {
		d.keeping.Lock()
		if last := len(d.idle) - 1; last >= 0 {
			b := d.idle[last]
			d.idle = slices.Delete(d.idle, last, last+1)
			d.keeping.Unlock()
			return b, nil
		}
		d.keeping.Unlock()
	}
	b := &buffers{}
	var err error
	if b.image, err = ort.NewTensor(n, models.InputChannels, d.Side(), d.Side()); err == nil {
		b.errors, err = ort.NewTensor(n)
	}
	if err == nil {
		b.figures, err = ort.NewTensor(n)
	}
	if err == nil && k == rebuilding {
		b.rebuilt, err = ort.NewTensor(b.image.Shape()...)
	}
	if err == nil && k == mapping {
		b.rebuilt, err = ort.NewTensor(n, d.Side(), d.Side())
	}
	if err == nil && k == measuring {
		b.rebuilt, err = ort.NewTensor(n, d.members(), 1, 1)
	}
	if err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (d *Detector) keep(b *buffers) {
	d.keeping.Lock()
	kept := b.rebuilt == nil && len(b.errors.Data()) == 1 && len(d.idle) < mostIdle && d.floats() <= largestIdle
	if kept {
		d.idle = append(d.idle, b)
	}
	d.keeping.Unlock()
	if !kept {
		b.close()
	}
}

func (b *buffers) close() {
	b.image.Close()
	b.errors.Close()
	b.figures.Close()
	b.rebuilt.Close()
}

// What a session holds beside its buffers: the weights, them in the order that its
// operators read, of which some take 25 products for 9 taps, and the graph itself.
// Measured as 2.5 times the weights of the default network.
const (
	sessionHalves = 5 // halves of the weights
	sessionGraph  = 512 << 10
	bytesPerFloat = 4
)

// Bytes is how much memory the detector holds between runs: its weights, the
// sessions made so far, its buffers and the file that it remembers. The working memory of runs is shared by
// all detectors and is not in it.
func (d *Detector) Bytes() int64 {
	weights := int64(0)
	for _, t := range slices.Concat(d.model.Weights, d.model.Reference) {
		weights += int64(len(t.Data)) * bytesPerFloat
	}
	if models.HasPatches(d.model.Reference) {
		weights += backbone.Bytes()
	}
	made := int64(0)
	d.making.Lock()
	for _, s := range d.sessions {
		if s != nil {
			made++
		}
	}
	d.making.Unlock()
	d.keeping.Lock()
	kept := int64(len(d.idle))
	d.keeping.Unlock()
	return weights + made*(sessionHalves*weights/2+sessionGraph) + kept*int64(d.floats())*bytesPerFloat + d.fileBytes()
}
