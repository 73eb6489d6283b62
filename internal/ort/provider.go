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

// Provider is an execution provider of ONNX Runtime.
type Provider string

// The execution providers.
const (
	// Auto selects CUDA if the library supports it and a device works, else the CPU.
	Auto Provider = "auto"
	CPU  Provider = "cpu"
	CUDA Provider = "cuda"
)

// ErrProvider is returned when an execution provider is unknown or does not work on
// this machine.
var ErrProvider = errors.New("execution provider not available")

// ParseProvider returns the provider of a name; the empty name is Auto. ErrProvider is
// returned, wrapped, for an unknown name.
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

// choose returns the provider to use and the reason for it, in one line.
func choose(want Provider, library string) (Provider, string, error) {
	switch want {
	case CPU:
		return CPU, "cpu was asked for", nil
	case CUDA, Auto:
		if want == Auto {
			// The reason suffices for Auto. For CUDA, ONNX Runtime logs the name of a
			// missing library.
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

// cudaProvider is a file that a CUDA build has in the folder of the library.
const cudaProvider = "libonnxruntime_providers_cuda.so"

// tryCUDA returns an error if CUDA does not work. It checks for the provider's file
// first, because ONNX Runtime would log an error if it is missing.
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

// probeGraph is one convolution, y = Conv(x, w), of shape 1×1×2×2 with a 1×1 kernel of
// value 3. CUDA needs a device, its driver and cuDNN for it.
//
//go:embed probe.onnx
var probeGraph []byte

// probe runs probeGraph: a provider that can be configured does not always work.
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
		return fmt.Errorf("a convolution returned %v instead of 3 everywhere", got)
	}
	return nil
}

// addCUDA adds the CUDA provider to the options.
func addCUDA(options *onnxruntime.SessionOptions) error {
	cuda, err := onnxruntime.NewCUDAProviderOptions()
	if err != nil {
		return err
	}
	defer cuda.Destroy()
	return options.AppendExecutionProviderCUDA(cuda)
}
