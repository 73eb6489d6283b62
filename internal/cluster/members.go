package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// bucket is the name of the key-value bucket with a key for each node.
	bucket = "nodes"
	// TTL is how long a node is alive after its last sign of life.
	TTL = 12 * time.Second
	// beat is the time between two signs of life.
	beat = 3 * time.Second
)

// Roles of nodes.
const (
	RoleServe  = "serve"
	RoleWorker = "worker"
)

// Node describes a process of the cluster.
type Node struct {
	// ID is random for each process.
	ID   string `json:"id"`
	Role string `json:"role"`
	// Models are the models that the node has in memory.
	Models int `json:"models"`
	// Load is the number of images and jobs that the node works at.
	Load int `json:"load"`
	// Seconds is how long the process has been a member.
	Seconds int64 `json:"seconds"`
}

// Members are the nodes that are alive. A node that ends without leaving is alive for up to
// TTL. It may be used concurrently and must be closed.
type Members struct {
	b     *broker.Broker
	kv    jetstream.KeyValue
	own   func() Node
	log   *slog.Logger
	ttl   time.Duration
	beat  time.Duration
	began time.Time
	stop  context.CancelFunc
	tasks sync.WaitGroup
	ended sync.Once
	ready chan struct{} // closed when all nodes are known

	mu    sync.Mutex
	nodes map[string]member
	// avoiding has the nodes that did not answer, with the time.
	avoiding map[string]time.Time
}

type member struct {
	node Node
	seen time.Time
}

// Join makes this process a member. describe returns its description without the ID, at each
// sign of life.
func Join(ctx context.Context, b *broker.Broker, describe func() Node, log *slog.Logger) (*Members, error) {
	return join(ctx, b, describe, log, TTL, beat)
}

func join(ctx context.Context, b *broker.Broker, describe func() Node, log *slog.Logger, ttl, beat time.Duration) (*Members, error) {
	kv, err := b.KeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucket, TTL: ttl})
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	m := &Members{b: b, kv: kv, own: describe, log: log, ttl: ttl, beat: beat, began: time.Now(), ready: make(chan struct{}), nodes: map[string]member{}, avoiding: map[string]time.Time{}}
	running, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.tasks.Go(func() {
		b.Watch(running, bucket, m.changed, sync.OnceFunc(func() { close(m.ready) }))
	})
	m.tasks.Go(func() { m.live(running) })
	return m, nil
}

// Close leaves the cluster.
func (m *Members) Close() {
	m.ended.Do(func() {
		m.stop()
		m.tasks.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), m.beat)
		defer cancel()
		if err := m.kv.Delete(ctx, m.b.Node()); err != nil {
			m.log.Debug("cannot leave the list of nodes", slog.Any("error", err)) // it expires
		}
	})
}

// self returns the description of this node.
func (m *Members) self() Node {
	n := m.own()
	n.ID, n.Seconds = m.b.Node(), int64(time.Since(m.began).Seconds())
	return n
}

// live sends signs of life until ctx ends.
func (m *Members) live(ctx context.Context) {
	tick := time.NewTicker(m.beat)
	defer tick.Stop()
	failed := false
	for {
		err := m.sign(ctx)
		if err != nil && !failed && ctx.Err() == nil {
			m.log.Warn("cannot send a sign of life", slog.Any("error", err))
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// sign sends a sign of life.
func (m *Members) sign(ctx context.Context) error {
	data, err := json.Marshal(m.self())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.beat)
	defer cancel()
	_, err = m.kv.Put(ctx, m.b.Node(), data)
	return err
}

func (m *Members) changed(c broker.Change) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.Removed {
		delete(m.nodes, c.Key)
		return
	}
	var n Node
	if err := json.Unmarshal(c.Value, &n); err != nil || n.ID != c.Key {
		return // not by this program
	}
	m.nodes[c.Key] = member{n, time.Now()}
}

// Self returns the ID of this node.
func (m *Members) Self() string { return m.b.Node() }

// Ready reports whether the nodes that were alive at the start are known.
func (m *Members) Ready() bool {
	select {
	case <-m.ready:
		return true
	default:
		return false
	}
}

// Alive returns the nodes that are alive, sorted by ID, always with this one.
func (m *Members) Alive() []Node {
	m.mu.Lock()
	list := []Node{}
	for id, n := range m.nodes {
		switch {
		case time.Since(n.seen) > m.ttl:
			delete(m.nodes, id)
			delete(m.avoiding, id)
		case id != m.b.Node():
			list = append(list, n.node)
		}
	}
	m.mu.Unlock()
	list = append(list, m.self())
	slices.SortFunc(list, func(a, b Node) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Owners returns the IDs of the n nodes of a role that own a key, as the function Owners does.
func (m *Members) Owners(key, role string, n int) []string {
	var ids []string
	for _, node := range m.Alive() {
		if node.Role == role {
			ids = append(ids, node.ID)
		}
	}
	return Owners(key, ids, n)
}
