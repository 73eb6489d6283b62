package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The load of the soak test. The cache has room for soakLoaded models, so that most
// requests must load theirs.
const (
	soakClients = 32
	soakModels  = 20
	soakLoaded  = 5
	soakImages  = 8
	soakTrained = 12 // training images: the models need not be good
	// soakPause is the service's --upload-pause; some clients pause longer.
	// On a busy machine, others pause for seconds, too.
	soakPause = 10 * time.Second
	// soakSample is the sampling interval.
	soakSample = 2 * time.Second
	// soakVersions is the service's --versions, and soakJobs its --max-jobs.
	soakVersions, soakJobs = 4, 6
	// soakStore bounds the size of a store without jobs, in bytes.
	soakStore = 1 << 20
	// askPause is the pause of a client after the answer of an overloaded service.
	askPause = 100 * time.Millisecond
	// soakRequest is the time limit of a request other than a training.
	soakRequest = 5 * time.Minute
	// soakEnd is the time limit for goroutines and files to disappear after the load.
	soakEnd = time.Minute
)

// TestSoak keeps a service busy for SOAK_TIME with a mix of requests: more models than
// its cache holds, a training in the background, jobs and their events, stored models that
// are changed, and clients that disconnect, stall or send hostile files. Each verdict is
// compared with that of the command line. It runs bin/anomaly; use `make soak`.
func TestSoak(t *testing.T) {
	text := os.Getenv("SOAK_TIME")
	if text == "" {
		t.Skip("SOAK_TIME is not set; `make soak` sets it")
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir("..")
	temp, uploads, data := t.TempDir(), t.TempDir(), t.TempDir()
	images, err := realImages("testdata/tiles")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := zipped(images, 60)
	if err != nil {
		t.Fatal(err)
	}
	few, err := zipped(images, soakTrained)
	if err != nil {
		t.Fatal(err)
	}
	// Every fifth tile: normal and defective ones.
	for i := range soakImages {
		images[i] = images[5*i]
	}
	images = images[:soakImages]
	models, err := soakModelsFor(t.Context(), temp, images)
	if err != nil {
		t.Fatal(err)
	}
	limit, err := soakCache(t.Context(), models[0], images)
	if err != nil {
		t.Fatal(err)
	}
	s, err := startService(t.Context(), "ours", "bin/anomaly", "serve", "--log-level", "error", "--temp-dir", uploads,
		"--data", data, "--models", filepath.Join(temp, "named"), "--max-jobs", strconv.Itoa(soakJobs), "--versions", strconv.Itoa(soakVersions),
		"--model-cache", strconv.FormatInt(limit, 10), "--upload-pause", soakPause.String(), "--max-files", "100", "--max-unpacked", strconv.Itoa(64<<20),
		// More than all clients that train or calibrate, so that none is refused.
		"--waiting-trainings", "64")
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	if err := s.await("/readyz"); err != nil {
		t.Fatal(err)
	}
	load := &soak{service: s, models: models, images: images, packed: packed, few: few, wrong: t.Errorf,
		bad: hostileForms(models[0].file, images[0], filepath.Join(temp, "canary"))}
	// What the service has for jobs is made by the first one.
	if err := load.firstJob(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := load.state(t, uploads)
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var clients sync.WaitGroup
	start := func(f func(context.Context, *rand.Rand)) {
		load.clients++
		r := rand.New(rand.NewPCG(load.clients, 1))
		clients.Go(func() { f(ctx, r) })
	}
	for range soakClients {
		start(load.client)
	}
	start(load.trainer)
	for range 2 {
		start(load.submitter)
	}
	for i := range 3 {
		start(func(ctx context.Context, r *rand.Rand) { load.keep(ctx, r, fmt.Sprintf("kept%d", i)) })
	}
	samples := sampled(ctx, t, s)
	clients.Wait()
	load.report(t)
	load.boundedStores(t, data, filepath.Join(temp, "named"))
	load.returnsTo(t, before, uploads)
	if _, err := os.Stat(filepath.Join(temp, "canary")); err == nil {
		t.Error("a hostile file created the canary")
	}
	flat(t, samples)
}

// soakModel is a model and its expected verdicts.
type soakModel struct {
	name     string
	file     []byte
	verdicts []map[string]any // by image
}

// soakModelsFor trains models of several sizes as .pt, .onnx and ZIP files, also
// stored by name, and computes their verdicts with the command line.
func soakModelsFor(ctx context.Context, dir string, images [][]byte) ([]*soakModel, error) {
	named, asked, trained := filepath.Join(dir, "named"), filepath.Join(dir, "images"), filepath.Join(dir, "trained")
	for _, d := range []string{named, asked, trained} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	for i, image := range images {
		if err := os.WriteFile(filepath.Join(asked, fmt.Sprintf("%d.jpg", i)), image, 0o600); err != nil {
			return nil, err
		}
	}
	tiles, err := filepath.Glob("testdata/tiles/train/good/*.jpg")
	if err != nil || len(tiles) < soakTrained {
		return nil, fmt.Errorf("%d tiles to train on: %w", len(tiles), err)
	}
	for _, tile := range tiles[:soakTrained] {
		data, err := os.ReadFile(tile)
		if err == nil {
			err = os.WriteFile(filepath.Join(trained, filepath.Base(tile)), data, 0o600)
		}
		if err != nil {
			return nil, err
		}
	}
	var models []*soakModel
	for i := range soakModels {
		bundle := filepath.Join(dir, fmt.Sprintf("%d.zip", i))
		if _, err := output(ctx, "bin/anomaly", "train", trained, "--level", "1", "--image-size", []string{"64", "96", "128"}[i%3],
			"--seed", strconv.Itoa(i), "--out", bundle, "--quiet"); err != nil {
			return nil, err
		}
		kind := []string{"pt", "onnx", "zip"}[i%3]
		path := bundle
		if kind != "zip" {
			path = filepath.Join(dir, fmt.Sprintf("%d.%s", i, kind))
			if _, err := output(ctx, "bin/anomaly", "convert", bundle, "--to", path); err != nil {
				return nil, err
			}
		}
		m := &soakModel{name: fmt.Sprintf("m%d", i)}
		var err error
		if m.file, err = os.ReadFile(path); err != nil {
			return nil, err
		}
		out, err := judged(ctx, path, asked)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(out, &m.verdicts); err != nil {
			return nil, err
		}
		if len(m.verdicts) != len(images) {
			return nil, fmt.Errorf("%d verdicts for %d images", len(m.verdicts), len(images))
		}
		for _, v := range m.verdicts {
			delete(v, "file")
		}
		if err := os.WriteFile(filepath.Join(named, m.name+"."+kind), m.file, 0o600); err != nil {
			return nil, err
		}
		models = append(models, m)
	}
	return models, nil
}

// soakCache returns the size of a cache for soakLoaded models in use.
func soakCache(ctx context.Context, m *soakModel, images [][]byte) (int64, error) {
	s, err := startService(ctx, "ours", "bin/anomaly", "serve", "--log-level", "error")
	if err != nil {
		return 0, err
	}
	defer s.stop()
	q, err := newRequestSet("/detect", m.file, images)
	if err != nil {
		return 0, err
	}
	if l := s.load(ctx, q, 8, 64); l.failed > 0 {
		return 0, l.why
	}
	g, err := s.gauges()
	// Half a model more, because the models differ in size.
	return int64(g["anomaly_model_cache_bytes"] * (soakLoaded + 0.5)), err
}

// gauges returns the metrics without labels.
func (s *service) gauges() (map[string]float64, error) {
	text, err := s.get("/metrics")
	if err != nil {
		return nil, err
	}
	found := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			found[name] = v
		}
	}
	return found, nil
}

