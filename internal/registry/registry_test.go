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

// A service that is stopped while it reads its folder reads no more files.
func TestLoad_ReadsNoFileAfterContextEnds(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.zip", "b.pt", "c.onnx"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("prose"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	r, err := OpenFolder(dir, models.DefaultLimits(), Options{MaxModels: 10}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// Opening a FIFO blocks until a process opens it for writing.
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
		r.Load(ctx, func(*models.Model) error { t.Error("use was called"); return nil })
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("a file was read")
	}
	for _, e := range r.List() {
		if e.State != Broken || e.Error != ended.Error() {
			t.Errorf("%+v", e)
		}
		if _, err := r.Get(ctx, e.Name); !errors.Is(err, ended) {
			t.Errorf("Get of %s with an ended context: %v", e.Name, err)
		}
		if _, err := r.Get(t.Context(), e.Name); !errors.Is(err, ErrBroken) {
			t.Errorf("Get of %s: %v", e.Name, err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n > 1 || strings.Contains(log.String(), "cannot be used") {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

// A model that is being read when the context ends is not reported as unusable.
func TestLoad_DoesNotBlameModelReadWhenContextEnds(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a.zip", "b.zip"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("prose"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	handler := slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		cancel() // on the first log line
		return a
	}})
	r, err := OpenFolder(dir, models.DefaultLimits(), Options{MaxModels: 10}, slog.New(handler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Load(ctx, nil)
	if first, err := r.Look(t.Context(), "a"); err != nil || strings.Contains(first.Error, context.Canceled.Error()) {
		t.Errorf("%+v, %v", first, err)
	}
	if second, err := r.Look(t.Context(), "b"); err != nil || second.Error != context.Canceled.Error() {
		t.Errorf("%+v, %v", second, err)
	}
	if n := strings.Count(log.String(), "a model cannot be used"); n != 1 {
		t.Errorf("%d models are reported as unusable:\n%s", n, log.String())
	}
}
