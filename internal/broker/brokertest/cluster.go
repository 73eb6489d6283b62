package brokertest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/nats-io/nats.go"
)

// Cluster is a cluster of NATS servers, each a process, with JetStream that syncs always.
type Cluster struct {
	t     testing.TB
	nodes []*node
}

type node struct {
	name, url    string
	port, routes int
	config, log  string
	command      *exec.Cmd
	ended        chan struct{}
}

// Start builds the NATS server of the module's own version and starts n of them on 127.0.0.1.
// They end with the test.
func Start(t testing.TB, n int) *Cluster {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "nats-server")
	build := exec.Command("go", "build", "-o", program, "github.com/nats-io/nats-server/v2")
	build.Dir = testkit.Root(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the NATS server: %v: %s", err, out)
	}
	c := &Cluster{t: t}
	var routes []string
	for i := range n {
		nd := &node{name: "nats-" + strconv.Itoa(i), port: FreePort(t), routes: FreePort(t)}
		nd.url = "nats://127.0.0.1:" + strconv.Itoa(nd.port)
		nd.config, nd.log = filepath.Join(dir, nd.name+".conf"), filepath.Join(dir, nd.name+".log")
		routes = append(routes, "nats://127.0.0.1:"+strconv.Itoa(nd.routes))
		c.nodes = append(c.nodes, nd)
	}
	for _, nd := range c.nodes {
		// Clients learn no other addresses, so that a proxy is not passed by.
		config := fmt.Sprintf("server_name: %s\nlisten: 127.0.0.1:%d\njetstream { store_dir: %q, sync_interval: always, max_file_store: 64G, max_memory_store: 64M }\n"+
			"cluster { name: test, listen: 127.0.0.1:%d, no_advertise: true, routes: [%s] }\n",
			nd.name, nd.port, filepath.Join(dir, nd.name), nd.routes, strings.Join(routes, ", "))
		if n == 1 {
			config = config[:strings.Index(config, "cluster {")]
		}
		if err := os.WriteFile(nd.config, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.end)
	for i := range c.nodes {
		c.command(i, program)
		c.Restart(i)
	}
	c.ready()
	return c
}

// FreePort returns a port of 127.0.0.1 that nobody listens on.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func (c *Cluster) command(i int, program string) {
	c.nodes[i].command = exec.Command(program, "-c", c.nodes[i].config)
}

// Restart starts a server that was killed.
func (c *Cluster) Restart(i int) {
	c.t.Helper()
	nd := c.nodes[i]
	log, err := os.OpenFile(nd.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	nd.command = exec.Command(nd.command.Path, nd.command.Args[1:]...)
	nd.command.Stdout, nd.command.Stderr = log, log
	nd.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := nd.command.Start(); err != nil {
		c.t.Fatal(err)
	}
	nd.ended = make(chan struct{})
	go func(command *exec.Cmd, ended chan struct{}) {
		_ = command.Wait() // it is killed
		close(ended)
	}(nd.command, nd.ended)
}

// ready waits until the cluster has a leader and all servers.
func (c *Cluster) ready() {
	c.t.Helper()
	var err error
	for range 300 {
		if err = c.check(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("the NATS servers do not start: %v; the log of the first:\n%s", err, c.Log(0))
}

// check returns an error unless each server answers for JetStream.
func (c *Cluster) check() error {
	for _, nd := range c.nodes {
		conn, err := nats.Connect(nd.url, nats.Timeout(time.Second))
		if err != nil {
			return err
		}
		m, err := conn.Request("$JS.API.INFO", nil, time.Second)
		conn.Close()
		if err != nil {
			return err
		}
		if bytes.Contains(m.Data, []byte(`"error"`)) {
			return fmt.Errorf("%s: %s", nd.name, m.Data)
		}
	}
	return nil
}

// Len returns the number of servers.
func (c *Cluster) Len() int { return len(c.nodes) }

// URL returns the addresses of all servers, separated by commas.
func (c *Cluster) URL() string {
	var urls []string
	for _, nd := range c.nodes {
		urls = append(urls, nd.url)
	}
	return strings.Join(urls, ",")
}

// Address returns host and port of a server.
func (c *Cluster) Address(i int) string { return strings.TrimPrefix(c.nodes[i].url, "nats://") }

// Name returns the name of a server, which JetStream's descriptions of leaders have.
func (c *Cluster) Name(i int) string { return c.nodes[i].name }

// PID returns the id of a server's process.
func (c *Cluster) PID(i int) int { return c.nodes[i].command.Process.Pid }

// Kill kills a server with SIGKILL and waits for its end.
func (c *Cluster) Kill(i int) {
	_ = c.nodes[i].command.Process.Kill() // it may have ended
	<-c.nodes[i].ended
}

// Stop stops a server with SIGSTOP: it keeps its connections and does not answer.
func (c *Cluster) Stop(i int) { c.signal(i, syscall.SIGSTOP) }

// Cont lets a server that Stop stopped go on.
func (c *Cluster) Cont(i int) { c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, s syscall.Signal) {
	c.t.Helper()
	if err := c.nodes[i].command.Process.Signal(s); err != nil {
		c.t.Errorf("%s: %v", c.nodes[i].name, err)
	}
}

// Log returns the end of a server's log.
func (c *Cluster) Log(i int) string {
	data, err := os.ReadFile(c.nodes[i].log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4096):])
}

func (c *Cluster) end() {
	for i, nd := range c.nodes {
		if nd.ended != nil {
			c.Kill(i)
		}
	}
}
