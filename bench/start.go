package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"
)

// starts compares the time from the start of a program to a model trained on one
// image at level 1, which is five steps: the fixed cost of a training.
func starts(ctx context.Context, o options, python, dir string) error {
	folder := filepath.Join(dir, "single")
	if err := augmented(folder, 1, trainedWidth, trainedHeight); err != nil {
		return err
	}
	side := strconv.Itoa(trainedSide)
	var ours, theirs series
	for range o.rounds {
		for _, c := range []struct {
			into *series
			name string
			args []string
		}{
			{&ours, "bin/anomaly", []string{"train", folder, "--level", "1", "--image-size", side, "--out", filepath.Join(dir, "single.zip"), "--force", "--quiet"}},
			{&theirs, python, []string{"bench/peer_train.py", folder, "--level", "1", "--image-size", side, "--out", filepath.Join(dir, "single-peer")}},
		} {
			started := time.Now()
			if _, err := output(ctx, c.name, c.args...); err != nil {
				return err
			}
			*c.into = append(*c.into, time.Since(started).Seconds())
		}
	}
	t := table("COLD START", "seconds")
	fmt.Fprintf(t, "ours\t%v\nPython recipe\t%v\nratio\t%.2f\n\n", ours, theirs, theirs.median()/ours.median())
	return t.Flush()
}
