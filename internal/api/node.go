package api

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/cluster"
	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/monitor"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/gofiber/fiber/v2"
)

const (
	// ownersOfModel is the number of nodes that keep a model loaded for the others.
	ownersOfModel = 2
	// maxWarming bounds the models that wait to be loaded because of a new version.
	maxWarming = 256
)

var errNoCluster = &problem{fiber.StatusNotFound, "This service is no node of a cluster: it was started without --nats"}

// node is what a server has as a node of a cluster.
type node struct {
	server   *Server
	members  *cluster.Members
	models   *registry.Shared
	feedback *feedback.Shared
	warming  chan string   // names of models to load
	patience time.Duration // as forwardTime
	tasks    sync.WaitGroup
	stop     context.CancelFunc
	unanswer func() // ends the answers to other nodes
	unserve  func() // ends the answers to requests over NATS
}

// clustered reports whether the models are those of a cluster.
func (s *Server) clustered() bool { return s.options.Broker != nil && !s.options.Broker.Embedded() }

// openCluster joins the cluster and opens its models.
func (s *Server) openCluster() (err error) {
	ctx, stop := context.WithCancel(s.base)
	n := &node{server: s, warming: make(chan string, maxWarming), patience: forwardTime, stop: stop}
	b := s.options.Broker
	defer func() {
		if err != nil {
			n.close()
			err = errors.Join(err, n.closeModels())
		}
	}()
	if n.members, err = cluster.Join(ctx, b, n.describe, s.log); err != nil {
		return err
	}
	n.models, err = registry.OpenShared(ctx, b, s.options.Models, registry.SharedOptions{
		Options: s.registryOptions(), CacheDir: s.options.ModelCacheDir, CacheBytes: s.options.ModelCacheBytes, Changed: n.changed,
	}, s.log)
	if err != nil {
		return err
	}
	if n.feedback, err = feedback.OpenShared(ctx, b, s.feedbackLimits(), n.models.Keys, s.log); err != nil {
		return err
	}
	verdicts, err := monitor.NewShared(ctx, b, n.members, n.models.Keys, s.log)
	if err != nil {
		return err
	}
	s.registry, s.node = n.models, n
	s.named = &namedModels{registry: n.models, feedback: n.feedback, monitors: monitor.NewSet(n.models, verdicts, s.log)}
	return nil
}

// start answers other nodes, and loads the models that this node owns.
func (n *node) start() (err error) {
	ctx, stop := context.WithCancel(n.server.base)
	ended := n.stop
	n.stop = func() { stop(); ended() }
	if n.role() == cluster.RoleServe {
		if n.unanswer, err = n.members.Answer(detectQuestion, n.answer); err != nil {
			return err
		}
	}
	n.tasks.Go(func() { n.warm(ctx) })
	return n.startStream()
}

func (n *node) role() string {
	if n.server.options.ProbesOnly {
		return cluster.RoleWorker
	}
	return cluster.RoleServe
}

// describe returns the description of this node for the others.
func (n *node) describe() cluster.Node {
	d := cluster.Node{Role: n.role(), Load: n.server.detectionSlots.running()}
	if n.server.cache != nil {
		d.Models = n.server.cache.Stats().Models
	}
	return d
}

// close ends the work for other nodes and leaves the cluster. It may be called more than once.
func (n *node) close() {
	if n == nil {
		return
	}
	for _, end := range []*func(){&n.unserve, &n.unanswer} {
		if *end != nil {
			(*end)()
			*end = nil
		}
	}
	n.stop()
	n.tasks.Wait()
	if n.members != nil {
		n.members.Close()
	}
}

// closeModels releases what openCluster opened, after close and the end of all requests.
func (n *node) closeModels() error {
	if n == nil {
		return nil
	}
	if n.feedback != nil {
		n.feedback.Close()
	}
	if n.models != nil {
		return n.models.Close()
	}
	return nil
}

// owns reports whether this node keeps a model loaded for the others.
func (n *node) owns(name string) bool {
	for _, id := range n.members.Owners(name, cluster.RoleServe, ownersOfModel) {
		if id == n.members.Self() {
			return true
		}
	}
	return false
}

// changed is called when a model has another current version. The new one is loaded where the one
// before was.
func (n *node) changed(before, now registry.Entry) {
	if now.State != registry.Ready || before.SHA256 == "" || n.server.cache == nil || !n.server.cache.Has(before.SHA256) {
		return
	}
	select {
	case n.warming <- now.Name:
	default: // it is loaded by the first request
	}
}

// warm loads models until ctx ends: those that this node owns while there is room for them, and
// new versions.
func (n *node) warm(ctx context.Context) {
	n.models.Load(ctx, nil)
	n.server.named.monitors.OpenAll()
	for _, e := range n.models.List() {
		if ctx.Err() == nil && e.State == registry.Ready && n.role() == cluster.RoleServe && n.server.cache.Room() > 0 && n.owns(e.Name) {
			n.load(ctx, e)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case name := <-n.warming:
			if e, err := n.models.Look(ctx, name); err == nil && e.State == registry.Ready {
				n.load(ctx, e)
			}
		}
	}
}

// load loads a model.
func (n *node) load(ctx context.Context, e registry.Entry) {
	_, release, err := n.server.detectorOf(ctx, e)
	if err == nil {
		release()
		n.server.named.monitors.Of(e.Name, e.SHA256)
	} else if ctx.Err() == nil {
		n.server.log.Warn("cannot load a model", slog.String("name", e.Name), slog.Any("error", err))
	}
}

// describeCluster answers GET /cluster.
func (s *Server) describeCluster(c *fiber.Ctx) error {
	if s.node == nil {
		return errNoCluster
	}
	return c.JSON(fiber.Map{"node": s.node.members.Self(), "nodes": s.node.members.Alive()})
}
