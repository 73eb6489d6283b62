package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

var imagesPerSecond = regexp.MustCompile(`([0-9.e+]+) images/s`)

// steps compares one training step, ours against PyTorch's in the better of its
// two memory layouts.
func steps(ctx context.Context, o options, python, dir string) error {
	test := filepath.Join(dir, "trainer.test")
	if _, err := output(ctx, "go", "test", "-c", "-o", test, "./trainer"); err != nil {
		return err
	}
	t := table("TRAINING STEP", "ours, images/s", "PyTorch contiguous", "PyTorch channels last", "ratio to the better")
	for _, side := range o.sides {
		for _, batch := range o.batches {
			var ours series
			theirs := map[string]series{}
			for range o.rounds {
				out, err := output(ctx, test, "-test.run", "^$", "-test.benchtime", fmt.Sprintf("%dx", o.steps),
					"-test.bench", fmt.Sprintf("Step/side=%s/batch=%s$", side, batch))
				if err != nil {
					return err
				}
				m := imagesPerSecond.FindStringSubmatch(out)
				if m == nil {
					return fmt.Errorf("no images/s in %q", out)
				}
				v, err := strconv.ParseFloat(m[1], 64)
				if err != nil {
					return err
				}
				ours = append(ours, v)
				if err := peerStep(ctx, python, side, batch, o.steps, theirs); err != nil {
					return err
				}
			}
			plain, last := theirs["contiguous"], theirs["channels_last"]
			fmt.Fprintf(t, "%s px, batch %s\t%v\t%v\t%v\t%.2f\n", side, batch, ours, plain, last,
				ours.median()/max(plain.median(), last.median()))
		}
	}
	fmt.Fprintln(t)
	return t.Flush()
}

func peerStep(ctx context.Context, python, side, batch string, steps int, into map[string]series) error {
	out, err := output(ctx, python, "bench/peer_step.py", "--sides", side, "--batches", batch, "--rounds", "1", "--steps", strconv.Itoa(steps))
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		var r struct {
			Layout  string
			PerSecs float64 `json:"images_per_s"`
		}
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			return err
		}
		into[r.Layout] = append(into[r.Layout], r.PerSecs)
	}
	return nil
}
