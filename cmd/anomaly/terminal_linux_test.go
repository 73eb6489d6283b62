package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// onTerminal runs the binary with a pseudo terminal as standard error. It returns the
// standard output, and what the terminal received.
func onTerminal(t *testing.T, args ...string) (status int, stdout, terminal string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	defer master.Close()
	var locked, number int32
	for request, value := range map[uintptr]*int32{syscall.TIOCSPTLCK: &locked, syscall.TIOCGPTN: &number} {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Skipf("no pseudo terminals: %v", errno)
		}
	}
	slave, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo terminals: %v", err)
	}
	c := command(t, args...)
	var out, drawn bytes.Buffer
	c.Stdout, c.Stderr = &out, slave
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	_, _ = io.Copy(&drawn, master) // ends with EIO when the command has ended
	_ = c.Wait()                   // the status is returned
	return c.ProcessState.ExitCode(), out.String(), drawn.String()
}

func TestDetect_DrawsItsProgressOnATerminal(t *testing.T) {
	status, stdout, terminal := onTerminal(t, "detect", "--model", smallModel(t), filepath.Join(tiles, "test/good"))
	if status == exitError || !strings.Contains(stdout, "20 images: ") || strings.Contains(stdout, "%") || !strings.Contains(terminal, "%") {
		t.Errorf("exit %d, stdout %q, terminal %q", status, stdout, terminal)
	}
}

func TestTrain_PrintsItsStagesOnATerminal(t *testing.T) {
	out := filepath.Join(t.TempDir(), "model.zip")
	status, _, terminal := onTerminal(t, "train", filepath.Join(tiles, "train/good"), "--level", "1", "--image-size", "16", "--out", out)
	at := -1
	for _, words := range []string{"reading images\r\n", "extracting features\r\n", "epoch 1/5", "calibrating\r\n", "trained on"} {
		i := strings.Index(terminal, words)
		if i < at || i < 0 {
			t.Errorf("%q is at %d, after %d", words, i, at)
		}
		at = i
	}
	if status != exitNormal || strings.Contains(terminal, "training the autoencoder") {
		t.Errorf("exit %d, terminal %q", status, terminal)
	}
}
