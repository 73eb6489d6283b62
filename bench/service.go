package main

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/deepmed/anomaly/trainer"
)

// service is a running server of either side.
type service struct {
	name string
	url  string
	cmd  *exec.Cmd
}

// startService runs a server on a free port of the loopback and waits until it
// is healthy.
func startService(ctx context.Context, name, command string, args ...string) (*service, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	s := &service{name: name, url: "http://127.0.0.1:" + port, cmd: exec.CommandContext(ctx, command, args...)}
	s.cmd.Env = append(os.Environ(), "PORT="+port)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if res, err := http.Get(s.url + "/health"); err == nil {
			res.Body.Close()
			return s, nil
		}
	}
	s.stop()
	return nil, fmt.Errorf("%s did not become healthy", name)
}

func (s *service) stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
}

// resident is the memory the server holds, in MB; 0 where the system does not
// tell.
func (s *service) resident() float64 { return s.memory("VmRSS") }

// memory is a line of the server's /proc status, in MB.
func (s *service) memory(field string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(l, field+":"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return kb / 1024
		}
	}
	return 0
}

// post sends a form of files and fields and gives the answer's body.
func (s *service) post(ctx context.Context, path string, files map[string][]byte, fields map[string]string) ([]byte, error) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for name, data := range files {
		w, err := form.CreateFormFile(name, name)
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			return nil, err
		}
	}
	for name, value := range fields {
		if err := form.WriteField(name, value); err != nil {
			return nil, err
		}
	}
	if err := form.Close(); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, &body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", form.FormDataContentType())
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s%s: status %d: %.200s", s.name, path, res.StatusCode, answer)
	}
	return answer, err
}

// bothServices starts ours and the Python recipe's.
func bothServices(ctx context.Context, python string) (ours, theirs *service, err error) {
	if ours, err = startService(ctx, "ours", "bin/anomaly", "serve"); err != nil {
		return nil, nil, err
	}
	if theirs, err = startService(ctx, "Python recipe", python, "bench/peer_service.py"); err != nil {
		ours.stop()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// realImages are all images below a folder.
func realImages(dir string) ([][]byte, error) {
	var images [][]byte
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".jpg") {
			return err
		}
		data, err := os.ReadFile(p)
		images = append(images, data)
		return err
	})
	if err == nil && len(images) == 0 {
		err = errors.New("no images in " + dir)
	}
	return images, err
}

const (
	trainedImages = 100
	trainedSide   = 256
	// The images' own size is one that is usual for photographs of medical
	// devices' screens.
	trainedWidth, trainedHeight = 240, 289
)

// zipped packs n images, over and over again.
func zipped(images [][]byte, n int) ([]byte, error) {
	var packed bytes.Buffer
	z := zip.NewWriter(&packed)
	for i := range n {
		w, err := z.Create(fmt.Sprintf("%03d.jpg", i))
		if err == nil {
			_, err = w.Write(images[i%len(images)])
		}
		if err != nil {
			return nil, err
		}
	}
	err := z.Close()
	return packed.Bytes(), err
}

// checkpoint trains a model at level 1 and gives its .pt.
func checkpoint(ctx context.Context, o options, dir string) ([]byte, error) {
	bundle := filepath.Join(dir, "model.zip")
	if _, err := output(ctx, "bin/anomaly", "train", filepath.Join(o.tiles, "train", "good"), "--level", "1", "--out", bundle, "--force"); err != nil {
		return nil, err
	}
	z, err := zip.OpenReader(bundle)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return fs.ReadFile(z, "autoencoder.pt")
}

