package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// lossSeeds is the number of seeds of each side.
const lossSeeds = 3

// losses compares the loss curves at level 2 on the normal tiles. The two sides have
// different initial weights.
func losses(ctx context.Context, o options, python, dir string) error {
	normal := filepath.Join(o.tiles, "train", "good")
	var ours, theirs [][]float64
	for seed := 1; seed <= lossSeeds; seed++ {
		bundle := filepath.Join(dir, fmt.Sprintf("losses-%d.zip", seed))
		if _, err := output(ctx, "bin/anomaly", "train", normal, "--level", "2", "--image-size", "128",
			"--seed", strconv.Itoa(seed), "--out", bundle, "--quiet"); err != nil {
			return err
		}
		out, err := output(ctx, "bin/anomaly", "inspect", "--json", bundle)
		if err != nil {
			return err
		}
		var model struct {
			Metadata struct {
				Losses []float64 `json:"training_losses"`
			}
		}
		if err := json.Unmarshal([]byte(out), &model); err != nil {
			return err
		}
		ours = append(ours, model.Metadata.Losses)
		cmd := exec.CommandContext(ctx, python, "bench/peer_train.py", normal, "--level", "2", "--image-size", "128", "--seed", strconv.Itoa(seed))
		cmd.Stderr = os.Stderr
		peer, err := cmd.Output()
		if err != nil {
			return err
		}
		var metadata struct {
			Losses []float64 `json:"losses"`
		}
		if err := json.Unmarshal(peer, &metadata); err != nil {
			return err
		}
		theirs = append(theirs, metadata.Losses)
	}
	t := table("LOSS, level 2, 128 px", "ours, 3 seeds", "PyTorch, 3 seeds")
	for epoch := range ours[0] {
		at := func(runs [][]float64) string {
			s := ""
			for _, r := range runs {
				s += fmt.Sprintf("%.5f ", r[epoch])
			}
			return s
		}
		fmt.Fprintf(t, "epoch %d\t%s\t%s\n", epoch+1, at(ours), at(theirs))
	}
	fmt.Fprintln(t)
	return t.Flush()
}
