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
	"time"

	"github.com/deepmed/anomaly/trainer"
)

// service is a running server of one side.
type service struct {
	name string
	url  string
	cmd  *exec.Cmd
}

// launch starts a server on a free port of the loopback address.
func launch(ctx context.Context, name, command string, args ...string) (*service, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	s := &service{name: name, url: "http://127.0.0.1:" + port, cmd: exec.CommandContext(ctx, command, args...)}
	s.cmd.Env = append(os.Environ(), "PORT="+port)
	return s, s.cmd.Start()
}

// startService starts a server and waits until it is healthy.
func startService(ctx context.Context, name, command string, args ...string) (*service, error) {
	s, err := launch(ctx, name, command, args...)
	if err != nil {
		return nil, err
	}
	if err := s.await("/health"); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// await polls a path until the response is 200 OK, for at most a minute.
func (s *service) await(path string) error {
	const pause = 2 * time.Millisecond
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(pause) {
		if res, err := http.Get(s.url + path); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
	return fmt.Errorf("%s does not answer %s", s.name, path)
}

func (s *service) stop() {
	_ = s.cmd.Process.Signal(os.Interrupt)
	_ = s.cmd.Wait()
}

// resident returns the resident memory of the server in MB; 0 if the system does not
// report it.
func (s *service) resident() float64 { return s.memory("VmRSS") }

// memory returns a field of the server's /proc status in MB.
func (s *service) memory(field string) float64 { return memoryOf(s.cmd.Process.Pid, field) }

// memoryOf returns a field of a process's /proc status in MB; 0 on systems other than
// Linux.
func memoryOf(pid int, field string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
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

// processor returns the CPU time of the server; 0 if the system does not report it.
// Unlike wall-clock time, it depends little on other load.
func (s *service) processor() time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ, on every Linux
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The process name may contain spaces. Of the fields after it, user and system
	// time are the twelfth and the thirteenth.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * tick
}

// post sends a form of files and fields and returns the body of the response.
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

// get returns the body of the response for a path.
func (s *service) get(path string) ([]byte, error) {
	res, err := http.Get(s.url + path)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s%s: status %d", s.name, path, res.StatusCode)
	}
	return body, err
}

// bothServices starts our service and that of the Python recipe.
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

// realImages returns all JPEG files below a folder.
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
	// A typical size of photographs of medical devices' screens.
	trainedWidth, trainedHeight = 240, 289
)

// zipped returns a ZIP of n images, which repeats images.
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

// checkpoint trains a model at a level and returns its .pt file.
func checkpoint(ctx context.Context, o options, dir string, level int) ([]byte, error) {
	bundle := filepath.Join(dir, "model.zip")
	if _, err := output(ctx, "bin/anomaly", "train", filepath.Join(o.tiles, "train", "good"), "--level", strconv.Itoa(level), "--out", bundle, "--force"); err != nil {
		return nil, err
	}
	z, err := zip.OpenReader(bundle)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return fs.ReadFile(z, "autoencoder.pt")
}

// trainings compares trainings through POST /train, from the first byte of the
// request to the last byte of the response: 100 images of 240×289 pixels at 256 px.
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
	t := table(fmt.Sprintf("POST /train, level %d", o.level), "seconds", "images/s", "peak MB", "MB after")
	for _, s := range []*service{ours, theirs} {
		fmt.Fprintf(t, "%s\t%v\t%.1f\t%.0f\t%.0f\n", s.name, took[s],
			float64(trainedImages*level.Epochs)/took[s].median(), peak[s], s.resident())
	}
	fmt.Fprintf(t, "ratio\t%.2f\t\t\t\n\n", took[theirs].median()/took[ours].median())
	return t.Flush()
}
