package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// eventually waits for something that must become true. The limit is for a test
// that fails, not a bound on how long it takes.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// longTraining is a request that trains for minutes.
func longTraining(t *testing.T, s *service, ctx context.Context) chan error {
	t.Helper()
	return trainingOf(t, s, ctx, 60, 128)
}

// trainingOf is a request that trains at level 5 on so many images of that side. Of
// fewer than 8 nothing is learnt before the epochs.
func trainingOf(t *testing.T, s *service, ctx context.Context, images, side int) chan error {
	t.Helper()
	body, kind := encode(t, file("zipFile", "a.zip", normals(t, images, nil)), text("level", "5"), text("image_size", strconv.Itoa(side)))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/train", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	done := make(chan error, 1)
	go func() {
		res, err := http.DefaultClient.Do(r)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			err = errors.Join(err, fmt.Errorf("status %d", res.StatusCode))
		}
		done <- err
	}()
	return done
}

func TestTrainingEndsWhenItsClientLeaves(t *testing.T) {
	s := start(t, nil)
	ctx, leave := context.WithCancel(t.Context())
	done := longTraining(t, s, ctx)
	eventually(t, "the training runs", func() bool { return len(s.training.places) == 1 && trainingGoroutines() > 0 })
	leave()
	<-done
	eventually(t, "the training ends", func() bool { return len(s.training.places) == 0 })
	eventually(t, "its upload is gone", func() bool { return s.uploads(t) == 0 })
	eventually(t, "its goroutines are gone", func() bool { return trainingGoroutines() == 0 })
}

// trainingGoroutines counts the goroutines that train or watch a request's
// connection. Those of the HTTP server wait for further requests and are not ours.
func trainingGoroutines() int {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(stack, "anomaly/trainer.") || strings.Contains(stack, "api.whileConnected") {
			n++
		}
	}
	return n
}

func TestUploadIsGoneWhenItsClientLeavesInTheMiddle(t *testing.T) {
	s := start(t, nil)
	body, kind := encode(t, file("zipFile", "a.zip", bytes.Repeat([]byte("x"), 1<<20)))
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "POST /train HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, body.Len())
	if _, err := c.Write(body.Bytes()[:body.Len()/2]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload is on disk", func() bool { return s.uploads(t) == 1 })
	c.Close()
	eventually(t, "the upload is gone", func() bool { return s.uploads(t) == 0 })
}

func TestUploadThatStopsIsGivenUp(t *testing.T) {
	s := start(t, func(o *Options) { o.ReadPause = 200 * time.Millisecond })
	body, kind := encode(t, file("zipFile", "a.zip", bytes.Repeat([]byte("x"), 1<<20)))
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /train HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, body.Len())
	if _, err := c.Write(body.Bytes()[:body.Len()/2]); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(answer), "408") {
		t.Errorf("%v: %.200s", err, answer)
	}
	eventually(t, "the upload is gone", func() bool { return s.uploads(t) == 0 })
}

// trickle sends a text again and again until the test or the connection ends.
func trickle(t *testing.T, conn io.Writer, text string) {
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				if _, err := io.WriteString(conn, text); err != nil {
					return
				}
			}
		}
	}()
}

// Who is refused is heard out for a moment, however slowly the rest comes.
func TestRefusedSendersWhoTrickleDoNotKeepTheConnection(t *testing.T) {
	const token = "correct-horse-battery"
	s := start(t, func(o *Options) {
		o.ReadPause, o.DetectTime, o.TrainTime, o.Token, o.ModelsDir = 200*time.Millisecond, 0, 0, token, t.TempDir()
	})
	for name, c := range map[string]struct{ header, status string }{
		"without a token":            {"POST /detect HTTP/1.1\r\nContent-Length: 10000000\r\n", "401"},
		"without a token, in chunks": {"POST /detect HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", "401"},
		"with what is no form":       {"POST /train HTTP/1.1\r\nContent-Length: 10000000\r\nAuthorization: Bearer " + token + "\r\n", "415"},
		"to a model that is not":     {"PUT /models/A HTTP/1.1\r\nContent-Length: 10000000\r\nAuthorization: Bearer " + token + "\r\n", "400"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			// For a test that fails.
			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			first, more := strings.Repeat("x", prefetch), "x"
			if strings.Contains(c.header, "chunked") {
				first, more = fmt.Sprintf("%x\r\n%s\r\n", prefetch, first), "1\r\nx\r\n"
			}
			fmt.Fprintf(conn, "%sHost: x\r\n\r\n%s", c.header, first)
			trickle(t, conn, more)
			// The connection may be reset behind the answer: more is coming.
			answer, err := io.ReadAll(conn)
			if !strings.HasPrefix(string(answer), "HTTP/1.1 "+c.status) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%v: %.300s", err, answer)
			}
		})
	}
}

func TestShutdownCancelsATrainingAndAnswersItsClient(t *testing.T) {
	s := start(t, nil)
	done := longTraining(t, s, t.Context())
	eventually(t, "the training runs", func() bool { return len(s.training.places) == 1 })
	if err := s.Shutdown(50 * time.Millisecond); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("the client got %v", err)
	}
}

func TestTrainingsBeyondTheQueueAreToldToComeBack(t *testing.T) {
	s := start(t, func(o *Options) { o.WaitingTrainings = 0 })
	ctx, leave := context.WithCancel(t.Context())
	done := longTraining(t, s, ctx)
	eventually(t, "the training runs", func() bool { return len(s.training.places) == 1 })
	a := s.post(t, "/train", file("zipFile", "a.zip", normals(t, 1, nil)), text("level", "1"), text("image_size", "16"))
	if a.status != 503 || a.header.Get("Retry-After") == "" || a.message(t) == "" {
		t.Errorf("status %d, Retry-After %q: %s", a.status, a.header.Get("Retry-After"), a.body)
	}
	leave()
	<-done
	eventually(t, "the place is free", func() bool { return len(s.training.places) == 0 })
	if a := s.post(t, "/train", file("zipFile", "a.zip", normals(t, 1, nil)), text("level", "1"), text("image_size", "16")); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

func TestWhatIsNoHTTPIsToldSo(t *testing.T) {
	s := start(t, nil)
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "secret nonsense\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(answer), `{"error":"The request is not valid HTTP"}`) || strings.Contains(string(answer), "secret") {
		t.Errorf("%v: %.300s", err, answer)
	}
}

// A zip larger than what the server reads ahead or holds in memory goes to disk
// as it comes.
func TestLargeUploadStreams(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 100 MB")
	}
	s := start(t, nil)
	const size = 100 << 20
	head := "--b\r\nContent-Disposition: form-data; name=\"zipFile\"; filename=\"a.zip\"\r\n\r\n"
	tail := "\r\n--b--\r\n"
	body := io.MultiReader(strings.NewReader(head), io.LimitReader(zeros{}, size), strings.NewReader(tail))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	a := s.send(t, http.MethodPost, "/train", "multipart/form-data; boundary=b", body)
	runtime.ReadMemStats(&after)
	if a.status != 422 || !strings.Contains(a.message(t), "not a readable ZIP file") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > size/4 {
		t.Errorf("%d bytes were allocated for an upload of %d", grown, size)
	}
	if n := s.uploads(t); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