// trainings compares whole trainings through POST /train, from the first byte of
// the request to the last of the answer: 100 images of 240×289 at 256 px.
func trainings(ctx context.Context, o options, python, dir string) error {
	level, err := trainer.LevelOf(o.level)
	if err != nil {
		return err
	}
	folder := filepath.Join(dir, "trained")
	if err := augmented(folder, trainedImages, trainedWidth, trainedHeight); err != nil {
		return err
	}
	images, err := realImages(folder)
	if err != nil {
		return err
	}
	packed, err := zipped(images, trainedImages)
	if err != nil {
		return err
	}
	ours, theirs, err := bothServices(ctx, python)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()
	took, peak := map[*service]series{}, map[*service]float64{}
	for range o.trainRounds {
		for _, s := range []*service{ours, theirs} {
			started := time.Now()
			if _, err := s.post(ctx, "/train", map[string][]byte{"zipFile": packed},
				map[string]string{"level": strconv.Itoa(o.level), "image_size": strconv.Itoa(trainedSide)}); err != nil {
				return err
			}
			took[s] = append(took[s], time.Since(started).Seconds())
			peak[s] = s.memory("VmHWM")
		}
	}
	t := table(fmt.Sprintf("POST /train, level %d", o.level), "seconds", "images/s", "MB at most", "MB after")
	for _, s := range []*service{ours, theirs} {
		fmt.Fprintf(t, "%s\t%v\t%.1f\t%.0f\t%.0f\n", s.name, took[s],
			float64(trainedImages*level.Epochs)/took[s].median(), peak[s], s.resident())
	}
	fmt.Fprintf(t, "ratio\t%.2f\t\t\t\n\n", took[theirs].median()/took[ours].median())
	return t.Flush()
}

// detections compares POST /detect, each request with its model: one client,
// then eight at once.
func detections(ctx context.Context, o options, python, dir string) error {
	images, err := realImages(o.tiles)
	if err != nil {
		return err
	}
	checkpoint, err := checkpoint(ctx, o, dir)
	if err != nil {
		return err
	}
	ours, theirs, err := bothServices(ctx, python)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer theirs.stop()
	type result struct {
		rate, p50, p99 series
		failed         int
	}
	results := map[*service]map[int]*result{}
	for _, s := range []*service{ours, theirs} {
		results[s] = map[int]*result{1: {}, 8: {}}
	}
	for range max(o.rounds/2, 1) {
		for _, clients := range []int{1, 8} {
			for _, s := range []*service{ours, theirs} {
				r := results[s][clients]
				rate, times, failed := s.load(ctx, checkpoint, images, clients, 50*clients)
				r.failed += failed
				r.rate, r.p50, r.p99 = append(r.rate, rate), append(r.p50, times.at(0.5)), append(r.p99, times.at(0.99))
			}
		}
	}
	t := table("POST /detect, 256 px", "clients", "requests/s", "p50, ms", "p99, ms", "failed", "MB after")
	for _, clients := range []int{1, 8} {
		for _, s := range []*service{ours, theirs} {
			r := results[s][clients]
			fmt.Fprintf(t, "%s\t%d\t%v\t%v\t%v\t%d\t%.0f\n", s.name, clients, r.rate, r.p50, r.p99, r.failed, s.resident())
		}
		a, b := results[ours][clients], results[theirs][clients]
		fmt.Fprintf(t, "ratio\t%d\t%.2f\t%.2f\t%.2f\t\t\n", clients, a.rate.median()/b.rate.median(), a.p50.median()/b.p50.median(), a.p99.median()/b.p99.median())
	}
	return t.Flush()
}

// load sends so many requests from so many clients at once.
func (s *service) load(ctx context.Context, model []byte, images [][]byte, clients, requests int) (rate float64, times series, failed int) {
	next := make(chan int, requests)
	for i := range requests {
		next <- i
	}
	close(next)
	var group sync.WaitGroup
	var mu sync.Mutex
	started := time.Now()
	for range clients {
		group.Go(func() {
			for i := range next {
				begun := time.Now()
				_, err := s.post(ctx, "/detect", map[string][]byte{"modelFile": model, "imageFile": images[i%len(images)]}, nil)
				took := time.Since(begun).Seconds() * 1e3
				mu.Lock()
				times = append(times, took)
				if err != nil {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return float64(requests) / time.Since(started).Seconds(), times, failed
}
