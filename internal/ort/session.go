package ort

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/deepmed/anomaly/internal/kernels"
	onnxruntime "github.com/yalue/onnxruntime_go"
)

// ErrGraph is returned when ONNX Runtime does not accept a graph.
var ErrGraph = errors.New("ONNX Runtime refuses the graph")

// Session is a graph made ready to run. Several goroutines may run it at once.
// It must be closed, and not while it runs.
type Session struct {
	session *onnxruntime.DynamicAdvancedSession
}

// SessionOptions say how a session computes.
type SessionOptions struct {
	// Threads is how many threads one run uses; 0 means the engine's. With 1
	// a run stays on its caller's thread.
	Threads int
	// SharedArena takes working memory from what all such sessions share: for
	// sessions that stay, and run in turns. One that ends with its work gives
	// its own memory back then.
	SharedArena bool
	// Spin has a run's threads wait for each other awake, until the run ends: waking one
	// takes as long as a tenth of an operator, of which a verdict is a dozen.
	Spin bool
	// Kernels makes the operators of package kernels known to the graph.
	Kernels bool
	// Profile is the prefix of a file for per-operator times; empty for none.
	Profile string
}

// NewSession prepares a graph for the inputs and outputs named, in that order.
// It returns ErrGraph, wrapped, when ONNX Runtime does not accept it.
func (e *Engine) NewSession(onnx []byte, inputs, outputs []string, o SessionOptions) (*Session, error) {
	options, err := onnxruntime.NewSessionOptions()
	if err != nil {
		return nil, fmt.Errorf("ort: session options: %w", err)
	}
	defer options.Destroy()
	if o.Threads <= 0 {
		o.Threads = e.threads
	}
	spin := "0"
	if o.Spin {
		spin = "1"
	}
	err = errors.Join(
		options.SetIntraOpNumThreads(o.Threads),
		options.SetInterOpNumThreads(1),
		options.AddSessionConfigEntry("session.intra_op.allow_spinning", spin),
		// Threads of a session that does not run sleep: sessions stay loaded side by
		// side, and a spinning one takes the processor from those that work.
		options.AddSessionConfigEntry("session.force_spinning_stop", "1"),
	)
	if o.SharedArena {
		err = errors.Join(err,
			options.AddSessionConfigEntry("session.use_env_allocators", "1"),
			// Weights are given back with their session, not kept in the arena.
			options.AddSessionConfigEntry("session.use_device_allocator_for_initializers", "1"))
	}
	if o.Profile != "" {
		err = errors.Join(err, options.EnableProfiling(o.Profile))
	}
	if o.Kernels {
		err = errors.Join(err, kernels.Register(options, e.library),
			// All but ONNX Runtime's own layout for convolutions: of those few that are
			// left to it, which find the energies of places, each would be followed by a
			// change of the layout by one thread, a twelfth of a verdict.
			options.SetGraphOptimizationLevel(onnxruntime.GraphOptimizationLevelEnableExtended))
	}
	if e.provider == CUDA {
		err = errors.Join(err, addCUDA(options))
	}
	if err != nil {
		return nil, fmt.Errorf("ort: session options: %w", err)
	}
	if o.Kernels {
		registering.Lock()
		defer registering.Unlock()
	}
	s, err := onnxruntime.NewDynamicAdvancedSessionWithONNXData(onnx, inputs, outputs, options)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrGraph, oneLine(err))
	}
	return &Session{s}, nil
}

// registering is held while a session with operators of our own is made: ONNX Runtime
// enters their domain into a table of the process when it makes one, and refuses the
// second of two that do so at once ("the domain is already exist").
var registering sync.Mutex

// Run computes the outputs from the inputs, both in the order NewSession was
// given, writing into the outputs' memory. When the context ends first the run
// is stopped at the next operator and the context's cause is returned; the
// outputs are then undefined.
func (s *Session) Run(ctx context.Context, inputs, outputs []*Tensor) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	options, err := onnxruntime.NewRunOptions()
	if err != nil {
		return fmt.Errorf("ort: run options: %w", err)
	}
	defer options.Destroy()
	stopped := make(chan struct{})
	release := context.AfterFunc(ctx, func() {
		defer close(stopped)
		options.Terminate()
	})
	err = s.session.RunWithOptions(values(inputs), values(outputs), options)
	if !release() {
		// The context ended: let Terminate return before the options go.
		<-stopped
	}
	runtime.KeepAlive(inputs)
	runtime.KeepAlive(outputs)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("ort: %s", oneLine(err))
	}
	return nil
}

func values(ts []*Tensor) []onnxruntime.Value {
	out := make([]onnxruntime.Value, len(ts))
	for i, t := range ts {
		out[i] = t.value
	}
	return out
}

// Close gives the session back. It may be called more than once.
func (s *Session) Close() {
	if s != nil && s.session != nil {
		s.session.Destroy()
		s.session = nil
	}
}
