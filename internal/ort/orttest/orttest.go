// Package orttest opens the engine in tests and checks ONNX Runtime's library. Only tests
// may import it.
package orttest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/testkit"
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

// Pin is a row of library.tsv: a file in a package of a registry.
type Pin struct {
	OS, Arch string // as GOOS and GOARCH
	Client   string // npm or pip
	Package  string
	Version  string
	File     string // path in the package
	Name     string // file name after the installation
	SHA256   string
}

// Shared reports whether the file is ONNX Runtime's library and not a provider's.
func (p Pin) Shared() bool { return !strings.Contains(p.Name, "_providers_") }

// Pins returns the rows of library.tsv.
func Pins(t testing.TB) []Pin {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(testkit.Root(t), "internal", "ort", "library.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []Pin
	for line := range strings.Lines(string(data)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if strings.HasPrefix(line, "#") || f[0] == "os" {
			continue
		}
		if len(f) != 8 {
			t.Fatalf("library.tsv: %q has %d columns, want 8", line, len(f))
		}
		rows = append(rows, Pin{OS: f[0], Arch: f[1], Client: f[2], Package: f[3], Version: f[4], File: f[5], Name: f[6], SHA256: f[7]})
	}
	if len(rows) == 0 {
		t.Fatal("library.tsv has no rows")
	}
	return rows
}

// VerifyLibrary returns an error unless the file at path is, byte for byte, a library
// that is pinned for this platform.
func VerifyLibrary(t testing.TB, path string) error {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	for _, p := range Pins(t) {
		if p.OS == runtime.GOOS && p.Arch == runtime.GOARCH && p.Shared() && p.SHA256 == hex.EncodeToString(sum[:]) {
			return nil
		}
	}
	return fmt.Errorf("%s has the SHA-256 %x, which is not pinned for %s/%s", path, sum, runtime.GOOS, runtime.GOARCH)
}
