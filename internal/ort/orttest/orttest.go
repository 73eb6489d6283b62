// Package orttest opens the engine in tests and checks ONNX Runtime's library. Only tests
// may import it.
package orttest

import (
	"testing"

	"github.com/deepmed/anomaly/internal/ort"
)

// Open returns an engine for the CPU with 2 threads. The test fails if the library is
// missing.
func Open(t testing.TB) *ort.Engine { return OpenThreads(t, 2) }

// OpenThreads returns an engine for the CPU with the given number of threads.
func OpenThreads(t testing.TB, threads int) *ort.Engine {
	t.Helper()
	e, err := ort.Open(ort.Options{Provider: ort.CPU, Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Tensor returns a tensor of that shape with the data, followed by zeros. It is closed
// when the test ends.
func Tensor(t testing.TB, data []float32, shape ...int) *ort.Tensor {
	t.Helper()
	x, err := ort.NewTensor(shape...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	copy(x.Data(), data)
	return x
}
