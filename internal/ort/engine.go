package ort

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// ErrLibrary is returned when ONNX Runtime's library cannot be loaded or is too old.
var ErrLibrary = errors.New("ONNX Runtime's library cannot be used")

// Options configure an engine. The zero value searches for the library and uses the
// best provider and all processors.
type Options struct {
	// Library is the path of ONNX Runtime's shared library or of its folder; empty
	// means the search of FindLibrary.
	Library string
	// Provider is the execution provider; empty means Auto.
	Provider Provider
	// Threads is the largest number of threads of one computation; 0 means
	// GOMAXPROCS.
	Threads int
}

// Engine is the loaded ONNX Runtime with a provider and a number of threads.
type Engine struct {
	provider Provider
	reason   string
	threads  int
	library  string
	version  string
}

// opened holds the last engine: ONNX Runtime's environment is global to the process.
var opened struct {
	sync.Mutex
	engine *Engine
}

// Open loads ONNX Runtime. A process loads one library only: later calls ignore
// Options.Library and return an engine with the given provider and threads. The errors
// are ErrNoLibrary, ErrLibrary and ErrProvider, wrapped.
func Open(o Options) (*Engine, error) {
	opened.Lock()
	defer opened.Unlock()
	library := ""
	if opened.engine == nil {
		var err error
		if library, err = FindLibrary(o.Library); err != nil {
			return nil, err
		}
		keepLessMemory()
		onnxruntime.SetSharedLibraryPath(library)
		if err := onnxruntime.InitializeEnvironment(onnxruntime.WithLogLevelError()); err != nil {
			return nil, fmt.Errorf("%w: %s: %s; `make runtime` installs version %s",
				ErrLibrary, library, oneLine(err), LibraryVersion())
		}
		if err := shareArena(); err != nil {
			return nil, fmt.Errorf("%w: %s: %s", ErrLibrary, library, oneLine(err))
		}
	} else {
		library = opened.engine.library
	}
	if o.Provider == "" {
		o.Provider = Auto
	}
	provider, reason, err := choose(o.Provider, library)
	if err != nil {
		return nil, err
	}
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	e := &Engine{provider, reason, o.Threads, library, onnxruntime.GetVersion()}
	opened.engine = e
	return e, nil
}

// shareArena registers the allocator that sessions with SharedArena use for working
// memory. An allocator keeps the memory of its peak: ten models of 256×256 pixels with
// four concurrent runs kept 500 MB in their own allocators, and 160 MB in a shared one.
func shareArena() error {
	info, err := onnxruntime.GetMemoryInfo()
	if err != nil {
		return err
	}
	const (
		noLimit     = 0
		asRequested = 1 // grow by the requested size, not to the next power of two
		ortDefault  = -1
	)
	config, err := onnxruntime.NewArenaCfg(noLimit, asRequested, ortDefault, ortDefault)
	if err != nil {
		return err
	}
	defer config.Destroy()
	return onnxruntime.CreateAndRegisterAllocator(info, config)
}

// Provider returns the execution provider and the reason for it, in one line.
func (e *Engine) Provider() (Provider, string) { return e.provider, e.reason }

// Threads returns the largest number of threads of one computation.
func (e *Engine) Threads() int { return e.threads }

// Library returns the path and the version of the loaded library.
func (e *Engine) Library() (path, version string) { return e.library, e.version }

// oneLine returns the first line of an error of ONNX Runtime. Source positions can
// follow it.
func oneLine(err error) string {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}
