package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/internal/testkit"
)

// trainForm returns the body and the content type of a training on a zip.
func trainForm(t testing.TB, packed []byte, fields map[string]string) (*bytes.Buffer, string) {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for name, value := range fields {
		if err := w.WriteField(name, value); err != nil {
			t.Fatal(err)
		}
	}
	part, err := w.CreateFormFile("zipFile", "normal.zip")
	if err == nil {
		_, err = part.Write(packed)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return &body, w.FormDataContentType()
}

// told is the status and the error of a response.
type told struct {
	status  int
	message string
	err     error
}

// train requests a training in the background.
func (s *serving) train(t testing.TB, packed []byte, fields map[string]string) chan told {
	t.Helper()
	body, kind := trainForm(t, packed, fields)
	answered := make(chan told, 1)
	go func() {
		res, err := http.Post("http://"+s.address+"/train", kind, body)
		if err != nil {
			answered <- told{err: err}
			return
		}
		defer res.Body.Close()
		var answer struct{ Error string }
		data, err := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusOK {
			_ = json.Unmarshal(data, &answer)
		}
		answered <- told{res.StatusCode, answer.Error, err}
	}()
	return answered
}

// half sends the first half of a training's upload and keeps the connection open.
func (s *serving) half(t testing.TB) net.Conn {
	t.Helper()
	body, kind := trainForm(t, bytes.Repeat([]byte("x"), 4<<20), nil)
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST /train HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, body.Len())
	if _, err := c.Write(body.Bytes()[:body.Len()/2]); err != nil {
		t.Fatal(err)
	}
	s.keeps(t, 1)
	return c
}

// keeps waits until the service holds n uploads.
func (s *serving) keeps(t testing.TB, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("the service holds %d uploads", n), func() bool {
		list, _ := filepath.Glob(filepath.Join(s.temp, "*", "*"))
		return len(list) == n
	})
}

// steps waits until the training has taken a step.
func (s *serving) steps(t testing.TB) {
	t.Helper()
	eventually(t, "the training takes steps", func() bool {
		res, err := http.Get("http://" + s.address + "/metrics")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		data, _ := io.ReadAll(res.Body)
		return strings.Contains(string(data), "\nanomaly_training_step ") && !strings.Contains(string(data), "\nanomaly_training_step 0\n")
	})
}

// kill sends SIGKILL, as the kernel does when memory is short.
func (s *serving) kill(t testing.TB) {
	t.Helper()
	s.stopped = true
	http.DefaultClient.CloseIdleConnections()
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.ended
}

func TestServe_ShutsDownDuringAnUpload(t *testing.T) {
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--grace", "300ms")
	c := s.half(t)
	s.stop(t, syscall.SIGTERM)
	answer, err := io.ReadAll(c)
	if !strings.HasPrefix(string(answer), "HTTP/1.1 503 ") || !strings.Contains(string(answer), "shutting down") {
		t.Errorf("the response is %v, %q", err, answer)
	}
}

func TestServe_FinishesATrainingWithinTheGracePeriod(t *testing.T) {
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--grace", "1m")
	answered := s.train(t, normals(t, 40), map[string]string{"level": "1", "image_size": "128"})
	s.steps(t)
	s.stop(t, syscall.SIGTERM)
	if a := <-answered; a.status != http.StatusOK || a.err != nil {
		t.Errorf("the response is %+v", a)
	}
}

