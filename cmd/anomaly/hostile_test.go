package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
)

func TestDetect_RejectsHostileModelsInOneSentence(t *testing.T) {
	dir, temp := t.TempDir(), t.TempDir()
	canary := filepath.Join(temp, "canary")
	image := tileFiles(t, "test/good", 1)[0]
	files := hostile.Models(canary)
	if len(files) < 60 {
		t.Errorf("only %d files", len(files))
	}
	for i, f := range files {
		t.Run(string(f.Class)+"/"+f.Name, func(t *testing.T) {
			model := write(t, dir, fmt.Sprint(i, ".model"), f.Data)
			for _, args := range [][]string{{"inspect", model}, {"detect", "--model", model, image}} {
				c := command(t, args...)
				c.Env = append(slices.Clone(c.Env), "TMPDIR="+temp)
				r := finish(t, c)
				r.refused(t, filepath.Base(model))
				for _, trace := range []string{"goroutine", ".go:", "panic"} {
					if strings.Contains(r.stderr, trace) {
						t.Errorf("%s prints internals: %.500s", args[0], r.stderr)
					}
				}
				if len(r.stderr) > 1000 {
					t.Errorf("%s prints %d bytes: %.500s", args[0], len(r.stderr), r.stderr)
				}
			}
			if left := names(t, temp); len(left) != 0 {
				t.Errorf("left over: %v", left)
			}
		})
	}
	if n := len(names(t, dir)); n != len(files) {
		t.Errorf("%d models, and %d other files", len(files), n-len(files))
	}
}
