package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/hostile"
)

// soak is the load of TestSoak.
type soak struct {
	counted
	service *service
	models  []*soakModel
	images  [][]byte
	packed  []byte // ZIP of the training
	few     []byte // ZIP of the images of jobs and calibrations
	bad     []badForm
	wrong   func(format string, args ...any)
	faults  atomic.Int64
	clients uint64 // started so far
	http    http.Client
}

// form is a body and its type.
type form struct {
	kind string
	body []byte
}

func formOf(parts ...[2]any) form {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for _, p := range parts {
		var err error
		switch v := p[1].(type) {
		case []byte:
			var part io.Writer
			if part, err = w.CreateFormFile(p[0].(string), "file"); err == nil {
				_, err = part.Write(v)
			}
		case string:
			err = w.WriteField(p[0].(string), v)
		}
		if err != nil {
			panic(err) // a Buffer accepts all writes
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return form{w.FormDataContentType(), body.Bytes()}
}

// badForm is a hostile upload and the expected statuses.
type badForm struct {
	name, path string
	form       form
	statuses   []int
}

// hostileForms returns uploads of all files of package hostile, except data sets that
// a training accepts.
func hostileForms(model, image []byte, canary string) []badForm {
	var out []badForm
	refused := []int{400, 413, 422}
	for _, i := range hostile.Images() {
		out = append(out, badForm{i.Name, "/detect", formOf([2]any{"modelFile", model}, [2]any{"imageFile", i.Data}), refused})
	}
	for _, f := range hostile.Models(canary) {
		out = append(out, badForm{string(f.Class) + " " + f.Name, "/detect", formOf([2]any{"modelFile", f.Data}, [2]any{"imageFile", image}), refused})
	}
	for _, d := range hostile.Datasets(canary) {
		if d.Want != hostile.Trains {
			out = append(out, badForm{d.Name, "/train", formOf([2]any{"zipFile", d.Data}, [2]any{"level", "1"}, [2]any{"image_size", "64"}), refused})
		}
	}
	return out
}

// client sends requests until the context is done: mostly valid ones; 5 % each are
// hostile, disconnect, or send slowly.
func (s *soak) client(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		m, i := s.models[r.IntN(len(s.models))], r.IntN(len(s.images))
		byName := "/models/" + m.name + "/detect"
		image := formOf([2]any{"imageFile", s.images[i]})
		whole := formOf([2]any{"modelFile", m.file}, [2]any{"imageFile", s.images[i]})
		if r.IntN(2) == 0 {
			whole = formOf([2]any{"imageFile", s.images[i]}, [2]any{"modelFile", m.file})
		}
		switch p := r.IntN(100); {
		case p < 5:
			b := s.bad[r.IntN(len(s.bad))]
			s.expect(ctx, "hostile", b.path, b.form, func(status int, body []byte) bool {
				var refusal struct{ Error string }
				return slices.Contains(b.statuses, status) && json.Unmarshal(body, &refusal) == nil && refusal.Error != ""
			}, b.name)
		case p < 10:
			s.slowly("/detect", whole, r.IntN(len(whole.body)+1), 1, 0)
			s.count("disconnected", 0)
		case p < 15:
			status, answer := s.slowly("/detect", whole, len(whole.body), 5+r.IntN(10), time.Duration(r.IntN(400))*time.Millisecond)
			s.count("sent slowly", status)
			if status != http.StatusServiceUnavailable && (status != http.StatusOK || !same(answer, m.verdicts[i])) {
				s.fault("sent slowly: status %d: %.300s", status, answer)
			}
		case p < 16:
			s.stalled(whole, r)
		case p < 30:
			s.expect(ctx, "by name", byName, image, func(status int, body []byte) bool {
				return status == 200 && same(undrifted(body), m.verdicts[i])
			}, byName)
		case p < 35:
			list := formOf([2]any{"imageFile", s.images[i]}, [2]any{"imageFile", s.images[(i+1)%len(s.images)]})
			s.expect(ctx, "two images by name", byName, list, func(status int, body []byte) bool {
				var got []json.RawMessage
				return status == 200 && json.Unmarshal(body, &got) == nil && len(got) == 2 &&
					same(undrifted(without(got[0], "file")), m.verdicts[i]) && same(undrifted(without(got[1], "file")), m.verdicts[(i+1)%len(s.images)])
			}, m.name)
		case p < 37:
			s.put(ctx, m)
		default:
			s.verdict(ctx, "with its model", "/detect", whole, m.verdicts[i])
		}
	}
}

// without returns a JSON object without a key.
func without(object json.RawMessage, key string) []byte {
	var m map[string]any
	if json.Unmarshal(object, &m) != nil {
		return nil
	}
	delete(m, key)
	out, _ := json.Marshal(m)
	return out
}

// undrifted returns a verdict without the warning of the drift alarm, which depends on the
// verdicts before.
func undrifted(verdict []byte) []byte {
	var v struct{ Warnings []string }
	if json.Unmarshal(verdict, &v) != nil || len(v.Warnings) != 1 || !strings.HasPrefix(v.Warnings[0], "the images score higher ") {
		return verdict
	}
	return without(verdict, "warnings")
}

func (s *soak) verdict(ctx context.Context, what, path string, f form, want map[string]any) {
	s.expect(ctx, what, path, f, func(status int, body []byte) bool { return status == 200 && same(body, want) }, path)
}

// busy reports whether a response is that of an overloaded service.
func busy(res *http.Response) bool {
	return res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != ""
}

// expect posts a form and reports a wrong response.
func (s *soak) expect(ctx context.Context, what, path string, f form, right func(status int, body []byte) bool, name string) {
	s.send(ctx, http.MethodPost, what, path, f, right, name)
}

func (s *soak) send(ctx context.Context, method, what, path string, f form, right func(status int, body []byte) bool, name string) {
	status, body := s.request(ctx, method, what, path, f)
	if status != 0 && !right(status, body) {
		s.fault("%s, %s: status %d: %.300s", what, name, status, body)
	}
}

// ask sends a request and returns the response, which must have one of the statuses. The
// status is 0 without a response, or if the service was overloaded.
func (s *soak) ask(ctx context.Context, method, what, path string, f form, statuses ...int) (status int, body []byte) {
	status, body = s.request(ctx, method, what, path, f)
	if status != 0 && !slices.Contains(statuses, status) {
		s.fault("%s, %s: status %d: %.300s", what, path, status, body)
	}
	return status, body
}

// request sends a request, which completes even if the load ends, and returns the response.
// The status is 0 without a response, or if the service was overloaded.
func (s *soak) request(ctx context.Context, method, what, path string, f form) (status int, body []byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), soakRequest)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.service.url+path, bytes.NewReader(f.body))
	if err != nil {
		s.fault("%v", err)
		return 0, nil
	}
	if f.kind != "" {
		req.Header.Set("Content-Type", f.kind)
	}
	res, err := s.http.Do(req)
	if err == nil {
		defer res.Body.Close()
		status = res.StatusCode
		body, err = io.ReadAll(res.Body)
	}
	s.count(what, status)
	switch {
	case err != nil:
		s.fault("%s, %s: %v", what, path, err)
		return 0, nil
	case busy(res):
		time.Sleep(askPause)
		return 0, nil
	}
	return status, body
}

