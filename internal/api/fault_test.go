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

// startTraining starts a training at level 5, which takes minutes. With fewer than 8
// images, the training has no heads and begins with the autoencoder.
func (s *service) startTraining(t *testing.T, ctx context.Context, images, side int) <-chan error {
	t.Helper()
	return s.postInBackground(t, ctx, "/train", file("zipFile", "a.zip", trainingZip(t, images, nil)), text("level", "5"), text("image_size", strconv.Itoa(side)))
}

func TestTrain_StopsWhenTheClientDisconnects(t *testing.T) {
	s := start(t, nil)
	ctx, disconnect := context.WithCancel(t.Context())
	done := s.startTraining(t, ctx, 60, 128)
	eventually(t, "the training runs", func() bool { return s.trainingSlots.running() == 1 && trainingGoroutines() > 0 })
	disconnect()
	<-done
	eventually(t, "the training ends", func() bool { return s.trainingSlots.running() == 0 })
	eventually(t, "its upload is removed", func() bool { return s.uploads(t) == 0 })
	eventually(t, "its goroutines have ended", func() bool { return trainingGoroutines() == 0 })
}

// trainingGoroutines returns the number of goroutines that train or watch a request's
// connection.
func trainingGoroutines() int {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	n := 0
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(stack, "anomaly/trainer.") || strings.Contains(stack, "api.watchConnection") {
			n++
		}
	}
	return n
}

func TestUpload_IsRemovedWhenTheClientDisconnects(t *testing.T) {
	s := start(t, nil)
	c := s.sendHalf(t, "/train", file("zipFile", "a.zip", bytes.Repeat([]byte("x"), 1<<20)))
	eventually(t, "the upload is on disk", func() bool { return s.uploads(t) == 1 })
	c.Close()
	eventually(t, "the upload is removed", func() bool { return s.uploads(t) == 0 })
}

func TestUpload_TimesOutAfterAPause(t *testing.T) {
	s := start(t, func(o *Options) { o.ReadPause = 200 * time.Millisecond })
	headers := "POST /train HTTP/1.1\r\nHost: x\r\n"
	for what, send := range map[string]func() net.Conn{
		"in a form": func() net.Conn {
			return s.sendHalf(t, "/train", file("zipFile", "a.zip", bytes.Repeat([]byte("x"), 1<<20)))
		},
		"in the headers": func() net.Conn { return s.sendText(t, headers) },
		"in the first few bytes": func() net.Conn {
			return s.sendText(t, headers+"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100\r\n\r\n--b")
		},
	} {
		answer, err := io.ReadAll(send())
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") || !strings.Contains(string(answer), errSlowClient.message) {
			t.Errorf("%s: %v: %.400s", what, err, answer)
		}
	}
	eventually(t, "the upload is removed", func() bool { return s.uploads(t) == 0 })
}

// sendText sends the beginning of a request, on a connection of its own.
func (s *service) sendText(t testing.TB, text string) net.Conn {
	t.Helper()
	c := s.dial(t)
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// trickle sends a text every 20 ms until the test or the connection ends.
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

// The body of a rejected request is read for a limited time.
func TestReject_ClosesTheConnectionOfSlowClients(t *testing.T) {
	const token = "correct-horse-battery"
	s := start(t, func(o *Options) {
		o.ReadPause, o.DetectTime, o.TrainTime, o.Token, o.ModelsDir = 200*time.Millisecond, 0, 0, token, t.TempDir()
	})
	for name, c := range map[string]struct{ header, status string }{
		"without a token":            {"POST /detect HTTP/1.1\r\nContent-Length: 10000000\r\n", "401"},
		"without a token, in chunks": {"POST /detect HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", "401"},
		"with no form":               {"POST /train HTTP/1.1\r\nContent-Length: 10000000\r\nAuthorization: Bearer " + token + "\r\n", "415"},
		"with an invalid model name": {"PUT /models/A HTTP/1.1\r\nContent-Length: 10000000\r\nAuthorization: Bearer " + token + "\r\n", "400"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := s.dial(t)
			// This only ends a test that fails.
			if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			first, more := strings.Repeat("x", prefetch), "x"
			if strings.Contains(c.header, "chunked") {
				first, more = fmt.Sprintf("%x\r\n%s\r\n", prefetch, first), "1\r\nx\r\n"
			}
			fmt.Fprintf(conn, "%sHost: x\r\n\r\n%s", c.header, first)
			trickle(t, conn, more)
			// The connection may be reset after the answer, since more bytes arrive.
			answer, err := io.ReadAll(conn)
			if !strings.HasPrefix(string(answer), "HTTP/1.1 "+c.status) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%v: %.300s", err, answer)
			}
		})
	}
}

func TestShutdown_CancelsATrainingAndAnswersItsClient(t *testing.T) {
	s := start(t, nil)
	done := s.startTraining(t, t.Context(), 60, 128)
	eventually(t, "the training runs", func() bool { return s.trainingSlots.running() == 1 })
	if err := s.Shutdown(50 * time.Millisecond); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("the client got %v", err)
	}
}

func TestTrain_ShedsLoadBeyondTheQueue(t *testing.T) {
	s := start(t, func(o *Options) { o.WaitingTrainings = 0 })
	ctx, disconnect := context.WithCancel(t.Context())
	done := s.startTraining(t, ctx, 60, 128)
	eventually(t, "the training runs", func() bool { return s.trainingSlots.running() == 1 })
	a := s.post(t, "/train", smallTraining(trainingZip(t, 1, nil))...)
	if a.status != 503 || a.header.Get("Retry-After") == "" || a.message(t) == "" {
		t.Errorf("status %d, Retry-After %q: %s", a.status, a.header.Get("Retry-After"), a.body)
	}
	disconnect()
	<-done
	eventually(t, "the slot is free", func() bool { return s.trainingSlots.running() == 0 })
	if a := s.post(t, "/train", smallTraining(trainingZip(t, 1, nil))...); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

func TestServer_AnswersInvalidHTTP(t *testing.T) {
	s := start(t, nil)
	c := s.dial(t)
	fmt.Fprint(c, "secret nonsense\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(answer), `{"error":"The request is not valid HTTP"}`) || strings.Contains(string(answer), "secret") {
		t.Errorf("%v: %.300s", err, answer)
	}
}

// An upload is written to disk while it is received.
func TestUpload_IsStreamedToDisk(t *testing.T) {
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
	s.keepsNoUpload(t)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