// sampled samples the service until the context is done.
func sampled(ctx context.Context, t *testing.T, s *service) (samples []sample) {
	began := time.Now()
	tick := time.NewTicker(soakSample)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return samples
		case <-tick.C:
			x := sample{seconds: time.Since(began).Seconds(), resident: s.resident()}
			samples = append(samples, x)
			if len(samples)%15 != 0 {
				continue
			}
			if g, err := s.gauges(); err != nil {
				t.Errorf("/metrics: %v", err)
			} else {
				t.Logf("%4.0f s: %.0f MB, %.0f MB of it Go's heap, %.0f goroutines, %.0f models loaded, %.0f of %.0f steps of a training", x.seconds, x.resident,
					g["go_memstats_heap_inuse_bytes"]/(1<<20), g["go_goroutines"], g["anomaly_model_cache_models"], g["anomaly_training_step"], g["anomaly_training_steps"])
			}
		}
	}
}

// counted is the number of requests by kind and status.
type counted struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *counted) count(what string, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[fmt.Sprintf("%-22s %d", what, status)]++
}

// of returns the number of requests of a kind, whatever their status.
func (c *counted) of(what string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, count := range c.counts {
		if strings.HasPrefix(key, what) {
			n += count
		}
	}
	return n
}

// same reports whether a response is the expected verdict.
func same(answer []byte, want map[string]any) bool {
	var got map[string]any
	if json.Unmarshal(answer, &got) != nil {
		return false
	}
	a, err := json.Marshal(got)
	b, err2 := json.Marshal(want)
	return err == nil && err2 == nil && bytes.Equal(a, b)
}
