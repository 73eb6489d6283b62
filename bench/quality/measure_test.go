package main

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

func TestParsePlan_ParsesConfigurations(t *testing.T) {
	for text, want := range map[string][]planned{
		"":                   nil,
		"1@128":              {{configuration{1, 128}, 1}},
		"1@128x3,5@256":      {{configuration{1, 128}, 3}, {configuration{5, 256}, 1}},
		"3@64x0":             {{configuration{3, 64}, 1}},
		"2@1024x12,,4@32x1,": {{configuration{2, 1024}, 12}, {configuration{4, 32}, 1}},
	} {
		if got, err := parsePlan(text); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v, expected %v", text, got, err, want)
		}
	}
	for _, text := range []string{"6@128", "1@130", "1@8", "1", "1@128y3", "1@2048", " 1@128"} {
		if got, err := parsePlan(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestAppendTo_RepairsAnInterruptedLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "deep", "rows.jsonl")
	if rows, err := read[ablated](file); rows != nil || err != nil {
		t.Fatalf("%v, %v for a missing file", rows, err)
	}
	first, second := ablated{Ablation: "a", AUROC: 0.5}, ablated{Ablation: "b", AUROC: 0.75}
	if err := appendTo(file, first); err != nil {
		t.Fatal(err)
	}
	// A killed run leaves an incomplete line.
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"program":"x","ablation":"a very long name that goes on and on, and on, and on, and on, and on, and on, and on, and on`); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if rows, err := read[ablated](file); err != nil || !reflect.DeepEqual(rows, []ablated{first}) {
		t.Errorf("%v, %v", rows, err)
	}
	if err := appendTo(file, second); err != nil {
		t.Fatal(err)
	}
	if rows, err := read[ablated](file); err != nil || !reflect.DeepEqual(rows, []ablated{first, second}) {
		t.Errorf("%v, %v", rows, err)
	}
	if err := os.WriteFile(file, []byte("no JSON\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := read[ablated](file); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("malformed line: %v", err)
	}
}

// row returns a measurement with one kind of defect.
func row(set string, recipe bool, seed int64, auroc float64) measured {
	f := evaluation.Figures{Name: "hole", Images: 3, AUROC: auroc, Hits: auroc / 2, Pixels: &evaluation.PixelFigures{AUROC: auroc, PRO: auroc / 3}}
	mean := f
	mean.Name = "mean"
	return measured{Set: set, Folder: "/" + set, Recipe: recipe, Level: 1, Side: 128, Seed: seed,
		Result: &evaluation.Result{FalseAlarms: auroc / 10, Defects: []evaluation.Figures{f}, Mean: mean}, Seconds: map[string]float64{"training": 10 * auroc}}
}

func TestSummarize_GroupsSeeds(t *testing.T) {
	all := summarize([]measured{row("weave", false, 0, 0.8), row("weave", false, 1, 0.9), row("weave", true, 0, 0.4), row("panel", false, 0, 1)})
	if len(all) != 3 {
		t.Fatalf("%d summaries", len(all))
	}
	near := func(a, b float64) bool { return math.Abs(a-b) < 1e-12 }
	s := all[0]
	m := s.mean()
	if s.rows != 2 || !reflect.DeepEqual(m.auroc, []float64{0.8, 0.9}) || !near(m.hits, 0.425) || !near(m.pixelAUROC, 0.85) || !near(m.pro, 0.85/3) ||
		!near(s.falseAlarms, 0.085) || !near(s.seconds["training"], 8.5) {
		t.Errorf("%+v", s)
	}
	var out bytes.Buffer
	if err := printTable(&out, all); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.850", "0.800–0.900", "recipe", "8.5 %"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %s:\n%s", want, out.String())
		}
	}
}

