package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

// errFloor is returned when a mean AUROC is below its floor.
var errFloor = errors.New("the AUROC is below the floor")

// floors is the minimum mean AUROC of data sets at level 1 and 256 px, by folder name:
// what was measured (0.850, 0.924, 0.860, 0.996 and 0.744; docs/quality.txt) with a
// margin.
var floors = map[string]float64{
	"magnetic_tile": 0.83,
	"mnist_digit8":  0.90,
	"weave":         0.83,
	"flange":        0.97,
	"panel":         0.72,
}

// configuration is a training level and an image side.
type configuration struct{ level, side int }

func (c configuration) String() string { return fmt.Sprintf("%d@%d", c.level, c.side) }

// planned is a configuration and its number of seeds.
type planned struct {
	configuration
	seeds int
}

var plannedText = regexp.MustCompile(`^([1-5])@(\d{2,4})(?:x(\d{1,3}))?$`)

// parsePlan parses a list such as "1@128x3,5@256": level 1 at 128 px with three seeds,
// and level 5 at 256 px with one.
func parsePlan(text string) ([]planned, error) {
	var out []planned
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		m := plannedText.FindStringSubmatch(part)
		if m == nil {
			return nil, fmt.Errorf("invalid configuration %q: expected LEVEL@SIDE or LEVEL@SIDExSEEDS, such as 1@128x3", part)
		}
		var n [3]int
		for i, s := range m[1:] {
			if s != "" {
				n[i], _ = strconv.Atoi(s) // at most four digits
			}
		}
		p := planned{configuration{n[0], n[1]}, max(n[2], 1)}
		if _, _, err := (trainer.Options{Level: p.level, ImageSize: p.side}).Settle(); err != nil {
			return nil, fmt.Errorf("%q: %w", part, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// measured is one training and its results: a line of the file.
type measured struct {
	Program string `json:"program"`
	Date    string `json:"date"`
	Set     string `json:"set"`
	Folder  string `json:"folder"`
	// Recipe reports whether the training is the Python service's.
	Recipe bool  `json:"recipe"`
	Level  int   `json:"level"`
	Side   int   `json:"image_size"`
	Seed   int64 `json:"seed"`
	*evaluation.Result
	Seconds map[string]float64 `json:"seconds"`
}

// same reports whether another row is of the same measurement.
func (m measured) same(o measured) bool {
	return m.Program == o.Program && m.Folder == o.Folder && m.Recipe == o.Recipe && m.Level == o.Level && m.Side == o.Side && m.Seed == o.Seed
}

// measuring is the options of `measure`.
type measuring struct {
	plan, recipe   string
	generated, out string
	drawn          drawing
	floors, brief  bool
}

func measureCommand() *cobra.Command {
	m := measuring{drawn: standard}
	c := &cobra.Command{
		Use:   "measure [DATASET...]",
		Short: "Measure how well defects are detected, compared with the Python service's recipe",
		Long: "Trains and evaluates on each data set and on generated ones, and appends a JSON line to --out after each\n" +
			"measurement. Measurements of the same program are reused. The recipe runs with the Python in BENCH_PYTHON.",
		RunE: func(c *cobra.Command, args []string) error {
			return m.run(c.Context(), args, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&m.plan, "configurations", "1@256x3,3@256x3,1@384", "configurations: level@pixels, optionally followed by x and the number of seeds")
	f.StringVar(&m.recipe, "recipe", "3@128", "configurations of the Python service's recipe; empty for none")
	f.StringVar(&m.generated, "generated", ".cache/quality", "generate data sets in this folder and measure on them, too; empty for none")
	f.StringVar(&m.out, "out", ".cache/quality/rows.jsonl", "append JSON lines to this file")
	f.BoolVar(&m.brief, "brief", false, "stop our trainings after the first step: the verdicts are the same, the times are not")
	f.BoolVar(&m.floors, "floors", false, "fail if the AUROC of a data set is below its floor")
	return c
}

func (m *measuring) run(ctx context.Context, sets []string, out, log io.Writer) error {
	ours, err := parsePlan(m.plan)
	if err != nil {
		return err
	}
	recipe, err := parsePlan(m.recipe)
	if err != nil {
		return err
	}
	python := os.Getenv("BENCH_PYTHON")
	if len(recipe) > 0 && python == "" {
		return errors.New("BENCH_PYTHON is not set, but the recipe needs it; run `make quality`, or use --recipe ''")
	}
	if m.generated != "" {
		drawn, err := generate(ctx, m.generated, m.drawn)
		if err != nil {
			return err
		}
		sets = append(slices.Clone(sets), drawn...)
	}
	program, err := fingerprint()
	if err != nil {
		return err
	}
	done, err := read[measured](m.out)
	if err != nil {
		return err
	}
	e, err := ort.Open(ort.Options{})
	if err != nil {
		return err
	}
	var rows []measured
	for _, folder := range sets {
		folder, err := filepath.Abs(folder)
		if err != nil {
			return err
		}
		for _, who := range []struct {
			recipe bool
			plan   []planned
		}{{false, ours}, {true, recipe}} {
			for _, p := range who.plan {
				for seed := range p.seeds {
					row := measured{Program: program, Date: time.Now().Format(time.DateOnly), Set: filepath.Base(folder), Folder: folder,
						Recipe: who.recipe, Level: p.level, Side: p.side, Seed: int64(seed)}
					if i := slices.IndexFunc(done, row.same); i >= 0 {
						rows = append(rows, done[i])
						continue
					}
					if who.recipe {
						err = row.peer(ctx, python)
					} else {
						err = row.measure(ctx, e, m.brief)
					}
					if err != nil {
						return err
					}
					fmt.Fprintln(log, row)
					if err := appendTo(m.out, row); err != nil {
						return err
					}
					rows = append(rows, row)
				}
			}
		}
	}
	all := summarize(rows)
	if err := printTable(out, all); err != nil {
		return err
	}
	if m.floors {
		return checkFloors(all)
	}
	return nil
}

// String returns a line of progress.
func (m measured) String() string {
	who := ""
	if m.Recipe {
		who = ", the recipe"
	}
	return fmt.Sprintf("%s, level %d, %d px, seed %d%s: AUROC %.3f, false alarms %.1f %%, %.0f s", m.Set, m.Level, m.Side, m.Seed, who,
		m.Mean.AUROC, m.FalseAlarmsPercent(), m.Seconds["training"]+m.Seconds["detection"])
}

// measure trains, fully or briefly, and evaluates.
func (m *measured) measure(ctx context.Context, e *ort.Engine, brief bool) error {
	s, err := evaluation.Open(m.Folder)
	if err != nil {
		return err
	}
	o := trainer.Options{Level: m.Level, ImageSize: m.Side, Seed: m.Seed}
	l, err := train(ctx, e, filepath.Join(m.Folder, evaluation.TrainFolder), o, brief)
	if err != nil {
		return err
	}
	m.Seconds = l.seconds
	return judge(e, l.model, func(d *inference.Detector) error {
		began := time.Now()
		m.Result, err = evaluation.Evaluate(ctx, d, s, e.Threads())
		m.Seconds["detection"] = time.Since(began).Seconds()
		return err
	})
}

// peer trains and evaluates the recipe.
func (m *measured) peer(ctx context.Context, python string) error {
	cmd := exec.CommandContext(ctx, python, "bench/peer_quality.py", m.Folder,
		"--level", strconv.Itoa(m.Level), "--image-size", strconv.Itoa(m.Side), "--seed", strconv.FormatInt(m.Seed, 10))
	var log strings.Builder
	cmd.Stderr = &log
	data, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("measuring the recipe on %s: %w\n%s", m.Folder, err, log.String())
	}
	var answer struct {
		*evaluation.Result
		Seconds map[string]float64
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return fmt.Errorf("measuring the recipe on %s: %w", m.Folder, err)
	}
	m.Result, m.Seconds = answer.Result, answer.Seconds
	return nil
}
