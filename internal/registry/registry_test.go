package registry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/models"
)

// A service that is told to end while it reads its folder does not read on.
func TestNoFileIsReadOnceTheContextHasEnded(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.zip", "b.pt", "c.onnx"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("prose"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	r, err := Open(dir, models.DefaultLimits(), 10, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Who opens one of these waits until something writes into it.
	for _, name := range []string{"a.zip", "b.pt", "c.onnx"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	ended := errors.New("the service ends")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ended)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Load(ctx, func(*models.Model) error { t.Error("a model is used"); return nil })
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("a file is read")
	}
	for _, e := range r.List() {
		if e.State != Broken || e.Error != ended.Error() {
			t.Errorf("%+v", e)
		}
		if _, err := r.Get(ctx, e.Name); !errors.Is(err, ended) {
			t.Errorf("who waited for %s is told %v", e.Name, err)
		}
		if _, err := r.Get(t.Context(), e.Name); !errors.Is(err, ErrBroken) {
			t.Errorf("who comes for %s is told %v", e.Name, err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n > 1 || strings.Contains(log.String(), "cannot be used") {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

// The model that was being read when the context ended is not at fault.
func TestModelReadWhileTheContextEndsIsNotCalledUnusable(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.zip", "b.zip"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("prose"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	handler := slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		cancel() // with the first line
		return a
	}})
	r, err := Open(dir, models.DefaultLimits(), 10, slog.New(handler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Load(ctx, nil)
	if first, err := r.Look("a"); err != nil || strings.Contains(first.Error, context.Canceled.Error()) {
		t.Errorf("%+v, %v", first, err)
	}
	if second, err := r.Look("b"); err != nil || second.Error != context.Canceled.Error() {
		t.Errorf("%+v, %v", second, err)
	}
	if n := strings.Count(log.String(), "a model cannot be used"); n != 1 {
		t.Errorf("%d models are called unusable:\n%s", n, log.String())
	}
}
