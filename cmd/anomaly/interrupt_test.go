package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/inference"
)

// detectWithOpenInput starts detect on an image and on a standard input that does not
// end, and waits until the image is judged.
func detectWithOpenInput(t *testing.T, flags ...string) (c *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	dir, image := t.TempDir(), tileFiles(t, "test/good", 1)[0]
	c = command(t, append([]string{"detect", "--model", smallModel(t), "--threads", "2", "--heatmap", dir, image, "-"}, flags...)...)
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	c.Stdout, c.Stderr = stdout, stderr
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	eventually(t, "the image is judged", func() bool {
		return slices.Equal(names(t, dir), []string{"0001-" + filepath.Base(image) + ".png"})
	})
	return c, stdout, stderr
}

func TestDetect_PrintsTheVerdictsSoFarWhenInterrupted(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"interrupted": syscall.SIGINT, "terminated": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			c, stdout, stderr := detectWithOpenInput(t)
			if err := c.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_ = c.Wait() // its status is checked below
			if got := c.ProcessState.ExitCode(); got != exitError || strings.Count(stdout.String(), "\n") != 3 || !strings.Contains(stdout.String(), "\ninterrupted after 1 of 2 images: 1 normal, 0 anomalous, 0 not judged\n") {
				t.Errorf("exit %d: %s%s", got, stdout, stderr)
			}
		})
	}
	t.Run("interrupted with --json", func(t *testing.T) {
		c, stdout, stderr := detectWithOpenInput(t, "--json")
		if err := c.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait() // its status is checked below
		list := entries(t, ran{stdout: stdout.String()})
		if got := c.ProcessState.ExitCode(); got != exitError || len(list) != 1 || list[0].Error != nil || stderr.String() != "interrupted after 1 of 2 images\n" {
			t.Errorf("exit %d: %s%s", got, stdout, stderr)
		}
	})
}

func TestCommands_EndAtTheSecondSignal(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skip(err)
	}
	for _, args := range [][]string{
		{"detect", "--model", pipe, "a.png"}, {"verify", pipe}, {"inspect", pipe}, {"calibrate", pipe, tiles}, {"convert", pipe, "--to", filepath.Join(t.TempDir(), "m.pt")},
		{"train", tiles, "--from", pipe, "--out", filepath.Join(t.TempDir(), "m.zip")},
	} {
		for _, signals := range [][]syscall.Signal{{syscall.SIGINT, syscall.SIGINT}, {syscall.SIGTERM, syscall.SIGTERM}, {syscall.SIGINT, syscall.SIGTERM}, {syscall.SIGTERM, syscall.SIGINT}} {
			c := command(t, args...)
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- c.Wait() }()
			// The program opens the pipe to read, which hangs until someone writes.
			writer, err := openWhenRead(pipe)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range signals {
				_ = c.Process.Signal(s) // train ends at the first SIGINT: it waits for no model
				time.Sleep(100 * time.Millisecond)
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Errorf("%v does not end after %v", args, signals)
				_ = c.Process.Kill()
				<-ended
			}
			writer.Close()
		}
	}
}

// openWhenRead opens a named pipe to write when a process has opened it to read.
func openWhenRead(pipe string) (*os.File, error) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if !errors.Is(err, syscall.ENXIO) || time.Now().After(deadline) {
			return f, err
		}
	}
}

func TestServe_EndsAtTheSecondSignal(t *testing.T) {
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--grace", "1h", "--upload-pause", "1h")
	s.stopped = true // it ends without the shutdown that stop checks
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x\r\n"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM} {
		if err := s.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		_ = s.cmd.Process.Kill()
		t.Errorf("it does not end: %s", s.log)
	}
}

func TestInterruptible_EndsATrainingThatHangsAfterTheSecondInterrupt(t *testing.T) {
	for name, learned := range map[string]bool{"learned": true, "nothing learned": false} {
		t.Run(name, func(t *testing.T) {
			var flag atomic.Bool
			flag.Store(learned)
			parent, terminate := context.WithCancel(t.Context())
			defer terminate()
			exited := make(chan struct{})
			var said lockedBuffer
			ctx, stop, done := interruptible(parent, &said, &flag, time.Millisecond, func() { close(exited) })
			defer done()
			if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if !learned {
				<-ctx.Done()
				if said.String() != "" {
					t.Errorf("it says %q", said.String())
				}
				return
			}
			<-stop
			if ctx.Err() != nil || !strings.Contains(said.String(), "interrupt again to write nothing") {
				t.Errorf("%v, it says %q", ctx.Err(), said.String())
			}
			terminate() // as SIGTERM does
			<-ctx.Done()
			<-exited
		})
	}
}

func TestInterruptible_DoesNotExitWhenTheTrainingEnds(t *testing.T) {
	var learned atomic.Bool
	learned.Store(true)
	parent, terminate := context.WithCancel(t.Context())
	defer terminate()
	exited := make(chan struct{})
	ctx, stop, done := interruptible(parent, io.Discard, &learned, 50*time.Millisecond, func() { close(exited) })
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-stop
	terminate()
	<-ctx.Done()
	done()
	select {
	case <-exited:
		t.Error("it exits")
	case <-time.After(150 * time.Millisecond):
	}
}

func TestJudgeFiles_ReturnsTheResultsSoFarWhenAReadHangs(t *testing.T) {
	inputs := []input{{path: "judged"}, {path: "hangs"}, {path: "unreadable"}, {path: "aborted"}, {path: "never"}}
	ctx, interrupt := context.WithCancel(t.Context())
	never := make(chan struct{})
	defer close(never)
	results, judged := judgeFiles(ctx, inputs, 2, 20*time.Millisecond, func(ctx context.Context, i int) []result {
		r := result{File: inputs[i].path}
		switch inputs[i].path {
		case "hangs":
			<-never
		case "unreadable":
			r.Error = "not an image"
			return []result{r}
		case "aborted":
			interrupt()
			<-ctx.Done()
			r.Error = context.Cause(ctx).Error()
			return []result{r}
		case "never":
			t.Error("a file is judged after the interrupt")
		}
		r.Verdict = &inference.Verdict{}
		return []result{r}
	})
	if judged != 2 || len(results) != 2 || results[0].File != "judged" || results[0].Verdict == nil || results[1].File != "unreadable" || results[1].Error != "not an image" {
		t.Errorf("%+v", results)
	}
}

func TestJudgeFiles_ReturnsAnEmptyListWhenNothingIsJudged(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	results, judged := judgeFiles(ctx, []input{{path: "a"}, {path: "b"}}, 1, time.Minute, func(context.Context, int) []result {
		t.Error("a file is judged")
		return nil
	})
	if text, err := json.Marshal(results); err != nil || string(text) != "[]" {
		t.Errorf("%s, %v", text, err)
	}
	var b bytes.Buffer
	if err := printVerdicts(&b, results, judged, 2); err != nil || !strings.HasSuffix(b.String(), "interrupted after 0 of 2 images: 0 normal, 0 anomalous, 0 not judged\n") {
		t.Errorf("%q, %v", b.String(), err)
	}
}