// put replaces a named model by itself.
func (s *soak) put(ctx context.Context, m *soakModel) {
	s.send(ctx, http.MethodPut, "replaced", "/models/"+m.name, form{"application/octet-stream", m.file}, func(status int, _ []byte) bool {
		return status == http.StatusOK || status == http.StatusCreated
	}, m.name)
}

// slowly sends the first `most` bytes of a form in pieces, with a pause after each, and
// returns the response. With a single piece, it disconnects without a response.
func (s *soak) slowly(path string, f form, most, pieces int, pause time.Duration) (status int, answer []byte) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.service.url, "http://"), time.Minute)
	if err != nil {
		s.fault("%v", err)
		return 0, nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: soak\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", path, f.kind, len(f.body))
	if _, err := io.WriteString(conn, head); err != nil {
		return 0, nil
	}
	for piece := range slices.Chunk(f.body[:most], max(most/pieces, 1)) {
		if _, err := conn.Write(piece); err != nil {
			break // rejected; the response has the reason
		}
		if pieces > 1 {
			time.Sleep(pause)
		}
	}
	if pieces == 1 {
		return 0, nil
	}
	return answered(conn)
}

// answered returns a response; without one, the status is 0.
func answered(conn net.Conn) (status int, answer []byte) {
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, nil
	}
	defer res.Body.Close()
	answer, _ = io.ReadAll(res.Body)
	return res.StatusCode, answer
}

// stalled stops in the middle of a form for longer than the service permits.
func (s *soak) stalled(f form, r *rand.Rand) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.service.url, "http://"), time.Minute)
	if err != nil {
		s.fault("%v", err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = fmt.Fprintf(conn, "POST /detect HTTP/1.1\r\nHost: soak\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", f.kind, len(f.body))
	_, _ = conn.Write(f.body[:r.IntN(len(f.body))])
	status, _ := answered(conn)
	s.count("stalled", status)
	if status != http.StatusRequestTimeout {
		s.fault("a stalled upload: status %d", status)
	}
}

// trainer keeps a training running, and cancels one in four.
func (s *soak) trainer(ctx context.Context, r *rand.Rand) {
	f := formOf([2]any{"zipFile", s.packed}, [2]any{"level", "1"}, [2]any{"image_size", "64"})
	for ctx.Err() == nil {
		limit := 5 * time.Minute
		cancelled := r.IntN(4) == 0
		if cancelled {
			limit = time.Duration(1+r.IntN(10)) * time.Second
		}
		to, cancel := context.WithTimeout(ctx, limit)
		_, err := s.train(to, f)
		switch {
		case err == nil:
			s.count("training", 200)
		case cancelled || ctx.Err() != nil:
			s.count("cancelled training", 0)
		default:
			s.fault("a training: %v", err)
			time.Sleep(time.Second)
		}
		cancel()
	}
}

func (s *soak) train(ctx context.Context, f form) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.service.url+"/train", bytes.NewReader(f.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", f.kind)
	res, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && (res.StatusCode != 200 || !bytes.HasPrefix(body, []byte("PK"))) {
		err = fmt.Errorf("status %d: %.200s", res.StatusCode, body)
	}
	return body, err
}

// maxReported limits the number of reported faults.
const maxReported = 30

func (s *soak) fault(format string, args ...any) {
	if s.faults.Add(1) <= maxReported {
		s.wrong(format, args...)
	}
}

// report logs the number of requests by kind and status.
func (s *soak) report(t *testing.T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := 0
	var lines []string
	for what, n := range s.counts {
		total += n
		lines = append(lines, fmt.Sprintf("  %s: %d", what, n))
	}
	slices.Sort(lines)
	t.Logf("%d requests, by kind and status (0: no response):\n%s", total, strings.Join(lines, "\n"))
	if n := s.faults.Load(); n > maxReported {
		t.Errorf("%d faults in total", n)
	}
}

// judged returns the output of the command line for the images in a folder.
func judged(ctx context.Context, model, folder string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "bin/anomaly", "detect", "--model", model, "--json", folder).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // some are anomalous
		err = nil
	}
	return out, err
}
