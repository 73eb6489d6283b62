package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/deepmed/anomaly/internal/ort"
)

// Numbers of requests and forward passes per round of each row.
const (
	oneClient      = 260
	eightClients   = 240
	forwardPasses  = 100
	memoryRequests = 1000
)

// row is a kind of request and its results.
type row struct {
	name     string
	service  *service
	requests *requestSet
	model    []byte // nil for the peer's
	results  map[int]*results
	// sending is the transfer time of the requests; nil for the peer's.
	sending *sending
	// memory is the service's memory after memoryRequests requests, in MB.
	memory float64
	sent   int
}

// results is the measurements with a number of clients, one per round.
type results struct {
	rate, p50, p99 series
	cpu            series // of the server, in milliseconds per request
	failed         int
	why            error
}

// serve compares POST /detect with the Python recipe's service on the recipe's
// checkpoint, and measures our service on a model of its own and on named models.
func serve(ctx context.Context, o options, python, dir string) error {
	images, err := realImages(o.tiles)
	if err != nil {
		return err
	}
	plain, err := peerCheckpoint(ctx, o, python, dir)
	if err != nil {
		return err
	}
	// The lowest level whose models have defect heads.
	own, err := checkpoint(ctx, o, dir, 2)
	if err != nil {
		return err
	}
	named := filepath.Join(dir, "models")
	if err := os.Mkdir(named, 0o700); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"plain.pt": plain, "own.pt": own} {
		if err := os.WriteFile(filepath.Join(named, name), data, 0o600); err != nil {
			return err
		}
	}
	ours, theirs, err := bothServices(ctx, python)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()
	// A separate server for the other models: they take memory.
	second, err := startService(ctx, "ours", "bin/anomaly", "serve", "--models", named)
	if err != nil {
		return err
	}
	defer second.stop()
	if err := second.await("/readyz"); err != nil {
		return err
	}
	rows, err := newRows(ours, theirs, second, plain, own, images)
	if err != nil {
		return err
	}
	bare, err := bareRows(plain, own, images[0])
	if err != nil {
		return err
	}
	for _, b := range bare {
		defer b.pass.close()
	}
	way, err := startSink()
	if err != nil {
		return err
	}
	defer way.close()
	for range max(o.rounds, 1) {
		for _, b := range bare {
			if err := b.round(ctx); err != nil {
				return err
			}
		}
		for _, r := range rows {
			if r.sending == nil {
				continue
			}
			if err := r.sending.round(ctx, way, forwardPasses); err != nil {
				return err
			}
		}
		for _, r := range rows {
			for _, c := range []struct{ clients, requests int }{{1, oneClient}, {8, eightClients}} {
				r.round(ctx, c.clients, c.requests)
			}
		}
	}
	if err := printServed(rows, bare); err != nil {
		return err
	}
	return coldStarts(ctx, o, python, rows[:2])
}

// peerCheckpoint returns the .pt file that the Python recipe writes.
func peerCheckpoint(ctx context.Context, o options, python, dir string) ([]byte, error) {
	out := filepath.Join(dir, "peer")
	if _, err := output(ctx, python, "bench/peer_train.py", filepath.Join(o.tiles, "train", "good"),
		"--level", "1", "--image-size", strconv.Itoa(trainedSide), "--out", out); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(out, "autoencoder.pt"))
}

// newRows prepares the requests, and checks that both services return the same score
// for the same model.
func newRows(ours, theirs, second *service, plain, own []byte, images [][]byte) ([]*row, error) {
	rows := []*row{
		{name: "ours", service: ours, model: plain},
		{name: "Python recipe", service: theirs},
		{name: "ours, own model", service: second, model: own},
		{name: "ours, by name", service: second, model: plain},
		{name: "ours, own model by name", service: second, model: own},
	}
	for i, r := range rows {
		path, sent := "/detect", r.model
		switch i {
		case 1:
			sent = plain
		case 3:
			path, sent = "/models/plain/detect", nil
		case 4:
			path, sent = "/models/own/detect", nil
		}
		var err error
		if r.requests, err = newRequestSet(path, sent, images); err != nil {
			return nil, err
		}
		if err := r.requests.learn(r.service); err != nil {
			return nil, err
		}
		r.results = map[int]*results{1: {}, 8: {}}
		if r.model != nil {
			r.sending = &sending{row: r}
		}
	}
	for i, want := range rows[1].requests.expected {
		if got := rows[0].requests.expected[i]; math.Abs(got-want) > tolerance*want {
			return nil, fmt.Errorf("image %d: our score is %v, the Python recipe's %v", i, got, want)
		}
	}
	return rows, nil
}

func (r *row) round(ctx context.Context, clients, requests int) {
	used := r.service.processor()
	l := r.service.load(ctx, r.requests, clients, requests)
	s := r.results[clients]
	s.cpu = append(s.cpu, (r.service.processor()-used).Seconds()*1e3/float64(requests))
	s.rate, s.p50, s.p99 = append(s.rate, l.rate), append(s.p50, l.times.at(0.5)), append(s.p99, l.times.at(0.99))
	if s.failed += l.failed; s.why == nil {
		s.why = l.why
	}
	before := r.sent
	if r.sent += requests; before < memoryRequests && r.sent >= memoryRequests {
		r.memory = r.service.resident()
	}
}

// bareRow is a model's forward pass without HTTP: of its export, and of the service.
type bareRow struct {
	name         string
	model        []byte
	threads      int
	pass         *forward
	p50, verdict series
}

