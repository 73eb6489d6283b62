package main

import (
	"bytes"
	"errors"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/trainer"
)

func TestSplitting_ChecksTheFalseAlarmRate(t *testing.T) {
	s := splitting{within: 0.02}
	for _, c := range []struct {
		trained        int
		promised       float64
		rates          []float64
		mean, of, rank float64
		off            bool
	}{
		{20, 0.05, []float64{0, 0.1}, 0.05, 0.05, 1.0 / 21, false},
		{50, 0.05, []float64{0.02, 0.02}, 0.02, 0, 2.0 / 51, true}, // below is off, too
		{200, 0.05, []float64{0.08, 0.06, 0.1}, 0.08, 0.02 / math.Sqrt(3), 10.0 / 201, true},
		{200, 0.05, []float64{0.06, 0.06, 0.08}, 0.2 / 3, 0.02 / 3, 10.0 / 201, false},
		{10, 0.05, []float64{0.05}, 0.05, 0, 1.0 / 11, false},
	} {
		a := alarms{Trained: c.trained, Promised: c.promised, Rates: c.rates}
		a.summarize()
		for _, pair := range [][2]float64{{a.Mean, c.mean}, {a.Error, c.of}, {a.Ranked, c.rank}} {
			if math.Abs(pair[0]-pair[1]) > 1e-12 {
				t.Errorf("%+v: %v, expected %v", c, pair[0], pair[1])
			}
		}
		if err := s.print(io.Discard, []alarms{a}); errors.Is(err, errRate) != c.off {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// Each split tests on the images it does not train on, and full and brief trainings
// have the same rates.
func TestSplitting_TestsOnTheRest(t *testing.T) {
	e := orttest.Open(t)
	dir := t.TempDir()
	folders, err := generate(t.Context(), dir, drawing{train: 12, good: 8, defects: 1, side: 48, seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	run := func(whole bool) []alarms {
		t.Helper()
		s := splitting{trained: []int{10, 15}, splits: 3, within: 1, whole: whole, out: filepath.Join(t.TempDir(), "alarms.jsonl"),
			options: trainer.Options{Level: 1, ImageSize: 32, FalseAlarmRate: 0.2}}
		var out bytes.Buffer
		if err := s.run(t.Context(), e, folders[:1], &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		rows, err := read[alarms](s.out)
		if err != nil {
			t.Fatal(err)
		}
		// A second run reuses the results.
		var again, log bytes.Buffer
		if err := s.run(t.Context(), e, folders[:1], &again, &log); err != nil || log.Len() > 0 || again.String() != out.String() {
			t.Errorf("%v, %s%s", err, log.String(), again.String())
		}
		return rows
	}
	brief, whole := run(false), run(true)
	if len(brief) != 2 || len(whole) != 2 {
		t.Fatalf("%+v", brief)
	}
	for i, a := range brief {
		if a.Trained+a.Tested != 20 || len(a.Rates) != 3 || a.Supported != 1/float64(a.Trained+1) || a.Promised != 0.2 {
			t.Errorf("%+v", a)
		}
		if !reflect.DeepEqual(a.Rates, whole[i].Rates) {
			t.Errorf("%v of brief trainings, %v of whole ones", a.Rates, whole[i].Rates)
		}
		for _, r := range a.Rates {
			if images := r * float64(a.Tested); math.Abs(images-math.Round(images)) > 1e-9 {
				t.Errorf("a rate of %v of %d images", r, a.Tested)
			}
		}
	}
	s := splitting{trained: []int{20}, splits: 1, options: trainer.Options{ImageSize: 32, FalseAlarmRate: 0.2}}
	if err := s.run(t.Context(), e, folders[:1], io.Discard, io.Discard); err == nil {
		t.Error("no test images: no error")
	}
}

func TestSortOut_SortsHitsAndMisses(t *testing.T) {
	j := func(score float64) evaluation.Judged { return evaluation.Judged{Score: score, IsAnomaly: score > 3} }
	hits, misses := sortOut([]evaluation.Judged{j(2), j(5), j(3), j(9), j(1), j(4)})
	if !reflect.DeepEqual(hits, []evaluation.Judged{j(9), j(5), j(4)}) || !reflect.DeepEqual(misses, []evaluation.Judged{j(1), j(2), j(3)}) {
		t.Errorf("%v and %v", hits, misses)
	}
}
