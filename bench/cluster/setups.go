package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"time"

	"github.com/deepmed/anomaly/bench/cluster/sim"
	"github.com/deepmed/anomaly/bench/internal/processes"
)

// smallCores is the number of cores of the cluster that small starts.
const smallCores = 2

// small is three NATS servers, two serving processes and two workers on this machine, the
// smallest cluster that survives the loss of any process. Each process has a core, as if it
// were its machine: Linux does not always move one of two processes to an idle core at once,
// which processes on machines of their own do not wait for.
func (b *bench) small(ctx context.Context, model []byte) (x *setup, err error) {
	cores := make([]int, smallCores)
	for i := range cores {
		cores[i] = i
	}
	servers, err := processes.StartNATS(ctx, b.nats, b.dir, 3, cores...)
	if err != nil {
		return nil, err
	}
	started := []*processes.Process{}
	machines := make([][]int, smallCores)
	place := func(i int, p *processes.Process) {
		machines[i%smallCores] = append(machines[i%smallCores], p.PID())
	}
	for i, p := range servers.Servers {
		place(i, p)
	}
	x = &setup{name: "cluster", stop: func() {
		for _, p := range started {
			p.Stop()
		}
		servers.Stop()
	}}
	defer func() {
		if err != nil {
			x.stop()
		}
	}()
	for i, role := range []string{"serve", "serve", "worker", "worker"} {
		p, err := b.start(ctx, processes.Pinned(i%smallCores, b.program), fmt.Sprintf("%s-%d", role, i), role, "--nats", servers.URL(), "--replicas", "3", "--threads", "1")
		if err != nil {
			return nil, err
		}
		started = append(started, p)
		place(i, p)
		if role == "serve" {
			x.load.services = append(x.load.services, p.URL)
		}
	}
	if x.load.forms, err = b.forms(); err != nil {
		return nil, err
	}
	x.load.models, x.load.machines = []string{"one"}, machines
	x.images = b.images
	x.config = base()
	x.config.Serve, x.config.Workers, x.config.Servers, x.config.Replicas, x.config.Owners, x.config.Threads = 2, 2, 3, 3, 2, 1
	x.config.Cores, x.config.Pinned = smallCores, true
	return x, putModel(ctx, x.load.services[0], "one", model)
}

const (
	// bulkImages is the number of images of the bulk job that is compared. warmImages is the
	// number of images of the job before it, by which the workers load the model.
	bulkImages = 600
	warmImages = 200
	// pollInterval is the time between two looks whether a job has ended.
	pollInterval = 50 * time.Millisecond
)

// bulk runs a bulk job, after one by which the workers load the model.
func (x *setup) bulk(ctx context.Context) (comparison, error) {
	body, contentType, err := x.bulkForm(warmImages)
	if err != nil {
		return nil, err
	}
	if err := x.bulkJob(ctx, body, contentType); err != nil {
		return nil, err
	}
	if body, contentType, err = x.bulkForm(bulkImages); err != nil {
		return nil, err
	}
	before, own, began := busyCores(), treeWork(), time.Now()
	if err := x.bulkJob(ctx, body, contentType); err != nil {
		return nil, err
	}
	took, work := time.Since(began).Seconds(), treeWork()-own
	o := &observation{observed: &observed{seconds: took, samples: evenly(took, work, bulkImages, x.config)}, idle: x.config.Idle,
		others: max((busyCores()-before)-work, 0) / (took * float64(x.config.Cores))}
	fmt.Printf("%s: a job of %d images took %.2f s, work %.2f ms an image; others used %.0f %%\n", x.name, bulkImages, took, o.work()*1e3, o.others*100)
	return func(costs sim.Costs) (row, error) {
		c := x.config
		c.Costs, c.BulkAtOnce, c.BulkRate, c.JobImages, c.PieceImages, c.Seconds, c.Poll = costs, true, 1, bulkImages, pieceOf(costs.ImageFile), 300, pollInterval.Seconds()
		r, byCosts, err := o.simulate(c)
		wantTook := r.JobTime.Max()
		return row{setup: x.name, load: fmt.Sprintf("a job of %d images", bulkImages), others: o.others, work: o.work(), costs: byCosts,
			got: [3]float64{bulkImages / took, took, 0}, want: [3]float64{bulkImages / wantTook, wantTook, 0}}, err
	}, nil
}

// evenly returns the samples of machines that did the same work on as many images each: which
// of them judged an image is not known.
func evenly(took, work float64, images int, c sim.Config) []sample {
	n := 1
	if c.Pinned {
		n = c.Cores
	}
	return []sample{{0, make([]float64, n), make([]int, n)},
		{took, slices.Repeat([]float64{work / float64(n)}, n), slices.Repeat([]int{images / n}, n)}}
}

// bulkForm returns a form with a zip of n images.
func (x *setup) bulkForm(n int) ([]byte, string, error) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	err := errors.Join(w.WriteField("kind", "detect"), w.WriteField("model", x.load.models[0]))
	part, e := w.CreateFormFile("images", "images.zip")
	if err = errors.Join(err, e); err != nil {
		return nil, "", err
	}
	z := zip.NewWriter(part)
	for i := range n {
		f, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("%04d.jpg", i), Method: zip.Store})
		if err == nil {
			_, err = f.Write(x.images[i%len(x.images)])
		}
		if err != nil {
			return nil, "", err
		}
	}
	err = errors.Join(z.Close(), w.Close())
	return body.Bytes(), w.FormDataContentType(), err
}

// bulkJob submits a job and waits until it has succeeded.
func (x *setup) bulkJob(ctx context.Context, body []byte, contentType string) error {
	url := x.load.services[0] + "/jobs"
	var job struct{ ID, State, Error string }
	if err := ask(ctx, http.MethodPost, url, contentType, body, &job); err != nil {
		return err
	}
	for job.State != "succeeded" {
		if job.State == "failed" || job.State == "cancelled" {
			return fmt.Errorf("the job ended as %s: %s", job.State, job.Error)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollInterval):
		}
		if err := ask(ctx, http.MethodGet, url+"/"+job.ID, "", nil, &job); err != nil {
			return err
		}
	}
	return nil
}

// ask sends a request and decodes the JSON of its answer.
func ask(ctx context.Context, method, url, contentType string, body []byte, to any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: status %d: %.200s", method, url, res.StatusCode, text)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, to)
}
