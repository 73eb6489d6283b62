package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/deepmed/anomaly/bench/cluster/sim"
	"github.com/deepmed/anomaly/bench/internal/processes"
)

// bench holds what all measurements use.
type bench struct {
	program string // anomaly
	nats    string // nats-server
	dir     string // for the files of processes
	train   string // the folder of images to train on
	images  [][]byte
}

// newBench builds the programs into a folder.
func newBench(ctx context.Context, dir, tiles string) (*bench, error) {
	b := &bench{program: filepath.Join(dir, "anomaly"), dir: dir, train: filepath.Join(tiles, "train", "good")}
	if err := processes.Build(ctx, b.program, "./cmd/anomaly"); err != nil {
		return nil, err
	}
	var err error
	if b.nats, err = processes.BuildNATS(ctx, dir); err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(tiles, "test", "good", "*"))
	if err != nil || len(paths) == 0 {
		return nil, errors.Join(fmt.Errorf("no images in %s", tiles), err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		b.images = append(b.images, data)
	}
	return b, nil
}

// trained is a model and what its training took.
type trained struct {
	model         []byte
	images        int
	seconds, work float64
}

// modelPath returns the path of the model of an image size.
func (b *bench) modelPath(side int) string {
	return filepath.Join(b.dir, fmt.Sprintf("model-%d.zip", side))
}

// trainModel trains a model at level 1.
func (b *bench) trainModel(ctx context.Context, side int) (*trained, error) {
	out := b.modelPath(side)
	cmd := exec.CommandContext(ctx, b.program, "train", b.train, "--level", "1", "--image-size", strconv.Itoa(side), "--out", out, "--force")
	began := time.Now()
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cannot train: %w\n%s", err, text)
	}
	t := &trained{seconds: time.Since(began).Seconds()}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return nil, errors.New("the system does not report the CPU time of a process")
	}
	t.work = time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
	entries, err := os.ReadDir(b.train)
	if err != nil {
		return nil, err
	}
	t.images = len(entries)
	t.model, err = os.ReadFile(out)
	return t, err
}

// putModel stores a model under a name.
func putModel(ctx context.Context, url, name string, model []byte) error {
	return request(ctx, http.MethodPut, url+"/models/"+name, "application/zip", model)
}

func request(ctx context.Context, method, url, contentType string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: status %d: %.200s", method, url, res.StatusCode, text)
	}
	return err
}

// scrape returns the metrics of a service, by name and labels as they are written.
func scrape(ctx context.Context, url string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	values := map[string]float64{}
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if at := strings.LastIndexByte(lines.Text(), ' '); at > 0 && !strings.HasPrefix(lines.Text(), "#") {
			if v, err := strconv.ParseFloat(lines.Text()[at+1:], 64); err == nil {
				values[lines.Text()[:at]] = v
			}
		}
	}
	return values, nil
}

// stage returns the mean time of a stage between two scrapes.
func stage(before, after map[string]float64, name string) float64 {
	labels := `{stage="` + name + `",work="detect"}`
	sum, count := "anomaly_stage_duration_seconds_sum"+labels, "anomaly_stage_duration_seconds_count"+labels
	return (after[sum] - before[sum]) / max(after[count]-before[count], 1)
}

// alone is the result of detections of one client, one after the other.
type alone struct {
	*observed
	work, decode, infer, load float64 // means per request, in seconds
}

// alone measures n requests of one client to one service.
func (l load) alone(ctx context.Context, p *processes.Process, n int) (*alone, error) {
	if _, err := l.closed(ctx, 1, 20); err != nil { // warm
		return nil, err
	}
	before, err := scrape(ctx, p.URL)
	if err != nil {
		return nil, err
	}
	work := p.CPU().Seconds()
	o, err := l.closed(ctx, 1, n)
	if err != nil {
		return nil, err
	}
	if o.failed > 0 {
		return nil, fmt.Errorf("%d of %d detections failed: %w", o.failed, n, o.why)
	}
	a := &alone{observed: o, work: (p.CPU().Seconds() - work) / float64(n)}
	after, err := scrape(ctx, p.URL)
	if err != nil {
		return nil, err
	}
	a.decode, a.infer, a.load = stage(before, after, "decode"), stage(before, after, "infer"), stage(before, after, "load")
	return a, nil
}

// forms returns a request for each image.
func (b *bench) forms() (list []form, err error) {
	for _, i := range b.images {
		f, err := newForm(i)
		if err != nil {
			return nil, err
		}
		list = append(list, f)
	}
	return list, nil
}

