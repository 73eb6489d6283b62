package processes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// NATS is servers with JetStream and routes between them.
type NATS struct {
	Servers []*Process
}

// BuildNATS compiles the server of the module that this one requires, and returns its path.
func BuildNATS(ctx context.Context, dir string) (string, error) {
	program := filepath.Join(dir, "nats-server")
	return program, Build(ctx, program, "github.com/nats-io/nats-server/v2")
}

// StartNATS starts n servers that write to the disk before they answer, and waits until a
// stream with n replicas can be created. Server i runs on processors[i%len(processors)], or on
// any if there are none.
func StartNATS(ctx context.Context, program, dir string, n int, processors ...int) (_ *NATS, err error) {
	c := &NATS{}
	defer func() {
		if err != nil {
			c.Stop()
		}
	}()
	clients, routes := make([]string, n), make([]string, n)
	for i := range n {
		for _, to := range []*string{&clients[i], &routes[i]} {
			if *to, err = FreeAddress(); err != nil {
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
		args := []string{program, "-c", path}
		if len(processors) > 0 {
			args = Pinned(processors[i%len(processors)], args...)
		}
		p, err := Start(dir, name, args...)
		if err != nil {
			return nil, err
		}
		p.URL = "nats://" + clients[i]
		c.Servers = append(c.Servers, p)
	}
	return c, c.await(ctx)
}

// await waits until the cluster stores with all its replicas.
func (c *NATS) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	conn, err := nats.Connect(c.URL(), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
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
		_, err = js.CreateStream(try, jetstream.StreamConfig{Name: "await", Subjects: []string{"await"}, Replicas: len(c.Servers)})
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
			return c.Servers[0].failed(fmt.Errorf("JetStream is not ready: %w", err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// URL returns the URLs of all servers, separated by commas.
func (c *NATS) URL() string {
	var list []string
	for _, p := range c.Servers {
		list = append(list, p.URL)
	}
	return strings.Join(list, ",")
}

// CPU returns the CPU time of all servers so far.
func (c *NATS) CPU() (sum time.Duration) {
	for _, p := range c.Servers {
		sum += p.CPU()
	}
	return sum
}

// Stop stops all servers. It does nothing for nil.
func (c *NATS) Stop() {
	if c == nil {
		return
	}
	for _, p := range c.Servers {
		p.Stop()
	}
}
