package inference

import (
	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/ort"
)

// Engine is the ONNX Runtime library, loaded into the process.
type Engine = ort.Engine

// Provider is an execution provider of ONNX Runtime.
type Provider = ort.Provider

// The execution providers. Auto selects CUDA if the library supports it and a
// device works, else the CPU.
const (
	Auto = ort.Auto
	CPU  = ort.CPU
	CUDA = ort.CUDA
)

// Errors of OpenEngine.
var (
	// ErrNoLibrary is returned when ONNX Runtime's library is not found.
	ErrNoLibrary = ort.ErrNoLibrary
	// ErrLibrary is returned when the library cannot be loaded or is too old.
	ErrLibrary = ort.ErrLibrary
	// ErrProvider is returned when the execution provider is unknown or does not
	// work on this machine.
	ErrProvider = ort.ErrProvider
)

// EngineOptions configure an engine. The zero value searches for the library and
// uses the best provider and all processors.
type EngineOptions struct {
	// Library is the path of ONNX Runtime's shared library or of its folder. If it
	// is empty, OpenEngine tries the environment variable ANOMALY_ONNXRUNTIME, the
	// project's folder in the user's cache, the executable's folder with the lib
	// folder next to it, and the system's library folders, in this order.
	Library string
	// Provider is the execution provider; empty means Auto.
	Provider Provider
	// Threads is the largest number of threads of one computation; 0 means
	// GOMAXPROCS.
	Threads int
}

// OpenEngine loads ONNX Runtime. A process loads one library only: later calls
// ignore Library and return an engine with the given provider and threads. An
// engine needs no closing. The errors are ErrNoLibrary, ErrLibrary and
// ErrProvider, wrapped.
func OpenEngine(o EngineOptions) (*Engine, error) {
	return ort.Open(ort.Options(o))
}

// Operators returns the operators that a graph for this engine may use: the
// processor's own on a CPU, else the portable ones.
func Operators(engine *Engine) exporter.Operators {
	if provider, _ := engine.Provider(); provider == ort.CPU {
		return exporter.Processor
	}
	return exporter.Portable
}
