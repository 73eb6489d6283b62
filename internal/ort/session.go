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

// Session is a graph that is ready to run. It may be run by several goroutines at once.
// It must be closed, but not during a run.
type Session struct {
	session *onnxruntime.DynamicAdvancedSession
}

// SessionOptions configure a session.
type SessionOptions struct {
	// Threads is the number of threads of one run; 0 means the engine's. With 1, a run
	// uses the caller's thread.
	Threads int
	// SharedArena makes the session allocate working memory from the allocator that
	// all such sessions share. It suits sessions that stay open. The working memory of
	// other sessions is freed when they are closed.
	SharedArena bool
	// Spin makes the threads of a run spin while they wait for each other. Waking a
	// thread takes a tenth of the time of an operator; a verdict has about twelve.
	Spin bool
	// Kernels registers the operators of package kernels.
	Kernels bool
	// Profile is the prefix of the file name for the times of the operators; empty
	// means no profile.
	Profile string
}

// NewSession returns a session for a graph in ONNX format. Run passes inputs and outputs
// in the order of the names. ErrGraph is returned, wrapped, when ONNX Runtime does not
// accept the graph.
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
		// Threads stop spinning at the end of a run: idle sessions must not take
		// processors from others.
		options.AddSessionConfigEntry("session.force_spinning_stop", "1"),
	)
	if o.SharedArena {
		err = errors.Join(err,
			options.AddSessionConfigEntry("session.use_env_allocators", "1"),
			// Weights are not allocated from the arena, so closing the session frees them.
			options.AddSessionConfigEntry("session.use_device_allocator_for_initializers", "1"))
	}
	if o.Profile != "" {
		err = errors.Join(err, options.EnableProfiling(o.Profile))
	}
	if o.Kernels {
		err = errors.Join(err, kernels.Register(options, e.library),
			// The extended level lacks ONNX Runtime's own layout for convolutions, which
			// only few convolutions would use here. A single-threaded conversion of the
			// layout would follow each, 1/12 of a verdict's time.
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

// registering is held while a session with custom operators is created. ONNX Runtime
// then registers their domain in a table of the process, and a concurrent registration
// fails ("the domain is already exist").
var registering sync.Mutex

// Run computes the outputs from the inputs, both in the order of the names passed to
// NewSession. If ctx ends first, the run stops before the next operator, Run returns the
// cause of ctx, and the outputs are undefined.
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
		// The context ended: Terminate must return before options are destroyed.
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

// Close frees the session. It may be called more than once.
func (s *Session) Close() {
	if s != nil && s.session != nil {
		s.session.Destroy()
		s.session = nil
	}
}