func TestServe_RemovesFilesOfAKilledServer(t *testing.T) {
	for name, work := range map[string]func(t *testing.T, s *serving){
		"during an upload": func(t *testing.T, s *serving) { s.half(t) },
		"during a training with images on disk": func(t *testing.T, s *serving) {
			// So few images have no heads, whose training would come before the steps.
			s.train(t, normals(t, 15), map[string]string{"level": "5", "image_size": "256"})
			s.steps(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			killed := serve(t, nil, "--addr", "127.0.0.1:0", "--dataset-memory", "1")
			beside := serve(t, nil, "--addr", "127.0.0.1:0", "--temp-dir", killed.temp)
			work(t, killed)
			before := names(t, killed.temp)
			if len(before) != 2 {
				t.Fatalf("the folder holds %v, expected the folders of two servers", before)
			}
			killed.kill(t)
			// Files and folders that are not a server's are kept, whatever their names.
			foreign := []string{"anomaly-serve-mine", "anomaly-serve-file", "other"}
			for _, f := range foreign {
				if f == "anomaly-serve-file" {
					write(t, killed.temp, f, nil)
					continue
				}
				if err := os.Mkdir(filepath.Join(killed.temp, f), 0o700); err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(killed.temp, f), "letter.txt", []byte("dear"))
			}
			if err := os.Symlink("/etc", filepath.Join(killed.temp, "anomaly-serve-link")); err != nil {
				t.Fatal(err)
			}
			again := serve(t, nil, "--addr", "127.0.0.1:0", "--temp-dir", killed.temp)
			left := names(t, killed.temp)
			if len(left) != 2+4 || !strings.Contains(again.log.String(), "was killed") {
				t.Errorf("the folder holds %v, before %v; log: %s", left, before, again.log)
			}
			for _, f := range append(foreign, "anomaly-serve-link") {
				if !slices.Contains(left, f) {
					t.Errorf("%s is gone", f)
				}
			}
			if _, err := os.Stat("/etc/passwd"); err != nil {
				t.Error(err)
			}
			for _, s := range []*serving{beside, again} {
				if a := <-s.train(t, normals(t, 2), map[string]string{"level": "1", "image_size": "16"}); a.status != 200 {
					t.Errorf("another server responds %+v", a)
				}
				s.stop(t, syscall.SIGTERM)
			}
			if left := names(t, killed.temp); len(left) != 4 {
				t.Errorf("at the end the folder holds %v", left)
			}
			for _, f := range append(foreign, "anomaly-serve-link") {
				os.RemoveAll(filepath.Join(killed.temp, f))
			}
		})
	}
}

