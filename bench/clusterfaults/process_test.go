package clusterfaults

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/bench/internal/processes"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/testkit"
)

// process is an anomaly that serves or works. Its connections to NATS go through proxies of its
// own, so that it can be cut off.
type process struct {
	t       testing.TB
	name    string
	dir     string // of its log
	binary  string
	args    []string
	address string // host and port of its endpoints
	proxies []*brokertest.Proxy

	mu      sync.Mutex
	running *processes.Process // the last one that was started
}

// binary returns the path of the program under test.
func binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("ANOMALY_BINARY")
	if path == "" {
		path = filepath.Join(testkit.Root(t), "bin", "anomaly")
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build`, or set ANOMALY_BINARY", err)
	}
	return path
}

// newProcess starts a process of a cluster. role is serve or worker.
func newProcess(t testing.TB, c *brokertest.Cluster, binary, role string, i int, args ...string) *process {
	t.Helper()
	dir := t.TempDir()
	p := &process{t: t, name: fmt.Sprintf("%s-%d", role, i), binary: binary, dir: dir,
		address: "127.0.0.1:" + strconv.Itoa(brokertest.FreePort(t))}
	var urls []string
	for n := range c.Len() {
		proxy := brokertest.NewProxy(t, c.Address(n))
		p.proxies = append(p.proxies, proxy)
		urls = append(urls, "nats://"+proxy.Address())
	}
	p.args = append([]string{role, "--addr", p.address, "--nats", strings.Join(urls, ","), "--replicas", strconv.Itoa(min(c.Len(), 3)), "--temp-dir", dir, "--threads", "1"}, args...)
	p.start()
	t.Cleanup(p.kill)
	return p
}

// start starts the process, and again after its end.
func (p *process) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	running, err := processes.Start(p.dir, p.name, append([]string{p.binary}, p.args...)...)
	if err != nil {
		p.t.Error(err)
		return
	}
	running.URL = "http://" + p.address
	p.running = running
}

// last returns the process that was started last, nil if none could be.
func (p *process) last() *processes.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running
}

func (p *process) signal(s syscall.Signal) {
	if running := p.last(); running != nil {
		running.Signal(s)
	}
}

// kill kills the process and waits for its end.
func (p *process) kill() { p.end(syscall.SIGKILL) }

func (p *process) end(s syscall.Signal) {
	if running := p.last(); running != nil && !running.End(s, time.Minute) {
		p.t.Errorf("%s does not end after signal %s", p.name, s)
	}
}

// cut cuts the process off from NATS.
func (p *process) cut() {
	for _, proxy := range p.proxies {
		proxy.Cut()
	}
}

func (p *process) mend() {
	for _, proxy := range p.proxies {
		proxy.Mend()
	}
}

// ready waits until the process is ready.
func (p *process) ready(within time.Duration) bool {
	ctx, cancel := context.WithTimeout(p.t.Context(), within)
	defer cancel()
	running := p.last()
	return running != nil && running.AwaitReady(ctx) == nil
}

// logTail returns the errors in the process's log, and its end.
func (p *process) logTail() string {
	running := p.last()
	if running == nil {
		return "it could not be started"
	}
	data, err := os.ReadFile(running.Log())
	if err != nil {
		return err.Error()
	}
	var tail strings.Builder
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, "level=ERROR") && tail.Len() < 16<<10 {
			tail.WriteString(line)
		}
	}
	return tail.String() + "…\n" + string(data[max(0, len(data)-8192):])
}

// usage is what a process uses.
type usage struct {
	at    time.Time
	rss   int64 // bytes
	files int
}

// use returns the resident memory and the open files of a process.
func use(pid int) (u usage, err error) {
	u.at = time.Now()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return u, err
			}
			u.rss = kb << 10
		}
	}
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	u.files = len(list)
	return u, err
}
