package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// judges is the processor of detect, of the service alone, and of the first worker.
	judges = 0
	// rest is that of everything else.
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
	servers            []*process // NATS
	urls               string
	service            *process // of the cluster
	single             *process // the service alone
}

// process is a process that serves HTTP, except for NATS servers.
type process struct {
	cmd *exec.Cmd
	url string
}

func newLab(dir string) (*lab, error) {
	l := &lab{dir: dir, anomaly: filepath.Join(dir, "anomaly"), nats: filepath.Join(dir, "nats-server"), modelFile: filepath.Join(dir, "model.zip")}
	for out, pkg := range map[string]string{l.anomaly: "./cmd/anomaly", l.nats: "github.com/nats-io/nats-server/v2"} {
		if text, err := exec.Command("go", "build", "-trimpath", "-o", out, pkg).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, text)
		}
	}
	return l, nil
}

// pinned returns a command that runs on one processor.
func pinned(processor int, args ...string) *exec.Cmd {
	c := exec.Command("taskset", append([]string{"-c", strconv.Itoa(processor)}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
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

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// launch starts a process whose last flag is its address, and waits until it is ready.
func (l *lab) launch(processor int, args ...string) (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	address := "127.0.0.1:" + strconv.Itoa(port)
	p := &process{cmd: pinned(processor, append(args, "--addr", address)...), url: "http://" + address}
	p.cmd.Stderr = io.Discard
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if res, err := http.Get(p.url + "/readyz"); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return p, nil
			}
		}
	}
	return nil, errors.Join(fmt.Errorf("%s is not ready", strings.Join(args, " ")), p.end())
}

// end stops a process.
func (p *process) end() error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	timer := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	_ = p.cmd.Wait() // NATS ends with another status than 0
	return nil
}

// cpu returns the CPU time of a process so far.
func (p *process) cpu() time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The fields after the name, which is in parentheses: utime and stime are 14 and 15.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	ticks := 0
	for _, i := range []int{14, 15} {
		n, _ := strconv.Atoi(fields[i-3])
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
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
	if l.single, err = l.launch(judges, l.anomaly, "serve", "--threads", "1", "--data", filepath.Join(l.dir, "data")); err != nil {
		return err
	}
	if err := l.startNATS(3); err != nil {
		return err
	}
	if l.service, err = l.launch(rest, l.anomaly, "serve", "--nats", l.urls, "--replicas", "3"); err != nil {
		return err
	}
	for _, p := range []*process{l.single, l.service} {
		if _, err := output(exec.Command(l.anomaly, "models", "put", model, l.modelFile, "--server", p.url)); err != nil {
			return err
		}
	}
	return nil
}

// startNATS starts a cluster of NATS servers.
func (l *lab) startNATS(n int) error {
	var clients, routes []string
	for range 2 * n {
		port, err := freePort()
		if err != nil {
			return err
		}
		if address := "nats://127.0.0.1:" + strconv.Itoa(port); len(clients) < n {
			clients = append(clients, address)
		} else {
			routes = append(routes, address)
		}
	}
	for i := range n {
		config := filepath.Join(l.dir, fmt.Sprintf("nats%d.conf", i))
		text := fmt.Sprintf("server_name: n%d\nlisten: %q\njetstream { store_dir: %q, sync_interval: always }\ncluster { name: bench, listen: %q, routes: [%s] }\n",
			i, strings.TrimPrefix(clients[i], "nats://"), filepath.Join(l.dir, fmt.Sprintf("store%d", i)), strings.TrimPrefix(routes[i], "nats://"), strings.Join(routes, ", "))
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			return err
		}
		p := &process{cmd: pinned(rest, l.nats, "-c", config)}
		if err := p.cmd.Start(); err != nil {
			return err
		}
		l.servers = append(l.servers, p)
	}
	l.urls = strings.Join(clients, ",")
	return nil
}

func (l *lab) close() error {
	var errs []error
	for _, p := range append([]*process{l.single, l.service}, l.servers...) {
		errs = append(errs, p.end())
	}
	return errors.Join(errs...)
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
	return l.job(l.single, []*process{l.single}, nil, folder, images)
}

// cluster measures a cluster with some workers.
func (l *lab) cluster(workers int, folder string, images int) (m measurement, err error) {
	var list []*process
	defer func() {
		for _, p := range list {
			err = errors.Join(err, p.end())
		}
	}()
	for i := range workers {
		p, err := l.launch(i%2, l.anomaly, "worker", "--nats", l.urls, "--replicas", "3", "--threads", "1")
		if err != nil {
			return m, err
		}
		list = append(list, p)
	}
	return l.job(l.service, list, append([]*process{l.service}, l.servers...), folder, images)
}

// job measures a job, after a small one by which the workers load the model.
func (l *lab) job(service *process, judging, others []*process, folder string, images int) (m measurement, err error) {
	if _, _, err := l.judge(service, filepath.Join(l.dir, "training"), 64); err != nil {
		return m, err
	}
	total := func(list []*process) (d time.Duration) {
		for _, p := range list {
			d += p.cpu()
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
// job and that of the submission.
func (l *lab) judge(service *process, folder string, images int) (took, accepted time.Duration, err error) {
	began := time.Now()
	out, err := output(pinned(rest, l.anomaly, "jobs", "submit", "--kind", "detect", "--model", model, folder, "--server", service.url))
	if err != nil {
		return 0, 0, err
	}
	accepted = time.Since(began)
	path := service.url + "/jobs/" + strings.TrimSpace(out)
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
