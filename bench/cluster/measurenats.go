package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/deepmed/anomaly/bench/internal/processes"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// chunkBytes is the size of the messages of an object, as the service stores it.
	chunkBytes = 512 << 10
	// messageBytes is the size of a message with an image.
	messageBytes = 100 << 10
)

// natsBench is two connections to a cluster, at different servers.
type natsBench struct {
	cluster *processes.NATS
	a, b    *nats.Conn
	js      jetstream.JetStream
	stream  jetstream.Stream
	cores   float64
}

// timed is the cost of an operation.
type timed struct {
	p50, p99, seconds float64 // of all operations together for seconds
	work              float64 // of each server, per operation
	client            float64 // of this process, per operation
}

// repeat measures an operation n times.
func (n *natsBench) repeat(times int, do func(i int) error) (timed, error) {
	var took []float64
	work, own, began := n.cluster.CPU().Seconds(), ownWork(), time.Now()
	for i := range times {
		asked := time.Now()
		if err := do(i); err != nil {
			return timed{}, err
		}
		took = append(took, time.Since(asked).Seconds())
	}
	all := time.Since(began).Seconds()
	slices.Sort(took)
	return timed{p50: took[len(took)/2], p99: took[min(len(took)*99/100, len(took)-1)], seconds: all,
		work:   (n.cluster.CPU().Seconds() - work) / float64(times*len(n.cluster.Servers)),
		client: (ownWork() - own) / float64(times)}, nil
}