func bareRows(plain, own, image []byte) ([]*bareRow, error) {
	engine, err := ort.Open(ort.Options{Provider: ort.CPU})
	if err != nil {
		return nil, err
	}
	var rows []*bareRow
	for _, threads := range []int{engine.Threads(), 1} {
		rows = append(rows, &bareRow{name: "plain", model: plain, threads: threads}, &bareRow{name: "own model", model: own, threads: threads})
	}
	for _, b := range rows {
		if b.pass, err = newForward(engine, b.model, image, b.threads); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func (b *bareRow) round(ctx context.Context) error {
	// Sequentially, not alternately: each would evict the other's weights from the caches.
	export, err := times(forwardPasses, func() error { return b.pass.export(ctx) })
	if err != nil {
		return err
	}
	verdict, err := times(forwardPasses, func() error { return b.pass.verdict(ctx) })
	b.p50, b.verdict = append(b.p50, export.at(0.5)), append(b.verdict, verdict.at(0.5))
	return err
}

// printServed prints the results. The overhead of a request is relative to a forward
// pass on all threads for one client, and on one thread for eight.
func printServed(rows []*row, bare []*bareRow) error {
	t := table("FORWARD PASS, 256 px", "threads", "of the export: p50, ms", "of a verdict", "ratio")
	for _, b := range bare {
		fmt.Fprintf(t, "%s\t%d\t%v\t%v\t%s\n", b.name, b.threads, b.p50, b.verdict, b.verdict.over(b.p50).fine())
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	t = table("TRANSFER, 1 client", "p50, ms")
	for _, r := range rows {
		if r.sending != nil {
			fmt.Fprintf(t, "%s\t%v\n", r.name, r.sending.p50)
		}
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	t = table("POST /detect, 256 px", "clients", "requests/s", "p50, ms", "p99, ms", "CPU, ms", "overhead", "without transfer", "failed", "MB after 1,000")
	for _, clients := range []int{1, 8} {
		for _, r := range rows {
			s := r.results[clients]
			fmt.Fprintf(t, "%s\t%d\t%v\t%v\t%v\t%v\t%s\t%s\t%d\t%.0f\n", r.name, clients, s.rate, s.p50, s.p99, s.cpu,
				r.overhead(clients, bare, false), r.overhead(clients, bare, true), s.failed, r.memory)
		}
		a, b := rows[0].results[clients], rows[1].results[clients]
		fmt.Fprintf(t, "ratio, own model to ours\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t\t\t\t\n", clients, rows[2].results[clients].rate.median()/a.rate.median(),
			rows[2].results[clients].p50.median()/a.p50.median(), rows[2].results[clients].p99.median()/a.p99.median(),
			rows[2].results[clients].cpu.median()/a.cpu.median())
		fmt.Fprintf(t, "ratio, ours to the recipe\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t\t\t\t%.2f\n", clients, a.rate.median()/b.rate.median(),
			a.p50.median()/b.p50.median(), a.p99.median()/b.p99.median(), a.cpu.median()/b.cpu.median(), rows[0].memory/rows[1].memory)
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		for clients, s := range r.results {
			if s.failed > 0 {
				return fmt.Errorf("%s, %d clients: %d requests failed: %w", r.name, clients, s.failed, s.why)
			}
		}
	}
	return nil
}

// overhead returns the fraction of a request's time that is not its forward pass,
// and, if transfer is set, not its transfer either. The latter is defined for one
// client only: with eight, transfers overlap with forward passes. It is the median
// over rounds, because the machine's speed drifts between them.
func (r *row) overhead(clients int, bare []*bareRow, transfer bool) string {
	if r.model == nil || (transfer && clients > 1) {
		return ""
	}
	most := bare[0].threads
	for _, b := range bare {
		if &b.model[0] != &r.model[0] {
			continue
		}
		s := r.results[clients]
		var fractions series
		for i, pass := range b.p50 {
			switch {
			case clients == 1 && b.threads == most && transfer:
				fractions = append(fractions, 100*(1-(pass+r.sending.p50[i])/s.p50[i]))
			case clients == 1 && b.threads == most:
				fractions = append(fractions, 100*(1-pass/s.p50[i]))
			case clients > 1 && b.threads == 1:
				fractions = append(fractions, 100*(1-pass*s.rate[i]/1e3/float64(most)))
			}
		}
		if fractions != nil {
			return fmt.Sprintf("%.0f %% (%.0f–%.0f)", fractions.median(), slices.Min(fractions), slices.Max(fractions))
		}
	}
	return ""
}

// coldStarts measures the time from the start of a server to its first responses.
// The recipe has no /livez; /health is used instead.
func coldStarts(ctx context.Context, o options, python string, rows []*row) error {
	starts := []struct {
		live    string
		command []string
	}{{"/livez", []string{"bin/anomaly", "serve"}}, {"/health", []string{python, "bench/peer_service.py"}}}
	alive, answered := make([]series, len(starts)), make([]series, len(starts))
	for range max(o.rounds, 1) {
		for i, c := range starts {
			began := time.Now()
			s, err := launch(ctx, rows[i].name, c.command[0], c.command[1:]...)
			if err != nil {
				return err
			}
			if err = s.await(c.live); err == nil {
				alive[i] = append(alive[i], time.Since(began).Seconds()*1e3)
				l := s.load(ctx, rows[i].requests, 1, 1)
				err = l.why
				answered[i] = append(answered[i], time.Since(began).Seconds()*1e3)
			}
			s.stop()
			if err != nil {
				return err
			}
		}
	}
	t := table("COLD START", "ms to /livez", "ms to the first verdict")
	for i := range starts {
		fmt.Fprintf(t, "%s\t%v\t%v\n", rows[i].name, alive[i], answered[i])
	}
	fmt.Fprintf(t, "ratio\t%.2f\t%.2f\n\n", alive[0].median()/alive[1].median(), answered[0].median()/answered[1].median())
	return t.Flush()
}
