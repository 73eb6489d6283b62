package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommands_CheckTheEngineFlags(t *testing.T) {
	out := filepath.Join(t.TempDir(), "model.zip")
	for _, args := range [][]string{
		{"serve", "--addr", "127.0.0.1:0"},
		{"train", filepath.Join(tiles, "train/good"), "--out", out},
	} {
		run(t, append(args, "--onnxruntime", "/nowhere")...).refused(t, "--onnxruntime names /nowhere", "make runtime")
		run(t, append(args, "--provider", "abacus")...).refused(t, "abacus", "auto, cpu or cuda")
	}
	c := command(t, "detect", "--model", smallModel(t), tileFiles(t, "test/good", 1)[0])
	c.Env = append(c.Env, "ANOMALY_ONNXRUNTIME=/nowhere")
	finish(t, c).refused(t, "ANOMALY_ONNXRUNTIME names /nowhere")
}

func TestDetect_RejectsCUDAThatIsMissing(t *testing.T) {
	// A folder with a copy of the library alone has no CUDA provider, whatever this
	// machine has.
	s := serve(t, nil, "--addr", "127.0.0.1:0")
	var listening struct{ Library string }
	for line := range strings.SplitSeq(s.log.String(), "\n") {
		if strings.Contains(line, `"listening"`) {
			if err := json.Unmarshal([]byte(line), &listening); err != nil {
				t.Fatal(err)
			}
		}
	}
	library := write(t, t.TempDir(), filepath.Base(listening.Library), read(t, listening.Library))
	good := tileFiles(t, "test/good", 1)[0]
	run(t, "detect", "--model", smallModel(t), "--onnxruntime", library, "--provider", "cuda", good).
		refused(t, "cuda was asked for", "libonnxruntime_providers_cuda.so", "--provider cpu")
	if r := run(t, "detect", "--model", smallModel(t), "--onnxruntime", library, "--provider", "auto", "--json", good); r.status == exitError {
		t.Errorf("auto: exit %d: %s", r.status, r.stderr)
	}
}

func TestHelp_NeedsNoLibrary(t *testing.T) {
	c := command(t, "help")
	c.Env = append(c.Env, "ANOMALY_ONNXRUNTIME=/nowhere")
	if r := finish(t, c); r.status != exitNormal || !strings.Contains(r.stdout, "serve") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	run(t, "dance").refused(t, "dance")
}