// measureNATS measures a cluster of servers on this machine.
func (b *bench) measureNATS(ctx context.Context, servers, cores int) (*natsCosts, error) {
	cluster, err := processes.StartNATS(ctx, b.nats, b.dir, servers)
	if err != nil {
		return nil, err
	}
	defer cluster.Stop()
	n := &natsBench{cluster: cluster, cores: float64(cores)}
	if n.a, err = nats.Connect(cluster.Servers[0].URL); err != nil {
		return nil, err
	}
	defer n.a.Close()
	if n.b, err = nats.Connect(cluster.Servers[len(cluster.Servers)-1].URL); err != nil {
		return nil, err
	}
	defer n.b.Close()
	if n.js, err = jetstream.New(n.a); err != nil {
		return nil, err
	}
	n.stream, err = n.js.CreateStream(ctx, jetstream.StreamConfig{Name: "bench", Subjects: []string{"bench.>"}, Replicas: servers, Storage: jetstream.FileStorage, AllowDirect: true})
	if err != nil {
		return nil, err
	}
	out := &natsCosts{}
	for _, part := range []func(context.Context, *natsCosts) error{n.publications, n.objects, n.takes, n.requests} {
		if err := part(ctx, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// publications measures small messages: one after the other, and from many publishers.
func (n *natsBench) publications(ctx context.Context, out *natsCosts) error {
	small := make([]byte, 100)
	publish := func(int) error {
		_, err := n.js.Publish(ctx, "bench.small", small)
		return err
	}
	if _, err := n.repeat(50, publish); err != nil {
		return err
	}
	one, err := n.repeat(400, publish)
	if err != nil {
		return err
	}
	const publishers, each = 32, 60
	var group sync.WaitGroup
	errs := make(chan error, publishers)
	began := time.Now()
	for range publishers {
		group.Go(func() {
			for i := range each {
				if err := publish(i); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	group.Wait()
	took := time.Since(began).Seconds()
	select {
	case err := <-errs:
		return err
	default:
	}
	c := &out.Costs
	out.PublishP99, out.PublishRate = one.p99, publishers*each/took
	c.PublishWork, c.PublisherWork = one.work, one.client
	// At the highest rate a message takes the disk or the processors; the second is counted
	// as work.
	c.Sync = max(1/out.PublishRate-(float64(len(n.cluster.Servers))*one.work+one.client)/n.cores, 1e-5)
	out.Published = one.p50
	c.Publish = max(one.p50-one.client-n.together(one.work)-c.Sync, 0)
	return nil
}

// together returns the time of work that all servers do at once, on as many cores as there
// are.
func (n *natsBench) together(work float64) float64 {
	return work * max(float64(len(n.cluster.Servers))/n.cores, 1)
}

// objects measures the chunks of an object of 32 MB, written and read one after the other.
func (n *natsBench) objects(ctx context.Context, out *natsCosts) error {
	const chunks = 64
	chunk := make([]byte, chunkBytes)
	for i := range chunk { // incompressible
		chunk[i] = byte(i * i >> 3)
	}
	first := uint64(0)
	put, err := n.repeat(chunks, func(i int) error {
		a, err := n.js.Publish(ctx, "bench.chunk", chunk)
		if err == nil && i == 0 {
			first = a.Sequence
		}
		return err
	})
	if err != nil {
		return err
	}
	fetch := func(from uint64) func(int) error {
		return func(i int) error {
			m, err := n.stream.GetMsg(ctx, from+uint64(i))
			if err == nil && len(m.Data) == 0 {
				err = fmt.Errorf("message %d is empty", from+uint64(i))
			}
			return err
		}
	}
	small, err := n.repeat(400, fetch(1)) // of the small messages that were published
	if err != nil {
		return err
	}
	get, err := n.repeat(chunks, fetch(first))
	if err != nil {
		return err
	}
	c, servers := &out.Costs, float64(len(n.cluster.Servers))
	mega := float64(chunks*chunkBytes) / 1e6
	out.PutRate, out.GetRate = mega/put.seconds, mega/get.seconds
	c.WriteByteWork = max(put.work-c.PublishWork, 0) / chunkBytes
	// Of the longer time, the servers' work is one part, on as many cores as there are; the
	// rest is the disk's and the network's.
	c.PublisherByteWork = max(put.client-c.PublisherWork, 0) / chunkBytes
	c.WriteByte = max((put.p50-out.Published)/chunkBytes-n.together(c.WriteByteWork)-c.PublisherByteWork, 0)
	c.FetchWork, c.ReaderWork = servers*small.work, small.client
	c.ReadByteWork, c.ReaderByteWork = servers*max(get.work-small.work, 0)/chunkBytes, max(get.client-small.client, 0)/chunkBytes
	c.Fetch = max(small.p50-c.FetchWork-c.ReaderWork, 0)
	c.ReadByte = max((get.p50-small.p50)/chunkBytes-c.ReadByteWork-c.ReaderByteWork, 0)
	return nil
}

// takes measures messages of a work queue that a consumer takes and acknowledges.
func (n *natsBench) takes(ctx context.Context, out *natsCosts) error {
	const messages = 300
	work, err := n.js.CreateStream(ctx, jetstream.StreamConfig{Name: "work", Subjects: []string{"work.>"}, Replicas: len(n.cluster.Servers), Storage: jetstream.FileStorage, Retention: jetstream.WorkQueuePolicy})
	if err != nil {
		return err
	}
	consumer, err := work.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "takes", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		return err
	}
	for range messages {
		if _, err := n.js.Publish(ctx, "work.small", make([]byte, 100)); err != nil {
			return err
		}
	}
	took, err := n.repeat(messages, func(int) error {
		batch, err := consumer.Fetch(1, jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return err
		}
		for m := range batch.Messages() {
			return m.Ack()
		}
		return fmt.Errorf("no message to take: %w", batch.Error())
	})
	// Of it, one server has the work of a read.
	out.Costs.TakeWork = max(took.work-out.Costs.FetchWork/float64(len(n.cluster.Servers)), 0)
	return err
}

// requests measures requests between the two connections.
func (n *natsBench) requests(_ context.Context, out *natsCosts) error {
	answer := make([]byte, 300)
	sub, err := n.b.Subscribe("bench-request", func(m *nats.Msg) { _ = m.Respond(answer) })
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := n.b.Flush(); err != nil {
		return err
	}
	ask := func(body []byte) func(int) error {
		return func(int) error {
			_, err := n.a.Request("bench-request", body, 10*time.Second)
			return err
		}
	}
	small, large := make([]byte, 100), make([]byte, messageBytes)
	if _, err := n.repeat(20, ask(small)); err != nil { // until the routes know the subject
		return err
	}
	few, err := n.repeat(1500, ask(small))
	if err != nil {
		return err
	}
	many, err := n.repeat(600, ask(large))
	if err != nil {
		return err
	}
	c, servers := &out.Costs, float64(len(n.cluster.Servers))
	// A message and its answer pass two servers.
	c.MessageWork = servers * few.work / 2
	c.ByteWork = max(servers*(many.work-few.work)/2, 0) / messageBytes
	c.Message = max(few.p50-2*c.MessageWork, 0)
	c.Byte = max(many.p50-few.p50-servers*(many.work-few.work), 0) / messageBytes
	return nil
}