// size measures the costs of detections with a model of one image size, with n requests
// for each of them.
func (b *bench) size(ctx context.Context, side, n int) (*sizeCosts, error) {
	t, err := b.trainModel(ctx, side)
	if err != nil {
		return nil, err
	}
	out := &sizeCosts{Side: side, TrainImages: t.images, TrainSeconds: t.seconds}
	c := &out.Costs
	c.Train, c.ModelFile = t.work, float64(len(t.model))
	for _, i := range b.images {
		c.ImageFile += float64(len(i)) / float64(len(b.images))
	}
	if err := b.detections(ctx, t.model, n, out); err != nil {
		return nil, err
	}
	if err := b.batches(ctx, t.model, n, out); err != nil {
		return nil, err
	}
	if err := b.uploads(ctx, t.model, c); err != nil {
		return nil, err
	}
	return out, b.loads(ctx, t.model, c)
}

// uploads measures the work to receive a zip and to write it to a file: in a submission of a
// job whose model does not exist, which the service refuses after that.
func (b *bench) uploads(ctx context.Context, model []byte, c *sim.Costs) error {
	p, _, err := b.serving(ctx, "uploads", model)
	if err != nil {
		return err
	}
	defer p.Stop()
	x := setup{images: b.images, load: load{models: []string{"missing"}}}
	body, contentType, err := x.bulkForm(bulkImages)
	if err != nil {
		return err
	}
	const n = 10
	before := 0.0
	for i := range n + 1 {
		if i == 1 {
			before = p.CPU().Seconds() + ownWork()
		}
		if err := request(ctx, http.MethodPost, p.URL+"/jobs", contentType, body); err == nil || !strings.Contains(err.Error(), "404") {
			return fmt.Errorf("a job without a model was not refused with 404: %w", err)
		}
	}
	c.Upload = (p.CPU().Seconds() + ownWork() - before) / n / float64(len(body))
	return nil
}

// start starts a command of the program and waits until it is ready. The first words start the
// program.
func (b *bench) start(ctx context.Context, words []string, name, command string, args ...string) (*processes.Process, error) {
	return processes.StartHTTP(ctx, b.dir, name, slices.Concat(words, []string{command, "--log-level", "warn"}, args)...)
}

// serving starts a service with a model of the name "one".
func (b *bench) serving(ctx context.Context, name string, model []byte, args ...string) (*processes.Process, load, error) {
	store, err := os.MkdirTemp(b.dir, name+"-models-")
	if err != nil {
		return nil, load{}, err
	}
	p, err := b.start(ctx, []string{b.program}, name, "serve", append([]string{"--models", store}, args...)...)
	if err != nil {
		return nil, load{}, err
	}
	forms, err := b.forms()
	if err == nil {
		err = putModel(ctx, p.URL, "one", model)
	}
	if err != nil {
		p.Stop()
		return nil, load{}, err
	}
	return p, load{services: []string{p.URL}, models: []string{"one"}, forms: forms}, nil
}

// detections measures the work of a detection: on one thread, whose stages are then work
// alone, and on all threads.
func (b *bench) detections(ctx context.Context, model []byte, n int, out *sizeCosts) error {
	single, l, err := b.serving(ctx, "single", model, "--threads", "1")
	if err != nil {
		return err
	}
	one, err := l.alone(ctx, single, n)
	single.Stop()
	if err != nil {
		return err
	}
	all, l, err := b.serving(ctx, "all", model)
	if err != nil {
		return err
	}
	defer all.Stop()
	many, err := l.alone(ctx, all, n)
	if err != nil {
		return err
	}
	values, err := scrape(ctx, all.URL)
	if err != nil {
		return err
	}
	before := all.CPU().Seconds()
	busy, err := l.closed(ctx, 4*runtime.NumCPU(), 2*n)
	if err != nil {
		return err
	}
	c := &out.Costs
	c.Contention = (all.CPU().Seconds() - before) / float64(len(busy.times)) / one.work
	out.Rate = busy.rate()
	c.ModelMemory = values["anomaly_model_cache_bytes"]
	c.Decode, c.Infer = one.decode, one.infer
	c.AllThreads = many.infer / one.infer
	// What the process does besides. Which part of it is before the run and which after
	// matters little: both delay the answer.
	rest := max(one.work-one.decode-one.infer, 0)
	c.Receive, c.Answer = rest*0.7, rest*0.3
	c.Client = one.clientWork / float64(n)
	c.Wait = max(many.mean()-many.decode-many.infer-rest-c.Client, 0)
	c.Spread = spread(one.times)
	out.Alone, out.Alone99 = many.quantile(0.5), many.quantile(0.99)
	return nil
}

