package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/ort"
)

// put stores a model and returns the status, or 0 when the connection breaks.
func (s *serving) put(name string, model []byte) int {
	r, err := http.NewRequest(http.MethodPut, "http://"+s.address+"/models/"+name, bytes.NewReader(model))
	if err != nil {
		return 0
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// models returns the states of the service's models by name, when all have been read.
func (s *serving) models(t testing.TB) map[string]string {
	t.Helper()
	for {
		res, err := http.Get("http://" + s.address + "/models")
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Models []struct{ Name, State, Error string }
		}
		err = json.NewDecoder(res.Body).Decode(&list)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		states := map[string]string{}
		for _, m := range list.Models {
			states[m.Name] = m.State
		}
		if !slices.ContainsFunc(list.Models, func(m struct{ Name, State, Error string }) bool { return m.State == "loading" }) {
			return states
		}
	}
}

// A model whose PUT was answered exists after the kill, and every model is whole.
func TestServe_KeepsWholeModelsWhenKilledDuringPut(t *testing.T) {
	const kills = 5
	dir := t.TempDir()
	model := read(t, smallModel(t))
	answered := map[string]bool{}
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--models", dir)
	for round := range kills {
		// One upload that never ends, and complete ones in sequence.
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "PUT /models/endless HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(model))
		if _, err := c.Write(model[:len(model)/2]); err != nil {
			t.Fatal(err)
		}
		answers := make(chan string, 1)
		go func() {
			defer close(answers)
			for i := 0; ; i++ {
				name := fmt.Sprintf("m-%d-%d", round, i)
				if s.put(name, model) != http.StatusCreated {
					return
				}
				answers <- name
			}
		}()
		name, ok := <-answers
		if !ok {
			t.Fatal("nothing was put before the kill")
		}
		answered[name] = true
		collected := make(chan struct{})
		go func() {
			defer close(collected)
			for name := range answers {
				answered[name] = true
			}
		}()
		time.Sleep(time.Duration(37*round) * time.Millisecond) // at different stages of a PUT
		s.kill(t)
		c.Close()
		<-collected
		if round == 0 { // the file of a write that was killed
			write(t, dir, ".put-1234", model[:len(model)/3])
		}
		s = serve(t, nil, "--addr", "127.0.0.1:0", "--models", dir)
		states := s.models(t)
		for name := range answered {
			if states[name] != "ready" {
				t.Errorf("the PUT of %s was answered, but its state is %q", name, states[name])
			}
		}
		for name, state := range states {
			if state != "ready" || name == "endless" {
				t.Errorf("%s is %s", name, state)
			}
		}
		for _, file := range names(t, dir) {
			if strings.HasPrefix(file, ".put-") {
				t.Errorf("%s is left", file)
			}
		}
	}
	// stop checks that no folder of uploads is left, neither this one nor a killed one's.
	s.stop(t, syscall.SIGTERM)
}

// After a kill during changes of a threshold, the model is whole, one version is the current
// one, and each version that is listed can be restored.
func TestServe_KeepsVersionsWhenKilledDuringChanges(t *testing.T) {
	const kills = 4
	dir := t.TempDir()
	flags := []string{"--addr", "127.0.0.1:0", "--models", dir, "--versions", "3"}
	s := serve(t, nil, flags...)
	if status := s.put("m", read(t, smallModel(t))); status != http.StatusCreated {
		t.Fatalf("status %d", status)
	}
	for round := range kills {
		changes := make(chan float64, 1000)
		go func() {
			defer close(changes)
			for i := 1; ; i++ {
				threshold := float64(1000*round + i)
				r, err := http.NewRequest(http.MethodPatch, "http://"+s.address+"/models/m", strings.NewReader(fmt.Sprintf(`{"threshold": %v}`, threshold)))
				if err != nil {
					return
				}
				res, err := http.DefaultClient.Do(r)
				if err != nil {
					return
				}
				res.Body.Close()
				if res.StatusCode == http.StatusOK {
					changes <- threshold
				}
			}
		}()
		last, ok := <-changes
		if !ok {
			t.Fatal("no change before the kill")
		}
		time.Sleep(time.Duration(29*round) * time.Millisecond) // at different stages of a change
		s.kill(t)
		for answered := range changes {
			last = answered
		}
		s = serve(t, nil, flags...)
		if states := s.models(t); states["m"] != "ready" {
			t.Fatalf("%v", states)
		}
		var list struct {
			Versions []struct {
				SHA256    string
				Threshold float64
				Current   bool
			}
		}
		if status := s.getJSON("/models/m/versions", &list); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
		current := 0
		for _, v := range list.Versions {
			if v.Current {
				current++
				// The change during which the process was killed may be done.
				if v.Threshold != last && v.Threshold != last+1 {
					t.Errorf("the threshold is %v, the last answered change was to %v", v.Threshold, last)
				}
			}
			res, err := http.Post("http://"+s.address+"/models/m/versions/"+v.SHA256+"/restore", "", nil)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusOK {
				t.Errorf("restoring %+v: status %d", v, res.StatusCode)
			}
		}
		if current != 1 || len(list.Versions) > 3 {
			t.Errorf("%+v", list)
		}
	}
	s.stop(t, syscall.SIGTERM)
}

func TestServe_ShutsDownDuringAPut(t *testing.T) {
	dir := t.TempDir()
	model := read(t, smallModel(t))
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--models", dir, "--grace", "300ms")
	if status := s.put("whole", model); status != http.StatusCreated {
		t.Fatalf("status %d", status)
	}
	before := names(t, dir)
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PUT /models/half HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(model))
	if _, err := c.Write(model[:len(model)/2]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the request is being received", func() bool {
		res, err := http.Get("http://" + s.address + "/metrics")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return err == nil && strings.Contains(string(text), "\nanomaly_http_requests_in_flight 2\n") // and this one
	})
	s.stop(t, syscall.SIGTERM)
	answer, err := io.ReadAll(c)
	if !strings.HasPrefix(string(answer), "HTTP/1.1 503 ") || !strings.Contains(string(answer), "shutting down") {
		t.Errorf("the response is %v, %q", err, answer)
	}
	if after := names(t, dir); !slices.Equal(after, before) {
		t.Errorf("the folder holds %v, before %v", after, before)
	}
}

