// Package orttest opens the engine in tests.
package orttest

import (
	"testing"

	"github.com/deepmed/anomaly/internal/ort"
)

// Open opens the engine on the CPU. A test without the library fails: it would
// prove nothing.
func Open(t testing.TB) *ort.Engine { return OpenThreads(t, 2) }

// OpenThreads opens the engine for so many threads.
func OpenThreads(t testing.TB, threads int) *ort.Engine {
	t.Helper()
	e, err := ort.Open(ort.Options{Provider: ort.CPU, Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Tensor is a tensor of that shape which holds the data, and zeros where there is
// none. It is given back when the test ends.
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