func TestCheckFloors_IgnoresTheRecipe(t *testing.T) {
	floor := floors["magnetic_tile"]
	for name, c := range map[string]struct {
		rows []measured
		low  bool
	}{
		"above":                {[]measured{row("magnetic_tile", false, 0, floor+0.01)}, false},
		"at":                   {[]measured{row("magnetic_tile", false, 0, floor)}, false},
		"below":                {[]measured{row("magnetic_tile", false, 0, floor-0.01)}, true},
		"no number":            {[]measured{row("magnetic_tile", false, 0, math.NaN())}, true},
		"the recipe is below":  {[]measured{row("magnetic_tile", true, 0, 0.4)}, false},
		"a set without floor":  {[]measured{row("mine", false, 0, 0.4)}, false},
		"one of several below": {[]measured{row("weave", false, 0, 1), row("magnetic_tile", false, 0, 0.5)}, true},
		"the mean counts":      {[]measured{row("magnetic_tile", false, 0, floor-0.01), row("magnetic_tile", false, 1, floor+0.02)}, false},
	} {
		if err := checkFloors(summarize(c.rows)); errors.Is(err, errFloor) != c.low {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, s := range scenes {
		if floors[s.name] <= 0.5 {
			t.Errorf("%s has no floor that can fail", s.name)
		}
	}
}

// A second run reuses the results in the file.
func TestMeasuring_ReusesResults(t *testing.T) {
	orttest.Open(t)
	dir := t.TempDir()
	m := measuring{plan: "1@32", generated: filepath.Join(dir, "sets"), out: filepath.Join(dir, "rows.jsonl"),
		drawn: drawing{train: 10, good: 3, defects: 3, side: 48, seed: 1}}
	var first, again, log bytes.Buffer
	if err := m.run(t.Context(), nil, &first, io.Discard); err != nil {
		t.Fatal(err)
	}
	rows, err := read[measured](m.out)
	if err != nil || len(rows) != len(scenes) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for i, r := range rows {
		if r.Set != scenes[i].name || r.Normal != 3 || r.Defects[0].Name != scenes[i].defect || r.Mean.Pixels == nil || r.Seconds["training"] <= 0 {
			t.Errorf("%+v", r)
		}
	}
	if err := m.run(t.Context(), nil, &again, &log); err != nil {
		t.Fatal(err)
	}
	if log.Len() > 0 || again.String() != first.String() {
		t.Errorf("second run: %s%s", log.String(), again.String())
	}
	m.plan = "1@32x2"
	if err := m.run(t.Context(), nil, &again, &log); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(log.String(), "\n"); lines != len(scenes) || !strings.Contains(log.String(), "seed 1") {
		t.Errorf("additional seed: %s", log.String())
	}
}

// Reference statistics and thresholds do not depend on the number of steps.
func TestTrain_BrieflyHasTheSameDecision(t *testing.T) {
	e := orttest.Open(t)
	folder := filepath.Join("../../testdata/tiles", evaluation.TrainFolder)
	o := trainer.Options{Level: 1, ImageSize: 32, Seed: 3}
	whole, err := train(t.Context(), e, folder, o, false)
	if err != nil {
		t.Fatal(err)
	}
	brief, err := train(t.Context(), e, folder, o, true)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := whole.model.Metadata.Training.Steps, brief.model.Metadata.Training.Steps; a <= 1 || b != 1 {
		t.Errorf("%d and %d steps", a, b)
	}
	if !reflect.DeepEqual(whole.model.Metadata.Decision, brief.model.Metadata.Decision) || !reflect.DeepEqual(whole.model.Reference, brief.model.Reference) {
		t.Errorf("%+v and %+v", whole.model.Metadata.Decision, brief.model.Metadata.Decision)
	}
}

// A brief training trains the defect heads of its level.
func TestTrain_BrieflyHasDefectHeads(t *testing.T) {
	l, err := train(t.Context(), orttest.Open(t), filepath.Join("../../testdata/tiles", evaluation.TrainFolder), trainer.Options{Level: 2, ImageSize: 16}, true)
	if err != nil {
		t.Fatal(err)
	}
	if !models.HasHeads(l.model.Reference) || l.model.Metadata.Training.Steps != 1 {
		t.Errorf("%+v", l.model.Metadata.Training)
	}
}