func TestServe_UsesTheNumberOfThreadsOfTheFlag(t *testing.T) {
	for _, threads := range []string{"1", "3"} {
		s := serve(t, nil, "--addr", "127.0.0.1:0", "--threads", threads)
		res, err := http.Get("http://" + s.address + "/health")
		if err != nil {
			t.Fatal(err)
		}
		var health struct{ Threads json.Number }
		err = json.NewDecoder(res.Body).Decode(&health)
		res.Body.Close()
		if err != nil || health.Threads.String() != threads {
			t.Errorf("--threads %s: /health has %s, %v", threads, health.Threads, err)
		}
		if !strings.Contains(s.log.String(), `"threads":`+threads) && !strings.Contains(s.log.String(), "threads="+threads) {
			t.Errorf("--threads %s: the log is %s", threads, s.log)
		}
	}
}

// The CUDA provider cannot be loaded on a machine without a driver or with another
// CUDA version. A file that is no library has the same effect.
func TestProvider_FallsBackFromCUDAOnlyUnderAuto(t *testing.T) {
	library, err := ort.FindLibrary("")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(library, filepath.Join(dir, filepath.Base(library))); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "libonnxruntime_providers_cuda.so", []byte("no library"))
	image := tileFiles(t, "test/good", 1)[0]
	r := run(t, "detect", "--model", smallModel(t), "--onnxruntime", dir, "--provider", "cuda", image)
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	if last := lines[len(lines)-1]; r.status != exitError || r.stdout != "" || !strings.Contains(last, "cuda was asked for") || !strings.Contains(last, "--provider cpu") {
		t.Errorf("exit %d, %q, %q", r.status, r.stdout, r.stderr)
	}

	s := serve(t, nil, "--addr", "127.0.0.1:0", "--onnxruntime", dir, "--provider", "auto")
	var health map[string]any
	res, err := http.Get("http://" + s.address + "/health")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&health); err != nil {
		t.Fatal(err)
	}
	reason := fmt.Sprint(health["execution_provider_reason"])
	if health["status"] != "healthy" || health["execution_provider"] != "cpu" || !strings.HasPrefix(reason, "no CUDA: ") || strings.Contains(reason, "\n") {
		t.Errorf("%v", health)
	}
	told := 0
	for line := range strings.Lines(s.log.String()) {
		switch {
		case strings.Contains(line, "no CUDA"):
			told++
		case strings.Contains(line, "onnxruntime:"):
			t.Errorf("ONNX Runtime logs it too: %s", line)
		}
	}
	if told != 1 {
		t.Errorf("it is in the log %d times: %s", told, s.log)
	}
}
