// Command cluster answers how many machines the service needs. It measures service times
// on this machine, simulates clusters from them (package sim), and compares the
// simulation with a small cluster of real processes.
//
//	go run ./bench/cluster measure     write the service times to measured.json
//	go run ./bench/cluster plan        print the tables of docs/scaling.md
//	go run ./bench/cluster validate    compare the simulation with real processes
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
)

const usage = `usage: go run ./bench/cluster COMMAND [flags]

commands:
  measure    measure service times and write them to a file (about 3 minutes)
  plan       simulate clusters from the file and print how many machines are needed (3 minutes)
  validate   start real processes and compare them with the simulation (8 minutes)

Run it in the repository's root, measure and validate on an otherwise idle machine.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("no command")
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	file := f.String("file", "bench/cluster/measured.json", "file of service times")
	tiles := f.String("tiles", "testdata/tiles", "folder with images, train/good and test/good")
	sides := f.String("sides", "128,256,384", "image sides to measure")
	requests := f.Int("requests", 300, "requests of each measurement")
	side := f.Int("side", 256, "image side of plan and validate")
	part := f.String("part", "", "run a part of plan: detections, bulk or trainings")
	seconds := f.Float64("seconds", 25, "time of each load of validate")
	seed := f.Int64("seed", 1, "seed of arrivals and simulations")
	commands := map[string]func() error{
		"measure": func() error {
			return inFolder(ctx, *tiles, func(b *bench) error {
				var list []int
				for s := range strings.SplitSeq(*sides, ",") {
					n, err := strconv.Atoi(s)
					if err != nil {
						return fmt.Errorf("--sides: %w", err)
					}
					list = append(list, n)
				}
				m, err := b.measure(ctx, list, *requests, "go run ./bench/cluster "+strings.Join(args, " "))
				if err != nil {
					return err
				}
				return m.write(*file)
			})
		},
		"plan": func() error {
			m, err := readMeasured(*file)
			if err != nil {
				return err
			}
			return plan(os.Stdout, m, *side, *seed, *part)
		},
		"validate": func() error {
			return inFolder(ctx, *tiles, func(b *bench) error { return b.validate(ctx, *side, *seconds, *seed) })
		},
	}
	command := commands[args[0]]
	if command == nil {
		fmt.Fprint(os.Stderr, usage)
		return fmt.Errorf("unknown command %q", args[0])
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	return command()
}

// inFolder runs a measurement with a folder that is removed afterwards.
func inFolder(ctx context.Context, tiles string, do func(*bench) error) error {
	dir, err := os.MkdirTemp("", "anomaly-cluster-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := newBench(ctx, dir, tiles)
	if err != nil {
		return err
	}
	return do(b)
}
