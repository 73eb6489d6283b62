package processes

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain serves /readyz if the test program is started with the argument serve.
func TestMain(m *testing.M) {
	if len(os.Args) != 4 || os.Args[1] != "serve" || os.Args[2] != "--addr" {
		os.Exit(m.Run())
	}
	began := time.Now()
	http.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if time.Since(began) < 200*time.Millisecond {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	_ = http.ListenAndServe(os.Args[3], nil)
	os.Exit(1)
}

func TestStartHTTP_ReturnsAReadyProcess(t *testing.T) {
	p, err := StartHTTP(t.Context(), t.TempDir(), "serve", os.Args[0], "serve")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if !p.isReady(t.Context()) {
		t.Error("the process is not ready")
	}
}

// started returns a running shell script.
func started(t *testing.T, dir, script string) *Process {
	t.Helper()
	p, err := Start(dir, "script", "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.End(os.Kill, time.Minute) })
	return p
}

// logged waits until the log of a process is text.
func logged(t *testing.T, p *Process, text string) {
	t.Helper()
	var data []byte
	for range 500 {
		var err error
		if data, err = os.ReadFile(p.Log()); err != nil {
			t.Fatal(err)
		}
		if string(data) == text {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the log is %q, expected %q", data, text)
}

func TestProcess_EndsByTheSignalOrIsKilled(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		bySelf bool
	}{
		"by the signal":         {"trap 'exit 0' INT; echo ready; while :; do sleep 0.01; done", true},
		"ignores the interrupt": {"trap '' INT; echo ready; while :; do sleep 0.01; done", false},
	} {
		t.Run(name, func(t *testing.T) {
			p := started(t, t.TempDir(), c.script)
			logged(t, p, "ready\n")
			limit := time.Minute
			if !c.bySelf {
				limit = 100 * time.Millisecond
			}
			if p.End(os.Interrupt, limit) != c.bySelf {
				t.Errorf("ended by itself: %t, expected %t", !c.bySelf, c.bySelf)
			}
			if err := syscall.Kill(p.PID(), 0); err == nil {
				t.Error("the process still exists")
			}
			p.Stop() // of an ended process
		})
	}
	var none *Process
	none.Stop()
}

func TestProcess_AppendsToItsLog(t *testing.T) {
	dir := t.TempDir()
	logged(t, started(t, dir, "echo one"), "one\n")
	logged(t, started(t, dir, "echo two >&2"), "one\ntwo\n")
}

func TestAwaitReady_ReportsTheLogOfAProcessThatIsNotReady(t *testing.T) {
	address, err := FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	for script, words := range map[string]string{"echo no such flag; exit 2": "it has ended", "echo no such flag; exec sleep 60": "it is not ready"} {
		p := started(t, t.TempDir(), script)
		p.URL = "http://" + address
		logged(t, p, "no such flag\n")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := p.AwaitReady(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "no such flag") {
			t.Errorf("%s: %v", script, err)
		}
	}
}

func TestCPU_CountsTheWorkOfEachProcess(t *testing.T) {
	busy, idle := started(t, t.TempDir(), "while :; do :; done"), started(t, t.TempDir(), "exec sleep 60")
	for range 1000 {
		if busy.CPU() >= 200*time.Millisecond {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if work := busy.CPU(); work < 200*time.Millisecond || CPU(busy.PID(), idle.PID()) < work {
		t.Errorf("a busy process has %v of CPU time", work)
	}
	if work := idle.CPU(); work > 100*time.Millisecond {
		t.Errorf("an idle process has %v of CPU time", work)
	}
	if work := CPU(1<<30, 1<<30); work != 0 {
		t.Errorf("processes that do not exist have %v of CPU time", work)
	}
}

func TestPinned_RunsOnOneProcessor(t *testing.T) {
	if _, err := exec.LookPath("taskset"); err != nil {
		t.Skip("there is no taskset")
	}
	args := Pinned(0, "grep", "Cpus_allowed_list", "/proc/self/status")
	out, err := Command(args...).Output()
	if fields := strings.Fields(string(out)); err != nil || len(fields) != 2 || fields[1] != "0" {
		t.Errorf("%q, %v", out, err)
	}
}
