package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

var imagesPerSecond = regexp.MustCompile(`([0-9.e+]+) images/s`)

// steps compares a training step with PyTorch's in the faster of its two memory
// layouts.
func steps(ctx context.Context, o options, python, dir string) error {
	test := filepath.Join(dir, "trainer.test")
	if _, err := output(ctx, "go", "test", "-c", "-o", test, "./trainer"); err != nil {
		return err
	}
	peer, err := startStepPeer(ctx, python)
	if err != nil {
		return err
	}
	defer peer.Close()
	// Print each row as soon as it is measured: all rows take many minutes.
	const row = "%-17s  %-22s  %-22s  %-22s  %s\n"
	fmt.Printf(row, "TRAINING STEP", "ours, images/s", "PyTorch contiguous", "PyTorch channels last", "ratio to the better")
	for _, side := range o.sides {
		for _, batch := range o.batches {
			var ours series
			theirs := make([]series, len(layouts))
			for range o.rounds {
				v, err := ownStep(ctx, test, side, batch, o.steps)
				if err != nil {
					return err
				}
				ours = append(ours, v)
				for i, layout := range layouts {
					if v, err = peer.step(side, batch, layout, o.steps); err != nil {
						return err
					}
					theirs[i] = append(theirs[i], v)
				}
			}
			best := theirs[0]
			if theirs[1].median() > best.median() {
				best = theirs[1]
			}
			fmt.Printf(row, side+" px, batch "+batch, ours, theirs[0], theirs[1], ours.over(best).fine())
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

// device returns the device on which both sides compute the step.
func device() string { return cmp.Or(os.Getenv("ANOMALY_BENCH_PROVIDER"), "cpu") }

// ownStep returns the images per second of our median step.
func ownStep(ctx context.Context, test, side, batch string, steps int) (float64, error) {
	out, err := output(ctx, test, "-test.run", "^$", "-test.benchtime", fmt.Sprintf("%dx", steps),
		"-test.bench", fmt.Sprintf("Step/side=%s/batch=%s$", side, batch))
	if err != nil {
		return 0, err
	}
	m := imagesPerSecond.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("no images/s in %q", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// layouts are PyTorch's memory layouts.
var layouts = [...]string{"contiguous", "channels_last"}

// stepPeer is a PyTorch process that runs steps on request. It must be closed.
type stepPeer struct {
	cmd    *exec.Cmd
	ask    io.WriteCloser
	answer *json.Decoder
}

func startStepPeer(ctx context.Context, python string) (*stepPeer, error) {
	p := &stepPeer{cmd: exec.CommandContext(ctx, python, "bench/peer_step.py", "--device", device())}
	p.cmd.Stderr = os.Stderr
	var err error
	if p.ask, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.answer = json.NewDecoder(out)
	return p, p.cmd.Start()
}

// step returns the images per second of PyTorch's median step.
func (p *stepPeer) step(side, batch, layout string, steps int) (float64, error) {
	if _, err := fmt.Fprintln(p.ask, side, batch, layout, steps); err != nil {
		return 0, fmt.Errorf("requesting a step from PyTorch: %w", err)
	}
	var a struct {
		PerSecond float64 `json:"images_per_s"`
	}
	if err := p.answer.Decode(&a); err != nil {
		return 0, fmt.Errorf("reading PyTorch's answer: %w", err)
	}
	return a.PerSecond, nil
}

// Close ends the process.
func (p *stepPeer) Close() {
	_ = p.ask.Close()
	_ = p.cmd.Wait()
}
