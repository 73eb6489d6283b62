package main

import (
	"bytes"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/testkit"
)

func TestServe_ListensAtTheGivenAddress(t *testing.T) {
	port := testkit.FreePort(t)
	s := serve(t, []string{"PORT=" + port})
	if s.address != "127.0.0.1:"+port {
		t.Errorf("with PORT=%s it listens on %s", port, s.address)
	}
	c := command(t, "health")
	c.Env = append(c.Env, "PORT="+port)
	if r := finish(t, c); r.status != exitNormal || r.stdout != "healthy\n" {
		t.Errorf("health: exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	run(t, "serve", "--addr", s.address).refused(t, "cannot listen", port)

	other := serve(t, []string{"PORT=" + port}, "--addr", "127.0.0.1:0")
	if other.address == s.address {
		t.Error("PORT has precedence over --addr")
	}
	if r := run(t, "health", "--addr", other.address); r.status != exitNormal {
		t.Errorf("health: exit %d: %s", r.status, r.stderr)
	}
	run(t, "health", "--addr", "127.0.0.1:"+testkit.FreePort(t)).refused(t, "refused")
	run(t, "serve", "--addr", "127.0.0.1:0", "--log-format", "poetry").refused(t, "poetry", "text or json")
}

func TestAddress_TakesAMissingPortFromPORT(t *testing.T) {
	for _, c := range []struct{ flag, port, want string }{
		{"", "", "127.0.0.1:5029"},
		{"", "8080", "127.0.0.1:8080"},
		{"0.0.0.0", "", "0.0.0.0:5029"},
		{"0.0.0.0", "8080", "0.0.0.0:8080"},
		{"0.0.0.0:", "8080", "0.0.0.0:8080"},
		{"0.0.0.0:9090", "8080", "0.0.0.0:9090"},
		{"127.0.0.1:0", "8080", "127.0.0.1:0"},
		{":9090", "8080", ":9090"},
		{"localhost", "8080", "localhost:8080"},
		{"::", "8080", "[::]:8080"},
		{"[::1]", "8080", "[::1]:8080"},
		{"[::1]:9090", "8080", "[::1]:9090"},
		{"a:b:c", "8080", "a:b:c"},
	} {
		t.Setenv("PORT", c.port)
		if got := address(c.flag); got != c.want {
			t.Errorf("--addr %q with PORT=%q is %q, expected %q", c.flag, c.port, got, c.want)
		}
	}
}

func TestServe_RejectsAnInvalidDefaultTimeLimit(t *testing.T) {
	run(t, "serve", "--addr", "127.0.0.1:0", "--default-max-seconds", "-1").refused(t, "max_seconds", "-1")
}

func TestServe_ShutsDownWhenIdle(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			s := serve(t, nil, "--addr", "127.0.0.1:0")
			res, err := http.Get("http://" + s.address + "/health") // the connection stays open
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if took := s.stop(t, signal); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestServe_ShutsDownDuringATraining(t *testing.T) {
	const grace = 500 * time.Millisecond
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--grace", grace.String())
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreateFormFile("zipFile", "normal.zip")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write(normals(t, 60)); err != nil {
		t.Fatal(err)
	}
	_ = w.WriteField("level", "5") // bytes.Buffer does not fail
	_ = w.WriteField("image_size", "128")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		status int
		body   []byte
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		res, err := http.Post("http://"+s.address+"/train", w.FormDataContentType(), &body)
		if err != nil {
			answered <- answer{err: err}
			return
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		answered <- answer{res.StatusCode, data, err}
	}()
	eventually(t, "the upload is stored", func() bool {
		list, _ := filepath.Glob(filepath.Join(s.temp, "*", "*"))
		return len(list) > 0
	})
	// Building the graphs of a step cannot be cancelled and takes seconds on a busy
	// machine.
	stepped := regexp.MustCompile(`(?m)^anomaly_training_step [1-9]`)
	eventually(t, "the training takes steps", func() bool {
		res, err := http.Get("http://" + s.address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		metrics, err := io.ReadAll(res.Body)
		return err == nil && stepped.Match(metrics)
	})
	s.stop(t, syscall.SIGTERM)
	a := <-answered
	var told struct{ Error string }
	if a.err != nil || a.status != http.StatusServiceUnavailable || json.Unmarshal(a.body, &told) != nil || told.Error == "" {
		t.Errorf("the response is %v, status %d, %.200q", a.err, a.status, a.body)
	}
}

func TestServe_ServesThePageUnlessItIsTurnedOff(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		kind   string
	}{
		{nil, http.StatusOK, "text/html; charset=utf-8"},
		{[]string{"--no-page"}, http.StatusNotFound, "application/json"},
	} {
		s := serve(t, nil, c.args...)
		res, err := http.Get("http://" + s.address + "/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != c.status || res.Header.Get("Content-Type") != c.kind {
			t.Errorf("serve %q: status %d, %s", c.args, res.StatusCode, res.Header.Get("Content-Type"))
		}
		s.stop(t, syscall.SIGTERM)
	}
}

func TestServe_StoresModelsInTheFolderOfData(t *testing.T) {
	data, models := t.TempDir(), t.TempDir()
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"data alone", filepath.Join(data, "models"), []string{"--data", data}},
		{"data and models", models, []string{"--data", data, "--models", models}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, nil, c.args...)
			req, err := http.NewRequest(http.MethodPut, "http://"+s.address+"/models/small", bytes.NewReader(read(t, smallModel(t))))
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if list, _ := filepath.Glob(filepath.Join(c.want, "small.*")); res.StatusCode != http.StatusCreated || len(list) != 1 {
				t.Errorf("status %d, files %q", res.StatusCode, list)
			}
			s.stop(t, syscall.SIGTERM)
		})
	}
}
