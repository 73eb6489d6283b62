package clusterfaults

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/testkit"
)

// process is an anomaly that serves or works. Its connections to NATS go through proxies of its
// own, so that it can be cut off.
type process struct {
	t       testing.TB
	name    string
	binary  string
	args    []string
	address string // host and port of its endpoints
	log     string
	proxies []*brokertest.Proxy

	mu      sync.Mutex
	command *exec.Cmd
	ended   chan struct{}
	started time.Time
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
	p := &process{t: t, name: fmt.Sprintf("%s-%d", role, i), binary: binary, log: filepath.Join(dir, "log"),
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

// start starts the process.
func (p *process) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Error(err)
		return
	}
	defer log.Close()
	p.command = exec.Command(p.binary, p.args...)
	p.command.Stdout, p.command.Stderr = log, log
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.command.Start(); err != nil {
		p.t.Error(err)
		return
	}
	p.started, p.ended = time.Now(), make(chan struct{})
	go func(command *exec.Cmd, ended chan struct{}) {
		_ = command.Wait() // it is killed
		close(ended)
	}(p.command, p.ended)
}

func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.command.Process.Signal(s) // it may have ended
}

// kill kills the process and waits for its end.
func (p *process) kill() { p.end(syscall.SIGKILL) }

func (p *process) end(s syscall.Signal) {
	p.signal(s)
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		p.t.Errorf("%s does not end after signal %s", p.name, s)
		p.signal(syscall.SIGKILL)
		<-ended
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
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		res, err := http.Get("http://" + p.address + "/readyz")
		if err == nil {
			_ = res.Body.Close() // nothing of it is needed
			if res.StatusCode == http.StatusOK {
				return true
			}
		}
	}
	return false
}

// logTail returns the errors in the process's log, and its end.
func (p *process) logTail() string {
	data, err := os.ReadFile(p.log)
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
