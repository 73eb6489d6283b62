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
	packed  []byte // the training's zip
	bad     []badForm
	wrong   func(format string, args ...any)
	told    atomic.Int64
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
			panic(err) // a Buffer takes everything
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return form{w.FormDataContentType(), body.Bytes()}
}

// badForm is a hostile upload and the statuses that refuse it.
type badForm struct {
	name, path string
	form       form
	statuses   []int
}

// hostileForms are all files of package hostile, but those data sets that a
// training takes in spite of what is in them.
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

// client asks until the context ends: mostly for verdicts as they should be asked
// for, in 5 of 100 with a hostile file, and in as many each it hangs up, or sends
// slowly.
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
				var told struct{ Error string }
				return slices.Contains(b.statuses, status) && json.Unmarshal(body, &told) == nil && told.Error != ""
			}, b.name)
		case p < 10:
			s.slowly("/detect", whole, r.IntN(len(whole.body)+1), 1, 0)
			s.count("hung up", 0)
		case p < 15:
			status, answer := s.slowly("/detect", whole, len(whole.body), 5+r.IntN(10), time.Duration(r.IntN(400))*time.Millisecond)
			s.count("sent slowly", status)
			if status != http.StatusServiceUnavailable && (status != http.StatusOK || !same(answer, m.verdicts[i])) {
				s.say("sent slowly: status %d: %.300s", status, answer)
			}
		case p < 16:
			s.stalled(whole, r)
		case p < 30:
			s.verdict(ctx, "by name", byName, image, m.verdicts[i])
		case p < 35:
			list := formOf([2]any{"imageFile", s.images[i]}, [2]any{"imageFile", s.images[(i+1)%len(s.images)]})
			s.expect(ctx, "two images by name", byName, list, func(status int, body []byte) bool {
				var got []json.RawMessage
				return status == 200 && json.Unmarshal(body, &got) == nil && len(got) == 2 &&
					same(without(got[0], "file"), m.verdicts[i]) && same(without(got[1], "file"), m.verdicts[(i+1)%len(s.images)])
			}, m.name)
		case p < 37:
			s.put(ctx, m)
		default:
			s.verdict(ctx, "with its model", "/detect", whole, m.verdicts[i])
		}
	}
}

// without is a JSON object without a key.
func without(object json.RawMessage, key string) []byte {
	var m map[string]any
	if json.Unmarshal(object, &m) != nil {
		return nil
	}
	delete(m, key)
	out, _ := json.Marshal(m)
	return out
}

func (s *soak) verdict(ctx context.Context, what, path string, f form, want map[string]any) {
	s.expect(ctx, what, path, f, func(status int, body []byte) bool { return status == 200 && same(body, want) }, path)
}

// busy says that an answer is the intended one of a service that has enough to do.
func busy(res *http.Response) bool {
	return res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != ""
}

// expect posts a form and says when the answer is another than it must be.
func (s *soak) expect(ctx context.Context, what, path string, f form, right func(status int, body []byte) bool, name string) {
	s.send(ctx, http.MethodPost, what, path, f, right, name)
}

func (s *soak) send(ctx context.Context, method, what, path string, f form, right func(status int, body []byte) bool, name string) {
	// It is answered to its end when the load ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.service.url+path, bytes.NewReader(f.body))
	if err != nil {
		s.say("%v", err)
		return
	}
	req.Header.Set("Content-Type", f.kind)
	res, err := s.http.Do(req)
	if err != nil {
		s.count(what, 0)
		s.say("%s, %s: %v", what, name, err)
		return
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	s.count(what, res.StatusCode)
	switch {
	case err != nil:
		s.say("%s, %s: %v", what, name, err)
	case busy(res):
		time.Sleep(100 * time.Millisecond)
	case !right(res.StatusCode, body):
		s.say("%s, %s: status %d: %.300s", what, name, res.StatusCode, body)
	}
}

// put keeps a model under the name that it has: a replacement by itself.
func (s *soak) put(ctx context.Context, m *soakModel) {
	s.send(ctx, http.MethodPut, "kept anew", "/models/"+m.name, form{"application/octet-stream", m.file}, func(status int, _ []byte) bool {
		return status == http.StatusOK || status == http.StatusCreated
	}, m.name)
}

// slowly sends so much of a form in so many pieces and, when that was all of it and
// there were several, gives the answer. Else it hangs up, and gives none.
func (s *soak) slowly(path string, f form, most, pieces int, pause time.Duration) (status int, answer []byte) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.service.url, "http://"), time.Minute)
	if err != nil {
		s.say("%v", err)
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
			break // refused meanwhile; the answer says why
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

// answered is an answer, of status 0 where there is none.
func answered(conn net.Conn) (status int, answer []byte) {
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, nil
	}
	defer res.Body.Close()
	answer, _ = io.ReadAll(res.Body)
	return res.StatusCode, answer
}

// stalled stops in the middle of a form for longer than the service allows.
func (s *soak) stalled(f form, r *rand.Rand) {
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.service.url, "http://"), time.Minute)
	if err != nil {
		s.say("%v", err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, _ = fmt.Fprintf(conn, "POST /detect HTTP/1.1\r\nHost: soak\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", f.kind, len(f.body))
	_, _ = conn.Write(f.body[:r.IntN(len(f.body))])
	status, _ := answered(conn)
	s.count("stopped", status)
	if status != http.StatusRequestTimeout {
		s.say("an upload that stopped is answered %d", status)
	}
}

// trainer keeps a training running, and leaves one in four before it ends.
func (s *soak) trainer(ctx context.Context, r *rand.Rand) {
	f := formOf([2]any{"zipFile", s.packed}, [2]any{"level", "1"}, [2]any{"image_size", "64"})
	for ctx.Err() == nil {
		limit := 5 * time.Minute
		left := r.IntN(4) == 0
		if left {
			limit = time.Duration(1+r.IntN(10)) * time.Second
		}
		to, cancel := context.WithTimeout(ctx, limit)
		_, err := s.train(to, f)
		switch {
		case err == nil:
			s.count("training", 200)
		case left || ctx.Err() != nil:
			s.count("training that was left", 0)
		default:
			s.say("a training: %v", err)
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

// mostTold bounds how many faults are told; the counts tell the rest.
const mostTold = 30

func (s *soak) say(format string, args ...any) {
	if s.told.Add(1) <= mostTold {
		s.wrong(format, args...)
	}
}

// report prints what became of the requests.
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
	t.Logf("%d requests, by what they were and the status of their answer (0: none was waited for):\n%s", total, strings.Join(lines, "\n"))
	if n := s.told.Load(); n > mostTold {
		t.Errorf("%d faults in all", n)
	}
}

// judged is what the command line says of the images in a folder.
func judged(ctx context.Context, model, folder string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, "bin/anomaly", "detect", "--model", model, "--json", folder).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 { // some are anomalous
		err = nil
	}
	return out, err
}
