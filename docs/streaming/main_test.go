package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/stream"
)

// The example prints a verdict on each image, also when the stream is full meanwhile.
func TestRun_PrintsAVerdictOnEachImage(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	b := brokertest.Open(t, url, nil)
	o := stream.Options{Bytes: 1 << 20, VerdictBytes: 1 << 20, Parallel: 2, MaxPending: 10, Log: slog.New(slog.DiscardHandler),
		Judge: func(_ context.Context, i stream.Image) stream.Answer {
			return stream.Answer{Status: 200, Body: fmt.Appendf(nil, `{"bytes": %d}`, len(i.Data))}
		}}
	if _, err := stream.Prepare(t.Context(), b, o); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var files []string
	for i := range 8 { // more than the stream takes
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, make([]byte, 300<<10+i), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	worked := make(chan error, 1)
	working, end := context.WithCancel(context.Background())
	time.AfterFunc(500*time.Millisecond, func() { worked <- stream.Work(working, working, b, o) })
	var out bytes.Buffer
	if err := run(ctx, url, "tiles", files, &out); err != nil {
		t.Fatal(err)
	}
	end()
	if err := <-worked; err != nil {
		t.Error(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(out.String()) {
		var v struct {
			File, Status string
			Verdict      struct{ Bytes int }
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		var i int
		if _, err := fmt.Sscan(filepath.Base(v.File), &i); err != nil || v.Status != "200" || v.Verdict.Bytes != 300<<10+i || seen[v.File] {
			t.Errorf("%s", line)
		}
		seen[v.File] = true
	}
	if len(seen) != len(files) {
		t.Errorf("%d verdicts", len(seen))
	}
}

// The page shows the program's own code.
func TestPage_ShowsTheCodeThatIsTested(t *testing.T) {
	page, err := os.ReadFile("../streaming.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for rest := string(page); ; blocks++ {
		_, after, found := strings.Cut(rest, "```go\n")
		if !found {
			break
		}
		var code string
		if code, rest, found = strings.Cut(after, "```"); !found || !strings.Contains(string(program), code) {
			t.Errorf("main.go does not have this code of the page:\n%s", code)
		}
	}
	if blocks == 0 {
		t.Error("the page has no code")
	}
}