func TestServe_ReportsAFullDiskAndRecovers(t *testing.T) {
	small := func(t *testing.T) string {
		dir := t.TempDir()
		if err := syscall.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
			t.Skipf("cannot mount a small disk: %v", err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
		return dir
	}
	noise := make([]byte, 8<<20)
	for name, c := range map[string]struct {
		serve  func(t *testing.T) *serving
		packed []byte
		fields map[string]string
	}{
		"a small disk, during an upload": {
			func(t *testing.T) *serving { return serve(t, nil, "--addr", "127.0.0.1:0", "--temp-dir", small(t)) },
			noise, nil,
		},
		"a small disk, during a training": {
			func(t *testing.T) *serving {
				return serve(t, nil, "--addr", "127.0.0.1:0", "--dataset-memory", "1", "--temp-dir", small(t))
			},
			normals(t, 12), map[string]string{"level": "1", "image_size": "384"},
		},
		"files of bounded size, during an upload": {
			func(t *testing.T) *serving { return serveBounded(t, "--addr", "127.0.0.1:0") },
			noise, nil,
		},
		"files of bounded size, during a training": {
			func(t *testing.T) *serving { return serveBounded(t, "--addr", "127.0.0.1:0", "--dataset-memory", "1") },
			normals(t, 12), map[string]string{"level": "1", "image_size": "512"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.serve(t)
			if a := <-s.train(t, c.packed, c.fields); a.status != 503 || !strings.Contains(a.message, "no disk space left") {
				t.Errorf("the response is %+v: %s", a, s.log)
			}
			s.keeps(t, 0)
			if a := <-s.train(t, normals(t, 1), map[string]string{"level": "1", "image_size": "16"}); a.status != 200 {
				t.Errorf("the response to a small training afterwards is %+v: %s", a, s.log)
			}
			s.stop(t, syscall.SIGTERM)
		})
	}
}

// serveBounded starts a service that may write files of at most 2 MiB.
func serveBounded(t *testing.T, args ...string) *serving {
	t.Helper()
	shell, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	return serveBy(t, nil, []string{shell, "-c", `ulimit -f 2048; exec "$0" "$@"`}, args...)
}

func TestServe_RejectsAFailedStartInOneSentence(t *testing.T) {
	taken := serve(t, nil, "--addr", "127.0.0.1:0")
	temp := t.TempDir()
	token := write(t, t.TempDir(), "token", []byte("short"))
	for name, c := range map[string]struct {
		env   []string
		args  []string
		words []string
	}{
		"the port is taken":             {nil, []string{"--addr", taken.address}, []string{"cannot listen", "address already in use", "--addr or PORT"}},
		"the profiles' port is taken":   {nil, []string{"--addr", "127.0.0.1:0", "--pprof-addr", taken.address}, []string{"--pprof-addr", "address already in use"}},
		"profiles at all addresses":     {nil, []string{"--pprof-addr", "0.0.0.0:0"}, []string{"--pprof-addr", "loopback"}},
		"profiles at a host name":       {nil, []string{"--pprof-addr", "localhost:0"}, []string{"--pprof-addr", "loopback"}},
		"an address of another machine": {nil, []string{"--addr", "192.0.2.1:1"}, []string{"cannot listen"}},
		"no library anywhere":           {[]string{"ANOMALY_CACHE=" + t.TempDir(), "HOME=" + t.TempDir()}, nil, []string{"library was not found", "make runtime"}},
		"a library that is no ELF file": {nil, []string{"--onnxruntime", write(t, t.TempDir(), "libonnxruntime.so", []byte("no ELF"))}, []string{"make runtime"}},
		"no folder for uploads":         {nil, []string{"--temp-dir", "/nowhere"}, []string{"cannot store uploads", "/nowhere"}},
		"a token that is too short":     {nil, []string{"--token-file", token}, []string{"token", "at least 16"}},
		"no token file":                 {nil, []string{"--token-file", "/nowhere"}, []string{"token", "/nowhere"}},
		"a callback host with a scheme": {nil, []string{"--callback-allow", "a.test,https://b.test"}, []string{"https://b.test", "host"}},
		"a callback secret too short":   {nil, []string{"--callback-allow", "a.test", "--callback-secret-file", token}, []string{"secret", "16"}},
		"an origin without a scheme":    {nil, []string{"--cors-origin", "example.org"}, []string{"origin", "https://example.org"}},
		"an unknown log level":          {nil, []string{"--log-level", "loud"}, []string{"--log-level", "debug"}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t, append([]string{"serve", "--temp-dir", temp, "--provider", "cpu"}, c.args...)...)
			if c.env != nil {
				cmd.Env = append(slices.DeleteFunc(cmd.Env, func(v string) bool { return strings.HasPrefix(v, "ANOMALY_ONNXRUNTIME=") }), c.env...)
			}
			r := finish(t, cmd)
			// Log lines may precede the reason.
			lines := strings.SplitAfter(r.stderr, "\n")
			if r.stderr = lines[max(len(lines)-2, 0)]; strings.Contains(r.stderr, "level=") {
				t.Errorf("the last line is a log line: %s", r.stderr)
			}
			r.refused(t, c.words...)
			if left := names(t, temp); len(left) > 0 {
				t.Errorf("left is %v", left)
			}
		})
	}
}

func TestServe_ServesProfilesAtTheirOwnAddressOnly(t *testing.T) {
	address := "127.0.0.1:" + testkit.FreePort(t)
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--pprof-addr", address)
	for url, want := range map[string]int{
		"http://" + address + "/debug/pprof/heap?debug=1": 200,
		"http://" + s.address + "/debug/pprof/":           404,
		"http://" + address + "/health":                   404,
	} {
		res, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d, expected %d", url, res.StatusCode, want)
		}
	}
}
