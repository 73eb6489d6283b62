package main

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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// process is a program under measurement.
type process struct {
	name string
	url  string // of its HTTP, or of NATS
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when it has ended
}

// start starts a program with its output in a file of dir.
func start(dir, name string, args ...string) (*process, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command(args[0], args[1:]...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	go func() {
		_ = p.cmd.Wait() // stop ends it on purpose
		close(p.done)
	}()
	return p, nil
}

// stop ends a process. It may be called for nil.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	p.log.Close()
}

// failed returns an error with the end of the process's log.
func (p *process) failed(err error) error {
	text, _ := os.ReadFile(p.log.Name())
	return fmt.Errorf("%s: %w\n%s", p.name, err, text[max(0, len(text)-2000):])
}

// work returns the CPU time of a process so far, in seconds.
func (p *process) work() float64 { return workOf(p.cmd.Process.Pid) }

// workOf returns the CPU time of processes so far, in seconds.
func workOf(pids ...int) (sum float64) {
	const tick = 0.01 // USER_HZ, on every Linux
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		// The name may contain spaces. Of the fields after it, user and system time are the
		// twelfth and the thirteenth.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		sum += float64(user+system) * tick
	}
	return sum
}

// freeAddress returns an address of the loopback interface that is free now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// awaitOK polls a URL until it is answered 200.
func (p *process) awaitOK(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		select {
		case <-p.done:
			return p.failed(errors.New("it has ended"))
		case <-ctx.Done():
			return p.failed(fmt.Errorf("%s is not answered: %w", url, ctx.Err()))
		case <-time.After(5 * time.Millisecond):
		}
		if res, err := http.Get(url); err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
}

// startServe starts `anomaly serve` with further arguments, and waits until it is ready.
func startServe(ctx context.Context, program, dir, name string, args ...string) (*process, error) {
	return startHTTP(ctx, []string{program}, dir, name, "serve", args...)
}

// onCore returns the words that start a program on one of the machine's cores.
func onCore(i int, program string) []string {
	return []string{"taskset", "-c", strconv.Itoa(i), program}
}

// startHTTP starts a command of the program, whose words may begin with others that start it.
func startHTTP(ctx context.Context, program []string, dir, name, command string, args ...string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p, err := start(dir, name, slices.Concat(program, []string{command, "--addr", address, "--log-level", "warn"}, args)...)
	if err != nil {
		return nil, err
	}
	p.url = "http://" + address
	if err := p.awaitOK(ctx, p.url+"/readyz"); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// natsCluster is servers with JetStream and routes between them.
type natsCluster struct {
	servers []*process
}

// buildNATS compiles the server of the module that this one requires.
func buildNATS(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "nats-server")
	out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, "github.com/nats-io/nats-server/v2").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cannot build nats-server: %w\n%s", err, out)
	}
	return program, nil
}

// startNATS starts n servers that write to the disk before they answer, and waits until
// a stream with as many replicas can be made.
//
// If cores is not 0, each server runs on one of the first cores of the machine.
func startNATS(ctx context.Context, program, dir string, n, cores int) (c *natsCluster, err error) {
	c = &natsCluster{}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	clients, routes := make([]string, n), make([]string, n)
	for i := range n {
		for _, to := range []*string{&clients[i], &routes[i]} {
			if *to, err = freeAddress(); err != nil {
				return nil, err
			}
		}
	}
	for i := range n {
		name := fmt.Sprintf("nats-%d", i)
		text := fmt.Sprintf(`server_name: %q
listen: %q
max_payload: 8MB
jetstream { store_dir: %q, sync_interval: always }
cluster { name: bench, listen: %q, routes: [%s] }
`, name, clients[i], filepath.Join(dir, name), routes[i], "nats://"+strings.Join(routes, ", nats://"))
		path := filepath.Join(dir, name+".conf")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return nil, err
		}
		words := []string{program}
		if cores > 0 {
			words = onCore(i%cores, program)
		}
		p, err := start(dir, name, append(words, "-c", path)...)
		if err != nil {
			return nil, err
		}
		p.url = "nats://" + clients[i]
		c.servers = append(c.servers, p)
	}
	return c, c.await(ctx)
}

// await waits until the cluster stores with all its replicas.
func (c *natsCluster) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := nats.Connect(c.url(), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	for {
		try, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err = js.CreateStream(try, jetstream.StreamConfig{Name: "await", Subjects: []string{"await"}, Replicas: len(c.servers)})
		if err == nil {
			_, err = js.Publish(try, "await", nil)
		}
		if err == nil {
			err = js.DeleteStream(try, "await")
		}
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return c.servers[0].failed(fmt.Errorf("JetStream is not ready: %w", err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c *natsCluster) url() string {
	var list []string
	for _, p := range c.servers {
		list = append(list, p.url)
	}
	return strings.Join(list, ",")
}

// work returns the CPU time of all servers so far.
func (c *natsCluster) work() (sum float64) {
	for _, p := range c.servers {
		sum += p.work()
	}
	return sum
}

func (c *natsCluster) stop() {
	for _, p := range c.servers {
		p.stop()
	}
}
