// Package processes starts the programs that benchmarks and fault tests run: it builds them,
// starts them with a log, finds free addresses, waits until they are ready, measures their CPU
// time and ends them. It also starts clusters of NATS servers.
//
// What a benchmark measures must not be here: loads, models, requests to the service and results
// belong to the benchmark.
package processes

import (
	"bytes"
	"context"
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
	// readyTime is the longest time from the start of a process until it is ready.
	readyTime = time.Minute
	// stopTime is the time between the interrupt of a process and its kill. It is longer than
	// the --grace of a service.
	stopTime = 20 * time.Second
	// tick is the unit of CPU times in /proc: USER_HZ is 100 on every Linux.
	tick = 10 * time.Millisecond
	// tailBytes is the length of the end of a log that an error quotes.
	tailBytes = 2000
)

// Process is a running program. The kernel kills it when this program ends.
type Process struct {
	Name string
	URL  string // of its HTTP endpoints, or of a NATS server
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// Build compiles a Go package of this module, or of one that it requires, into a program.
func Build(ctx context.Context, program, pkg string) error {
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, pkg).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Pinned returns a command line that runs another one on one of the machine's processors.
func Pinned(processor int, args ...string) []string {
	return append([]string{"taskset", "-c", strconv.Itoa(processor)}, args...)
}

// Command returns a command that the kernel kills when this program ends.
func Command(args ...string) *exec.Cmd {
	c := exec.Command(args[0], args[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// FreeAddress returns the host and port of an address of the loopback interface that is free
// now.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Start starts a program. Its output is appended to dir/name.log.
func Start(dir, name string, args ...string) (*Process, error) {
	p := &Process{Name: name, cmd: Command(args...), log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the program has its own copy
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // it is ended on purpose
		close(p.done)
	}()
	return p, nil
}

// StartHTTP starts a program with the flag --addr and a free address after its arguments, and
// waits until it is ready.
func StartHTTP(ctx context.Context, dir, name string, args ...string) (*Process, error) {
	address, err := FreeAddress()
	if err != nil {
		return nil, err
	}
	p, err := Start(dir, name, append(args[:len(args):len(args)], "--addr", address)...)
	if err != nil {
		return nil, err
	}
	p.URL = "http://" + address
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	if err := p.AwaitReady(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// AwaitReady waits until the process answers /readyz with 200. It returns an error with the end
// of the process's log if the process or ctx ends before.
func (p *Process) AwaitReady(ctx context.Context) error {
	for {
		select {
		case <-p.done:
			return p.failed(errors.New("it has ended"))
		case <-ctx.Done():
			return p.failed(fmt.Errorf("it is not ready: %w", ctx.Err()))
		case <-time.After(20 * time.Millisecond):
		}
		if p.isReady(ctx) {
			return nil
		}
	}
}

func (p *Process) isReady(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/readyz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body) // so that the connection is used again
	return res.StatusCode == http.StatusOK
}

// failed returns an error with the end of the process's log.
func (p *Process) failed(err error) error {
	text, _ := os.ReadFile(p.log)
	return fmt.Errorf("%s: %w\n%s", p.Name, err, text[max(0, len(text)-tailBytes):])
}

// PID returns the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns the path of the log.
func (p *Process) Log() string { return p.log }

// Signal sends a signal to the process, which may have ended.
func (p *Process) Signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// End sends a signal to the process and waits for its end. After the limit it kills the process
// and returns false.
func (p *Process) End(s os.Signal, limit time.Duration) bool {
	p.Signal(s)
	select {
	case <-p.done:
		return true
	case <-time.After(limit):
	}
	p.Signal(os.Kill)
	<-p.done
	return false
}

// Stop interrupts the process, waits for its end, and kills it after 20 seconds. It does
// nothing for nil.
func (p *Process) Stop() {
	if p != nil {
		p.End(os.Interrupt, stopTime)
	}
}

// CPU returns the CPU time of the process so far.
func (p *Process) CPU() time.Duration { return CPU(p.PID()) }

// CPU returns the CPU time of processes so far, in steps of 10 ms. A process that has ended
// does not count.
func CPU(pids ...int) (sum time.Duration) {
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The name is in parentheses and may contain spaces. User and system time are the 12th
		// and 13th of the fields after it; see proc_pid_stat(5).
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		sum += time.Duration(user+system) * tick
	}
	return sum
}
