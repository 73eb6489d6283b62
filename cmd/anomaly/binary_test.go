package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const tiles = "../../testdata/tiles"

// sharedDir holds the binary and the model that the tests of this package share.
var sharedDir string

func TestMain(m *testing.M) {
	code := 1
	defer func() { os.Exit(code) }()
	var err error
	if sharedDir, err = os.MkdirTemp("", "anomaly-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer os.RemoveAll(sharedDir)
	code = m.Run()
}

var buildOnce = sync.OnceValues(func() (string, error) {
	path := filepath.Join(sharedDir, "anomaly")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// command returns a command that runs the binary in this folder, without PORT in its
// environment.
func command(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := buildOnce()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, args...)
	c.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PORT=") })
	return c
}

// ran is the exit status and the output of a finished command.
type ran struct {
	status         int
	stdout, stderr string
}

func run(t testing.TB, args ...string) ran {
	t.Helper()
	return finish(t, command(t, args...))
}

func finish(t testing.TB, c *exec.Cmd) ran {
	t.Helper()
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return ran{c.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// refused checks that the command exited with status 2, and printed nothing on standard
// output and one line that contains the words on standard error.
func (r ran) refused(t testing.TB, words ...string) {
	t.Helper()
	line, ok := strings.CutSuffix(r.stderr, "\n")
	if r.status != exitError || r.stdout != "" || !ok || strings.Contains(line, "\n") || !strings.HasPrefix(line, "anomaly: ") {
		t.Errorf("exit %d, stdout %q, stderr %q; expected 2 and one sentence", r.status, r.stdout, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("%q does not contain %q", line, w)
		}
	}
}

var modelOnce = sync.OnceValues(func() (string, error) {
	binary, err := buildOnce()
	if err != nil {
		return "", err
	}
	path := filepath.Join(sharedDir, "model.zip")
	out, err := exec.Command(binary, "train", filepath.Join(tiles, "train/good"), "--level", "1", "--image-size", "32", "--out", path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// smallModel returns the zip of a model of 32×32 pixels, trained once by the binary.
func smallModel(t testing.TB) string {
	t.Helper()
	path, err := modelOnce()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// unpacked returns a new folder with the contents of a zip.
func unpacked(t testing.TB, path string) string {
	t.Helper()
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	dir := t.TempDir()
	if err := os.CopyFS(dir, z); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tileFiles returns the first n tiles of a folder in testdata/tiles.
func tileFiles(t testing.TB, folder string, n int) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(tiles, folder, "*.jpg"))
	if err != nil || len(list) < n {
		t.Fatalf("%d tiles in %s, %v", len(list), folder, err)
	}
	return list[:n]
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// write writes a file into a folder and returns its path.
func write(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// normals returns a zip of n normal tiles.
func normals(t testing.TB, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range tileFiles(t, "train/good", n) {
		w, err := z.Create("normal/" + filepath.Base(f))
		if err == nil {
			_, err = w.Write(read(t, f))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// names returns the names in a folder.
func names(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// serving is a running `anomaly serve`.
type serving struct {
	cmd     *exec.Cmd
	address string
	temp    string // value of --temp-dir
	log     *lockedBuffer
	ended   chan error
	stopped bool
	shared  bool // other servers use temp too
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// serve starts the service with env added to its environment, and waits until it
// listens. At the end of the test the service must still run, or have ended by stop.
func serve(t testing.TB, env []string, args ...string) *serving {
	t.Helper()
	return serveBy(t, env, nil, args...)
}

// serveBy starts the service by another command, whose last arguments are the command
// line of the service.
func serveBy(t testing.TB, env, by []string, args ...string) *serving {
	t.Helper()
	s := &serving{temp: t.TempDir(), log: &lockedBuffer{}, ended: make(chan error, 1)}
	if i := slices.Index(args, "--temp-dir"); i >= 0 {
		s.temp = args[i+1]
		s.shared = len(names(t, s.temp)) > 0
	}
	s.cmd = command(t, append([]string{"serve", "--log-format", "json", "--temp-dir", s.temp, "--provider", "cpu"}, args...)...)
	if by != nil {
		env := s.cmd.Env
		s.cmd = exec.Command(by[0], append(by[1:], s.cmd.Args...)...)
		s.cmd.Env = env
	}
	s.cmd.Env = append(s.cmd.Env, env...)
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(io.TeeReader(stderr, s.log))
		for lines.Scan() {
			var entry struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &entry) == nil && entry.Msg == "listening" {
				listening <- entry.Address
			}
		}
		s.ended <- s.cmd.Wait()
	}()
	t.Cleanup(func() { s.stop(t, syscall.SIGTERM) })
	select {
	case s.address = <-listening:
	case err := <-s.ended:
		s.ended <- err
		t.Fatalf("the service ended: %v: %s", err, s.log)
	case <-time.After(time.Minute):
		t.Fatalf("the service does not listen: %s", s.log)
	}
	return s
}

// stop sends a signal, waits until the service ends, and returns how long that took.
// The exit status must be 0, and no upload may be left. A second call does nothing.
func (s *serving) stop(t testing.TB, signal os.Signal) time.Duration {
	t.Helper()
	if s.stopped {
		return 0
	}
	s.stopped = true
	http.DefaultClient.CloseIdleConnections()
	started := time.Now()
	if err := s.cmd.Process.Signal(signal); err != nil {
		t.Errorf("the service ended by itself: %v: %s", err, s.log)
	}
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("the service ended with %v: %s", err, s.log)
		}
	case <-time.After(time.Minute):
		_ = s.cmd.Process.Kill()
		t.Errorf("the service does not end: %s", s.log)
		<-s.ended
	}
	if left := names(t, s.temp); len(left) > 0 && !s.shared {
		t.Errorf("left over: %v", left)
	}
	return time.Since(started)
}

// eventually waits until holds returns true, for at most three minutes.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}
