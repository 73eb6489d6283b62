package ort

import (
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
	return addCUDA(options)
}

func addCUDA(options *onnxruntime.SessionOptions) error {
	cuda, err := onnxruntime.NewCUDAProviderOptions()
	if err != nil {
		return err
	}
	defer cuda.Destroy()
	return options.AppendExecutionProviderCUDA(cuda)
}
