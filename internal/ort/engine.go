package ort

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// ErrLibrary is returned when a file that should be ONNX Runtime's library
// cannot be loaded, or is too old for this program.
var ErrLibrary = errors.New("ONNX Runtime's library cannot be used")

// Options say how the engine is opened. The zero value finds the library, takes
// the best provider and all processors.
type Options struct {
	// Library is the path of ONNX Runtime's shared library, or of the folder
	// that holds it; empty to search for it as FindLibrary does.
	Library string
	// Provider is where to compute; empty means Auto.
	Provider Provider
	// Threads is how many threads a computation may use at once; 0 means one
	// for each processor.
	Threads int
}

// Engine is ONNX Runtime, loaded. There is one in a process, shared by all.
type Engine struct {
	provider Provider
	reason   string
	threads  int
	library  string
	version  string
}

// opened is the process's engine: ONNX Runtime's environment is global.
var opened struct {
	sync.Mutex
	engine *Engine
}

// Open loads ONNX Runtime. A process loads one library: when it is loaded
// already, the options choose provider and threads anew and Library is ignored.
// It returns ErrNoLibrary when there is none, ErrLibrary when it cannot be
// loaded and ErrProvider when the provider cannot be had.
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
			return nil, fmt.Errorf("%w: %s: %s; `make runtime` brings version %s",
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

// shareArena registers the working memory that sessions share which ask for
// it. Of its own, each session keeps as much as its busiest moment took: ten
// models of 256 px, four runs at once, held 500 MB, and share 160.
func shareArena() error {
	info, err := onnxruntime.GetMemoryInfo()
	if err != nil {
		return err
	}
	const (
		noLimit     = 0
		asRequested = 1 // grow by what is asked for, not to the next power of two
		usual       = -1
	)
	config, err := onnxruntime.NewArenaCfg(noLimit, asRequested, usual, usual)
	if err != nil {
		return err
	}
	defer config.Destroy()
	return onnxruntime.CreateAndRegisterAllocator(info, config)
}

// Provider is the execution provider in use and one line on why.
func (e *Engine) Provider() (Provider, string) { return e.provider, e.reason }

// Threads is how many threads a computation may use at once.
func (e *Engine) Threads() int { return e.threads }

// Library is the path and the version of the library that was loaded.
func (e *Engine) Library() (path, version string) { return e.library, e.version }

// oneLine keeps the first line of an error of ONNX Runtime, whose messages may
// go on with source positions.
func oneLine(err error) string {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}