// spread returns 100 quantiles of times, divided by their mean.
func spread(times []float64) []float64 {
	sorted := slices.Sorted(slices.Values(times))
	var list []float64
	sum := 0.0
	for i := range 100 {
		t := sorted[min(int((float64(i)+0.5)/100*float64(len(sorted))), len(sorted)-1)]
		list = append(list, t)
		sum += t
	}
	for i := range list {
		list[i] = round(list[i] / (sum / 100))
	}
	return list
}

// round drops digits that mean nothing.
func round(v float64) float64 {
	r, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	return r
}

// batches measures the work of an image in requests and batches of several, on one thread.
func (b *bench) batches(ctx context.Context, model []byte, n int, out *sizeCosts) error {
	for _, images := range []int{1, 4, 16} {
		p, _, err := b.serving(ctx, "batch", model, "--threads", "1", "--batch-size", strconv.Itoa(images))
		if err != nil {
			return err
		}
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		for i := range images {
			part, err := w.CreateFormFile("imageFile", "image")
			if err == nil {
				_, err = part.Write(b.images[i%len(b.images)])
			}
			if err != nil {
				return err
			}
		}
		if err := w.Close(); err != nil {
			return err
		}
		f := form{w.FormDataContentType(), body.Bytes()}
		requests, before := max(n/images, 4), 0.0
		for i := range requests + 2 {
			if i == 2 { // the first ones load the model
				before = p.CPU().Seconds()
			}
			if err := request(ctx, http.MethodPost, p.URL+"/models/one/detect", f.contentType, f.body); err != nil {
				p.Stop()
				return err
			}
		}
		out.Batches = append(out.Batches, batchCost{images, round((p.CPU().Seconds() - before) / float64(requests*images))})
		p.Stop()
	}
	return nil
}

// loads measures the work of loading a model: two versions of it in turns, in a cache
// that holds one.
func (b *bench) loads(ctx context.Context, model []byte, c *sim.Costs) error {
	p, l, err := b.serving(ctx, "loads", model, "--model-cache", "1")
	if err != nil {
		return err
	}
	defer p.Stop()
	if err := putModel(ctx, p.URL, "two", model); err != nil {
		return err
	}
	if err := request(ctx, http.MethodPatch, p.URL+"/models/two", "application/json", []byte(`{"threshold": 12.5}`)); err != nil {
		return err
	}
	const n = 30
	warm, err := l.alone(ctx, p, n)
	if err != nil {
		return err
	}
	l.models = []string{"one", "two"}
	cold, err := l.alone(ctx, p, n)
	if err != nil {
		return err
	}
	if cold.load < 2*warm.load {
		return fmt.Errorf("a model was not loaded again: %.2f ms, %.2f ms if it is loaded", cold.load*1e3, warm.load*1e3)
	}
	c.Load = max(cold.work-warm.work, cold.quantile(0.5)-warm.quantile(0.5))
	return nil
}

// measure measures everything and writes it to a file.
func (b *bench) measure(ctx context.Context, sides []int, n int, command string) (*measured, error) {
	m := &measured{Date: time.Now().Format(time.DateOnly), Machine: machine(), Command: command}
	var lists [][]sizeCosts
	for _, side := range sides {
		s, err := b.size(ctx, side, n)
		if err != nil {
			return nil, fmt.Errorf("%d px: %w", side, err)
		}
		fmt.Printf("%d px: alone %.2f ms, decode %.2f, infer %.2f on one thread, the rest %.2f, a load %.1f, a training of %d images %.1f s\n",
			side, s.Alone*1e3, s.Costs.Decode*1e3, s.Costs.Infer*1e3, (s.Costs.Receive+s.Costs.Answer)*1e3, s.Costs.Load*1e3, s.TrainImages, s.TrainSeconds)
		lists = append(lists, []sizeCosts{*s})
	}
	// Other programs disturb a measurement: the median of three, at different times, counts.
	for range 2 {
		for i, list := range lists {
			model, err := os.ReadFile(b.modelPath(list[0].Side))
			if err != nil {
				return nil, err
			}
			again := list[0]
			if err := b.detections(ctx, model, n, &again); err != nil {
				return nil, err
			}
			lists[i] = append(list, again)
		}
	}
	for _, list := range lists {
		m.Sizes = append(m.Sizes, medianWork(list))
	}
	n3, err := b.measureNATS(ctx, 3, runtime.NumCPU())
	if err != nil {
		return nil, fmt.Errorf("NATS: %w", err)
	}
	m.NATS = *n3
	fmt.Printf("NATS: publish %.2f ms (p99 %.2f), %.0f a second, put %.0f MB/s, get %.0f MB/s\n", n3.Published*1e3, n3.PublishP99*1e3, n3.PublishRate, n3.PutRate, n3.GetRate)
	return m, nil
}
