package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
)

// backbonePasses is the number of forward passes of a measurement.
const backbonePasses = 20

// backbones compares the backbone's forward pass of one 256 px image with our
// operators, with ONNX Runtime's operators, and in PyTorch in both of its memory
// layouts, on one and two threads.
func backbones(ctx context.Context, o options, python, _ string) error {
	fmt.Printf("%-24s  %-20s  %-20s  %-22s  %-24s  %s\n", "BACKBONE, 256 px", "ours, ms", "ONNX Runtime, ms", "PyTorch contiguous, ms", "PyTorch channels last, ms", "ratio to the better")
	for _, threads := range []int{1, 2} {
		ours, err := newBackbonePass(threads, exporter.Processor)
		if err != nil {
			return err
		}
		defer ours.close()
		own, err := newBackbonePass(threads, exporter.Portable)
		if err != nil {
			return err
		}
		defer own.close()
		peer, err := startBackbonePeer(ctx, python)
		if err != nil {
			return err
		}
		var mine, theirs series
		torch := make([]series, len(layouts))
		for range o.rounds {
			for _, side := range []struct {
				pass *backbonePass
				to   *series
			}{{ours, &mine}, {own, &theirs}} {
				s, err := times(backbonePasses, func() error { return side.pass.run(ctx) })
				if err != nil {
					return err
				}
				*side.to = append(*side.to, s.median())
			}
			for i, layout := range layouts {
				ms, err := peer.pass(256, layout, threads)
				if err != nil {
					return err
				}
				torch[i] = append(torch[i], ms)
			}
		}
		peer.close()
		best := theirs
		for _, s := range torch {
			if s.median() < best.median() {
				best = s
			}
		}
		fmt.Printf("%-24s  %-20s  %-20s  %-22s  %-24s  %s\n", fmt.Sprintf("%d thread(s), one image", threads), mine, theirs, torch[0], torch[1], best.over(mine).fine())
	}
	fmt.Println()
	return nil
}

// backbonePass is a session of the backbone with its input and outputs.
type backbonePass struct {
	session *ort.Session
	image   *ort.Tensor
	maps    []*ort.Tensor
}

func newBackbonePass(threads int, with exporter.Operators) (*backbonePass, error) {
	engine, err := ort.Open(ort.Options{Threads: threads})
	if err != nil {
		return nil, err
	}
	var blocks []int
	for _, t := range models.HeadTaps() {
		blocks = append(blocks, t.Block)
	}
	m, err := exporter.FeaturesModel(256, backbone.Lite0(), blocks, with)
	if err != nil {
		return nil, err
	}
	p := &backbonePass{}
	if p.session, err = engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: threads, Kernels: m.Kernels, Spin: true}); err != nil {
		return nil, err
	}
	if p.image, err = ort.NewTensor(1, models.InputChannels, 256, 256); err != nil {
		return nil, err
	}
	for i := range p.image.Data() {
		p.image.Data()[i] = float32(i%251) / 250
	}
	for _, t := range models.HeadTaps() {
		x, err := ort.NewTensor(1, t.Channels, t.Patches(models.Square(256)).H, t.Patches(models.Square(256)).W)
		if err != nil {
			return nil, err
		}
		p.maps = append(p.maps, x)
	}
	return p, nil
}

func (p *backbonePass) run(ctx context.Context) error {
	return p.session.Run(ctx, []*ort.Tensor{p.image}, p.maps)
}

func (p *backbonePass) close() {
	p.session.Close()
	for _, t := range slices.Concat([]*ort.Tensor{p.image}, p.maps) {
		t.Close()
	}
}

// backbonePeer is a PyTorch process that runs forward passes on request. It must be
// closed.
type backbonePeer struct {
	cmd    *exec.Cmd
	ask    func(line string) error
	end    func() error
	answer *json.Decoder
}

func startBackbonePeer(ctx context.Context, python string) (*backbonePeer, error) {
	p := &backbonePeer{cmd: exec.CommandContext(ctx, python, "bench/peer_backbone.py")}
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.ask = func(line string) error { _, err := strings.NewReader(line).WriteTo(in); return err }
	p.end = in.Close
	p.answer = json.NewDecoder(out)
	return p, p.cmd.Start()
}

// pass returns the milliseconds of PyTorch's median forward pass.
func (p *backbonePeer) pass(side int, layout string, threads int) (float64, error) {
	if err := p.ask(fmt.Sprintln(side, layout, threads, backbonePasses)); err != nil {
		return 0, fmt.Errorf("requesting a forward pass from PyTorch: %w", err)
	}
	var a struct {
		MS float64 `json:"ms"`
	}
	if err := p.answer.Decode(&a); err != nil {
		return 0, fmt.Errorf("reading PyTorch's answer: %w", err)
	}
	return a.MS, nil
}

func (p *backbonePeer) close() {
	_ = p.end()
	_ = p.cmd.Wait()
}
