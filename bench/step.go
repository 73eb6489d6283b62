package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
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
	// A row as soon as it is measured: all take many minutes.
	const row = "%-17s  %-22s  %-22s  %-22s  %s\n"
	fmt.Printf(row, "TRAINING STEP", "ours, images/s", "PyTorch contiguous", "PyTorch channels last", "ratio to the better")
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
			fmt.Printf(row, side+" px, batch "+batch, ours, plain, last,
				fmt.Sprintf("%.2f", ours.median()/max(plain.median(), last.median())))
		}
	}
	fmt.Println()
	if !o.profile {
		return nil
	}
	for _, side := range o.sides {
		if err := profile(ctx, side, o.batches[0], dir); err != nil {
			return err
		}
	}
	return nil
}

// device is where both sides compute the step.
func device() string { return cmp.Or(os.Getenv("ANOMALY_BENCH_PROVIDER"), "cpu") }

func peerStep(ctx context.Context, python, side, batch string, steps int, into map[string]series) error {
	out, err := output(ctx, python, "bench/peer_step.py", "--sides", side, "--batches", batch, "--rounds", "1", "--steps", strconv.Itoa(steps), "--device", device())
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
