package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

// profileRuns is the number of runs; the fastest of each operator counts.
const profileRuns = 20

// profile prints the time of the operators in the gradient of one micro-batch, on one
// thread like in a training.
func profile(ctx context.Context, side, batch, dir string) error {
	pixels, err := strconv.Atoi(side)
	if err != nil {
		return err
	}
	images, err := strconv.Atoi(batch)
	if err != nil {
		return err
	}
	n := trainer.MicroBatches(images, pixels, pixels)[0]
	arch := models.DefaultArchitecture()
	m, err := exporter.GradientModel(arch, n, pixels, pixels, exporter.Processor)
	if err != nil {
		return err
	}
	engine, err := ort.Open(ort.Options{})
	if err != nil {
		return err
	}
	prefix := filepath.Join(dir, "profile-"+side)
	session, err := engine.NewSession(m.ONNX, m.Inputs, m.Outputs, ort.SessionOptions{Threads: 1, Kernels: m.Kernels, Profile: prefix})
	if err != nil {
		return err
	}
	defer session.Close()
	var in, out []*ort.Tensor
	tensor := func(to *[]*ort.Tensor, shape ...int) {
		var t *ort.Tensor
		if t, err = ort.NewTensor(shape...); err == nil {
			*to = append(*to, t)
		}
	}
	tensor(&in, n, models.InputChannels, pixels, pixels)
	tensor(&in, 1)
	tensor(&out, 1)
	for _, p := range arch.Parameters() {
		tensor(&in, p.Shape...)
		tensor(&out, p.Shape...)
	}
	tensor(&in, 1) // the version
	if err != nil {
		return err
	}
	for i, v := range network.InitialWeights(arch.Parameters(), streams.New(0, streams.Weights)) {
		copy(in[2+i].Data(), v.Data)
	}
	for i := range in[0].Data() {
		in[0].Data()[i] = float32(i%251) / 250
	}
	in[1].Data()[0] = 1
	for i := range profileRuns {
		in[len(in)-1].Data()[0] = float32(i) // each run is the first micro-batch of a step
		if err := session.Run(ctx, in, out); err != nil {
			return err
		}
	}
	session.Close() // writes the profile
	for _, t := range slices.Concat(in, out) {
		t.Close()
	}
	found, err := filepath.Glob(prefix + "*.json")
	if err != nil || len(found) != 1 {
		return errors.Join(err, fmt.Errorf("profiles %v, expected one", found))
	}
	data, err := os.ReadFile(found[0])
	if err != nil {
		return err
	}
	var events []struct {
		Cat, Name string
		Dur       float64 // µs
		Args      struct {
			Op string `json:"op_name"`
		}
	}
	if err := json.Unmarshal(data, &events); err != nil {
		return err
	}
	type node struct{ op, name string }
	fastest := map[node]float64{}
	for _, e := range events {
		if k := (node{e.Args.Op, e.Name}); e.Cat == "Node" && e.Args.Op != "" {
			if _, ok := fastest[k]; !ok {
				fastest[k] = math.Inf(1)
			}
			fastest[k] = min(fastest[k], e.Dur/1e3)
		}
	}
	took, count, all := map[string]float64{}, map[string]int{}, 0.0
	for k, ms := range fastest {
		took[k.op] += ms
		count[k.op]++
		all += ms
	}
	t := table(fmt.Sprintf("OPERATORS, %s px, micro-batch of %d", side, n), "ms", "share", "nodes")
	for _, op := range slices.SortedFunc(maps.Keys(took), func(a, b string) int { return int(math.Copysign(1, took[b]-took[a])) }) {
		fmt.Fprintf(t, "%s\t%.2f\t%.1f %%\t%d\n", op, took[op], 100*took[op]/all, count[op])
	}
	fmt.Fprintf(t, "all\t%.2f\t\t%d\n\n", all, len(fastest))
	return t.Flush()
}
