package bulk

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	stdimage "image"
	"image/png"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

func TestMain(m *testing.M) {
	ackWait, heartbeat, checkInterval = 2*time.Second, 300*time.Millisecond, time.Second
	os.Exit(m.Run())
}

// detector returns a detector of a small model with random weights.
func detector(t testing.TB) *inference.Detector {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "golden", "checkpoints", "*.pt"))
	if err != nil {
		t.Fatal(err)
	}
	var small *models.Model
	for _, f := range list {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := models.Read(data, models.DefaultLimits()); err == nil && (small == nil || m.ImageSize < small.ImageSize) {
			small = m
		}
	}
	d, err := inference.NewDetector(orttest.OpenThreads(t, 1), small, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// entryOf is a file of a zip.
type entryOf struct {
	name string
	data []byte
}

// someImages returns n images with different names, and their zip. Every 50th cannot be
// read.
func someImages(t testing.TB, n int) ([]entryOf, []byte) {
	t.Helper()
	var tiles [][]byte
	r := rand.New(rand.NewPCG(1, 2))
	for range 7 {
		m := stdimage.NewRGBA(stdimage.Rect(0, 0, 48, 48))
		for i := range m.Pix {
			m.Pix[i] = byte(r.Uint32())
		}
		for i := 3; i < len(m.Pix); i += 4 {
			m.Pix[i] = 255
		}
		var b bytes.Buffer
		if err := png.Encode(&b, m); err != nil {
			t.Fatal(err)
		}
		tiles = append(tiles, b.Bytes())
	}
	var entries []entryOf
	for i := range n {
		e := entryOf{fmt.Sprintf("folder %d/%c%d.png", i%3, 'z'-i%5, i), tiles[i%len(tiles)]}
		if i%50 == 7 {
			e.data = e.data[:len(e.data)/2]
		}
		entries = append(entries, e)
	}
	return entries, zipOf(t, entries...)
}

// zipOf returns a zip of files in their order.
func zipOf(t testing.TB, entries ...entryOf) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		w, err := z.CreateHeader(&zip.FileHeader{Name: e.name, Method: zip.Store})
		if err == nil {
			_, err = w.Write(e.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func list(t testing.TB, zipped []byte) *dataset.ImageList {
	t.Helper()
	l, err := dataset.OpenImages(bytes.NewReader(zipped), int64(len(zipped)), dataset.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// jobStates are the jobs of a test, which all its processes see.
type jobStates struct {
	mu    sync.Mutex
	ended map[string]bool
}

func (j *jobStates) end(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended == nil {
		j.ended = map[string]bool{}
	}
	j.ended[id] = true
}

func (j *jobStates) unfinished(_ context.Context, id string) (bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return !j.ended[id], nil
}

// process is a process of a test: a connection of its own, and a worker once it works.
type process struct {
	*Bulk
	broker *broker.Broker
	pieces atomic.Int64 // that it began to judge
	// before, if not nil, is called before each piece is judged.
	before func(ctx context.Context, job string) error
	stop   func() // gives the pieces in progress back
	done   chan struct{}
}

// start adds a process to the cluster of a server.
func start(t testing.TB, b *broker.Broker, d *inference.Detector, states *jobStates) *process {
	t.Helper()
	s, err := inference.NewScheduler(orttest.OpenThreads(t, 1), inference.BatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{broker: b}
	p.Bulk, err = Open(t.Context(), Options{
		Broker: b, Scheduler: s, Threads: 1, Images: imagefile.DefaultLimits(), Unfinished: states.unfinished,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Detector: func(ctx context.Context, job, sha256 string) (*inference.Detector, func(), error) {
			p.pieces.Add(1)
			if p.before != nil {
				if err := p.before(ctx, job); err != nil {
					return nil, nil, err
				}
			}
			if sha256 != d.Model().SHA256 {
				return nil, nil, ErrModel
			}
			return d, func() {}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// work starts the worker of a process, which ends with the test.
func (p *process) works(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.done = cancel, make(chan struct{})
	go func() {
		defer close(p.done)
		p.Work(ctx, ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-p.done
	})
}

// kill ends the connection of a process, so that nothing of it reaches the servers any
// more.
func (p *process) kill() { p.broker.Conn.Close() }

// cluster returns a server, and a function that adds a process.
func cluster(t testing.TB) func() *broker.Broker {
	t.Helper()
	s := brokertest.InProcess(t)
	return func() *broker.Broker { return brokertest.Open(t, s.URL(), nil) }
}

// jobOf returns a job that judges a zip.
func jobOf(t testing.TB, id string, d *inference.Detector, zipped []byte) Job {
	return Job{ID: id, Images: list(t, zipped), Model: d.Model().SHA256, Line: LineBytes(d.Model().Metadata.Classes())}
}

// linesOf returns what Run has made.
func linesOf(t testing.TB, r *Results) string {
	t.Helper()
	data, err := io.ReadAll(r.Reader(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// wantLines returns the lines that the detector makes of images, one by one.
func wantLines(t testing.TB, d *inference.Detector, meta *models.Metadata, entries []entryOf) string {
	t.Helper()
	var b bytes.Buffer
	known := map[string]Line{} // by content
	for _, e := range entries {
		l, ok := known[string(e.data)]
		if !ok {
			if v, err := d.Detect(t.Context(), e.data, meta, imagefile.DefaultLimits()); err != nil {
				l.Error = err.Error()
			} else {
				l.Verdict = &v
			}
			known[string(e.data)] = l
		}
		l.File = e.name
		b.Write(encodeLine(t, l))
	}
	return b.String()
}

// left returns the messages that are left of all jobs.
func (p *process) left(t testing.TB) (n int) {
	t.Helper()
	for _, s := range []string{workStream, filesStream} {
		stream, err := p.broker.JetStream.Stream(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		n += int(stream.CachedInfo().State.Msgs)
	}
	return n
}
