package main

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// clockVariable is the variable of the environment with the path of a file of 8 bytes: the
// seconds to add to the wall clock.
const clockVariable = "ANOMALY_TEST_CLOCK"

// clockSource is added to package time of a binary whose wall clock a test sets. The
// clock of the machine cannot be set: others use it.
const clockSource = `package time

import (
	"syscall"
	"unsafe"
)

var testOffset = func() *int64 {
	path, ok := syscall.Getenv("` + clockVariable + `")
	if !ok {
		return new(int64)
	}
	f, err := syscall.Open(path, syscall.O_RDONLY, 0)
	if err != nil {
		panic(err)
	}
	b, err := syscall.Mmap(f, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	return (*int64)(unsafe.Pointer(&b[0]))
}()
`

// jumpingBinary returns the path of a binary whose package time reads the wall clock's
// offset from the file in clockVariable.
var jumpingBinary = sync.OnceValues(func() (string, error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(strings.TrimSpace(string(goroot)), "src", "time")
	original, err := os.ReadFile(filepath.Join(folder, "time.go"))
	if err != nil {
		return "", err
	}
	const read = "sec, nsec, mono := runtimeNow()\n"
	if strings.Count(string(original), read) != 1 {
		return "", os.ErrInvalid // another version of Go
	}
	replaced := map[string]string{}
	for name, content := range map[string]string{
		"time.go":        strings.Replace(string(original), read, read+"\tsec += *testOffset\n", 1),
		"test_offset.go": clockSource,
	} {
		path := filepath.Join(sharedDir, "clock_"+name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return "", err
		}
		replaced[filepath.Join(folder, name)] = path
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replaced})
	if err != nil {
		return "", err
	}
	list := filepath.Join(sharedDir, "clock_overlay.json")
	if err := os.WriteFile(list, overlay, 0o644); err != nil {
		return "", err
	}
	path := filepath.Join(sharedDir, "anomaly-with-clock")
	out, err := exec.Command("go", "build", "-overlay", list, "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", &os.PathError{Op: "go build", Path: string(out), Err: err}
	}
	return path, nil
})

// jumpingClock is the wall clock of services that serve starts.
type jumpingClock struct {
	path   string
	binary string
}

// newJumpingClock returns a clock that shows the machine's time.
func newJumpingClock(t *testing.T) *jumpingClock {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("builds Go's package time for Linux")
	}
	binary, err := jumpingBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := &jumpingClock{write(t, t.TempDir(), "offset", make([]byte, 8)), binary}
	return c
}

// set makes the clock differ from the machine's.
func (c *jumpingClock) set(t *testing.T, by time.Duration) {
	t.Helper()
	// In place: the file is mapped into memory.
	f, err := os.OpenFile(c.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(int64(by/time.Second))), 0); err != nil {
		t.Fatal(err)
	}
}

// serve is serve with this clock.
func (c *jumpingClock) serve(t *testing.T, args ...string) *serving {
	t.Helper()
	return serveBy(t, []string{clockVariable + "=" + c.path}, []string{"/bin/sh", "-c", `shift; exec "$0" "$@"`, c.binary}, args...)
}
