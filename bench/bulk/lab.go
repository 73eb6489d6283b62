package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/deepmed/anomaly/bench/internal/processes"
)

const (
	// judges is the processor of detect, the service alone and the first worker.
	judges = 0
	// rest is the processor of everything else.
	rest = 1
	// model is the name of the model in the services.
	model = "textures"
)

// lab has the programs and the processes of a benchmark.
type lab struct {
	dir, anomaly, nats string
	modelFile          string
	startTime          time.Duration // of detect for one image
	startCPU           time.Duration
	servers            *processes.NATS
	service            *processes.Process // of the cluster
	single             *processes.Process // the service alone
}

func newLab(dir string) (*lab, error) {
	l := &lab{dir: dir, anomaly: filepath.Join(dir, "anomaly"), modelFile: filepath.Join(dir, "model.zip")}
	if err := processes.Build(context.Background(), l.anomaly, "./cmd/anomaly"); err != nil {
		return nil, err
	}
	var err error
	l.nats, err = processes.BuildNATS(context.Background(), dir)
	return l, err
}

// pinned returns a command that runs on one processor.
func pinned(processor int, args ...string) *exec.Cmd {
	return processes.Command(processes.Pinned(processor, args...)...)
}

// output runs a command and returns what it prints. The exit status 1 of detect, for
// anomalous images, is no error.
func output(c *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}

// launch starts a command of the program on one processor, and waits until it is ready.
func (l *lab) launch(processor int, name string, args ...string) (*processes.Process, error) {
	return processes.StartHTTP(context.Background(), l.dir, name, processes.Pinned(processor, append([]string{l.anomaly}, args...)...)...)
}

// start trains the model and starts the services.
func (l *lab) start(folder string) error {
	training := filepath.Join(l.dir, "training")
	if err := writeImages(training, 10_000_000, 64); err != nil {
		return err
	}
	if _, err := output(exec.Command(l.anomaly, "train", training, "--level", "1", "--image-size", strconv.Itoa(side), "--out", l.modelFile, "--quiet")); err != nil {
		return err
	}
	first, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		return err
	}
	// Twice: the first run reads the program from disk.
	for range 2 {
		began, c := time.Now(), l.detectCommand(first[0])
		if _, err := output(c); err != nil {
			return err
		}
		l.startTime, l.startCPU = time.Since(began), c.ProcessState.UserTime()+c.ProcessState.SystemTime()
	}
	if l.single, err = l.launch(judges, "single", "serve", "--threads", "1", "--data", filepath.Join(l.dir, "data")); err != nil {
		return err
	}
	if l.servers, err = processes.StartNATS(context.Background(), l.nats, l.dir, 3, rest); err != nil {
		return err
	}
	if l.service, err = l.launch(rest, "service", "serve", "--nats", l.servers.URL(), "--replicas", "3"); err != nil {
		return err
	}
	for _, p := range []*processes.Process{l.single, l.service} {
		if _, err := output(exec.Command(l.anomaly, "models", "put", model, l.modelFile, "--server", p.URL)); err != nil {
			return err
		}
	}
	return nil
}

func (l *lab) close() {
	l.single.Stop()
	l.service.Stop()
	l.servers.Stop()
}

func (l *lab) detectCommand(path string) *exec.Cmd {
	return pinned(judges, l.anomaly, "detect", "--model", l.modelFile, "--threads", "1", "--json", path)
}

// detect measures `anomaly detect`.
func (l *lab) detect(folder string, images int) (measurement, error) {
	began, c := time.Now(), l.detectCommand(folder)
	_, err := output(c)
	return measurement{images: images, wall: time.Since(began) - l.startTime, judging: c.ProcessState.UserTime() + c.ProcessState.SystemTime() - l.startCPU}, err
}

// alone measures a service alone.
func (l *lab) alone(folder string, images int) (measurement, error) {
	return l.job(l.single, []*processes.Process{l.single}, nil, folder, images)
}

// cluster measures a cluster with some workers.
func (l *lab) cluster(workers int, folder string, images int) (m measurement, err error) {
	var list []*processes.Process
	defer func() {
		for _, p := range list {
			p.Stop()
		}
	}()
	for i := range workers {
		p, err := l.launch(i%2, fmt.Sprintf("worker-%d", i), "worker", "--nats", l.servers.URL(), "--replicas", "3", "--threads", "1")
		if err != nil {
			return m, err
		}
		list = append(list, p)
	}
	return l.job(l.service, list, append([]*processes.Process{l.service}, l.servers.Servers...), folder, images)
}

// job measures a job, after a small one by which the workers load the model.
func (l *lab) job(service *processes.Process, judging, others []*processes.Process, folder string, images int) (m measurement, err error) {
	if _, _, err := l.judge(service, filepath.Join(l.dir, "training"), 64); err != nil {
		return m, err
	}
	total := func(list []*processes.Process) (d time.Duration) {
		for _, p := range list {
			d += p.CPU()
		}
		return d
	}
	j, o := total(judging), total(others)
	m.images = images
	if m.wall, m.accepted, err = l.judge(service, folder, images); err != nil {
		return m, err
	}
	m.judging, m.others = total(judging)-j, total(others)-o
	return m, nil
}

// judge submits a folder and waits for the end of the job. It returns the duration of the
// job and the duration of the submission.
func (l *lab) judge(service *processes.Process, folder string, images int) (took, accepted time.Duration, err error) {
	began := time.Now()
	out, err := output(pinned(rest, l.anomaly, "jobs", "submit", "--kind", "detect", "--model", model, folder, "--server", service.URL))
	if err != nil {
		return 0, 0, err
	}
	accepted = time.Since(began)
	path := service.URL + "/jobs/" + strings.TrimSpace(out)
	var j struct {
		State              string
		Error              *string
		StartedAt, EndedAt time.Time
		Progress           struct{ Images struct{ Judged int } }
	}
	for j.State != "succeeded" {
		time.Sleep(100 * time.Millisecond)
		var raw map[string]json.RawMessage
		if err := getJSON(path, &raw); err != nil {
			return 0, 0, err
		}
		_ = json.Unmarshal(raw["state"], &j.State)
		_ = json.Unmarshal(raw["error"], &j.Error)
		_ = json.Unmarshal(raw["started_at"], &j.StartedAt)
		_ = json.Unmarshal(raw["ended_at"], &j.EndedAt)
		_ = json.Unmarshal(raw["progress"], &j.Progress)
		if j.State == "failed" || j.State == "cancelled" {
			return 0, 0, fmt.Errorf("the job is %s: %v", j.State, *j.Error)
		}
	}
	if j.Progress.Images.Judged != images {
		return 0, 0, fmt.Errorf("%d images were judged of %d", j.Progress.Images.Judged, images)
	}
	r, err := http.NewRequest(http.MethodDelete, path, nil)
	if err != nil {
		return 0, 0, err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, 0, err
	}
	res.Body.Close()
	return j.EndedAt.Sub(j.StartedAt), accepted, nil
}

func getJSON(url string, v any) error {
	res, err := http.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(v)
}
