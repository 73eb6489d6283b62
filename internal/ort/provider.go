package ort

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	onnxruntime "github.com/yalue/onnxruntime_go"
)

// Provider is an execution provider: where ONNX Runtime computes.
type Provider string

// The execution providers a user may ask for.
const (
	// Auto takes CUDA where the library has it and a device answers, else the CPU.
	Auto Provider = "auto"
	CPU  Provider = "cpu"
	CUDA Provider = "cuda"
)

// ErrProvider is returned when an execution provider is unknown or was asked
// for and cannot be had.
var ErrProvider = errors.New("execution provider not available")

// ParseProvider reads a provider's name; the empty one is Auto.
func ParseProvider(s string) (Provider, error) {
	p := Provider(s)
	if p == "" {
		p = Auto
	}
	if !slices.Contains([]Provider{Auto, CPU, CUDA}, p) {
		return "", fmt.Errorf("%w: %.40q, choose auto, cpu or cuda", ErrProvider, s)
	}
	return p, nil
}

// choose settles on a provider and says why in one line.
func choose(want Provider, library string) (Provider, string, error) {
	switch want {
	case CPU:
		return CPU, "cpu was asked for", nil
	case CUDA, Auto:
		if want == Auto {
			// The one line of ours is enough where nobody asked for CUDA. For
			// who did, ONNX Runtime's names the library that it misses.
			_ = onnxruntime.SetEnvironmentLogLevel(onnxruntime.LoggingLevelFatal)
			defer func() { _ = onnxruntime.SetEnvironmentLogLevel(onnxruntime.LoggingLevelError) }()
		}
		err := tryCUDA(library)
		if err == nil {
			return CUDA, "the library has CUDA and a device answers", nil
		}
		if want == CUDA {
			return "", "", fmt.Errorf("%w: cuda was asked for, but %w; use a CUDA build of ONNX Runtime's library or --provider cpu",
				ErrProvider, err)
		}
		return CPU, "no CUDA: " + err.Error(), nil
	}
	return "", "", fmt.Errorf("%w: %.40q", ErrProvider, string(want))
}

// cudaProvider is the file that a CUDA build of the library brings beside it.
const cudaProvider = "libonnxruntime_providers_cuda.so"

// tryCUDA first looks for the provider's file: ONNX Runtime would look too, but
// reports its absence to the log as an error.
func tryCUDA(library string) error {
	if _, err := os.Stat(filepath.Join(filepath.Dir(library), cudaProvider)); err != nil {
		return fmt.Errorf("there is no %s beside the library", cudaProvider)
	}
	options, err := onnxruntime.NewSessionOptions()
	if err != nil {
		return err
	}
	defer options.Destroy()
	if err := addCUDA(options); err != nil {
		return errors.New(oneLine(err))
	}
	if err := probe(options); err != nil {
		return errors.New(oneLine(err))
	}
	return nil
}

// probeGraph is one convolution, y = Conv(x, w): 1×1×2×2 of ones by a 1×1 kernel
// of 3. With CUDA it takes a device, its driver, and cuDNN.
//
//go:embed probe.onnx
var probeGraph []byte

// probe computes the probe's graph: a provider that can be named cannot always
// compute.
func probe(options *onnxruntime.SessionOptions) error {
	s, err := onnxruntime.NewDynamicAdvancedSessionWithONNXData(probeGraph, []string{"x"}, []string{"y"}, options)
	if err != nil {
		return err
	}
	defer s.Destroy()
	x, err := onnxruntime.NewTensor(onnxruntime.NewShape(1, 1, 2, 2), []float32{1, 1, 1, 1})
	if err != nil {
		return err
	}
	defer x.Destroy()
	y, err := onnxruntime.NewEmptyTensor[float32](x.GetShape())
	if err != nil {
		return err
	}
	defer y.Destroy()
	if err := s.Run([]onnxruntime.Value{x}, []onnxruntime.Value{y}); err != nil {
		return err
	}
	if got := y.GetData(); slices.ContainsFunc(got, func(v float32) bool { return v != 3 }) {
		return fmt.Errorf("a convolution that is 3 everywhere came out as %v", got)
	}
	return nil
}

func addCUDA(options *onnxruntime.SessionOptions) error {
	cuda, err := onnxruntime.NewCUDAProviderOptions()
	if err != nil {
		return err
	}
	defer cuda.Destroy()
	return options.AppendExecutionProviderCUDA(cuda)
}
