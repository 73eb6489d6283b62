package feedback

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func score(v float64) *float64 { return &v }

func TestStore_KeepsEachImageOnceWithItsNewestLabel(t *testing.T) {
	dir := t.TempDir()
	s := NewFolders(Limits{Images: 10, Bytes: 1000}, asPath)
	if list, err := s.List(t.Context(), filepath.Join(dir, "none")); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	a, err := s.Add(t.Context(), dir, Record{Label: Normal, Filename: "a.png", Score: score(1), Scores: "m"}, []byte("image a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(t.Context(), dir, Record{Label: Normal, Filename: "b.png", Score: score(2), Scores: "m"}, []byte("image b")); err != nil {
		t.Fatal(err)
	}
	again, err := s.Add(t.Context(), dir, Record{Label: Anomalous, Filename: "c.png", Score: score(1), Scores: "m"}, []byte("image a"))
	if err != nil || again.ID != a.ID {
		t.Errorf("%+v, %v", again, err)
	}
	list, err := s.List(t.Context(), dir)
	if err != nil || len(list) != 2 || list[0].Filename != "c.png" || list[0].Label != Anomalous || list[1].Filename != "b.png" {
		t.Errorf("%+v, %v", list, err)
	}
	if r, data, err := s.Image(t.Context(), dir, a.ID); err != nil || string(data) != "image a" || r.Label != Anomalous {
		t.Errorf("%+v, %q, %v", r, data, err)
	}
	if err := s.SetScores(t.Context(), dir, "n", map[string]*float64{a.ID: score(7), strings.Repeat("0", 64): score(1)}); err != nil {
		t.Fatal(err)
	}
	if list, _ = s.List(t.Context(), dir); len(list) != 2 || *list[0].Score != 7 || list[0].Scores != "n" || list[1].Scores != "m" {
		t.Errorf("%+v", list)
	}
	if err := s.Remove(t.Context(), dir, a.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Image(t.Context(), dir, a.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, imagesDir)); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}

func TestStore_RejectsUnknownIDs(t *testing.T) {
	dir := t.TempDir()
	s := NewFolders(Limits{Images: 10, Bytes: 1000}, asPath)
	if _, err := s.Add(t.Context(), dir, Record{Label: Normal}, []byte("image")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"", "..", "../feedback.json", "a/b", strings.Repeat("0", 64)} {
		if err := s.Remove(t.Context(), dir, id); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", id, err)
		}
		if _, _, err := s.Image(t.Context(), dir, id); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestStore_IsBounded(t *testing.T) {
	for name, l := range map[string]Limits{"in images": {2, 1000}, "in bytes": {10, 8}} {
		dir := t.TempDir()
		s := NewFolders(l, asPath)
		for i, image := range []string{"1234", "5678", "9"} {
			_, err := s.Add(t.Context(), dir, Record{Label: Normal}, []byte(image))
			if full := i == 2; errors.Is(err, ErrFull) != full {
				t.Errorf("%s: image %d: %v", name, i, err)
			}
		}
		if _, err := s.Add(t.Context(), dir, Record{Label: Anomalous}, []byte("1234")); err != nil {
			t.Errorf("%s: the label of a stored image: %v", name, err)
		}
		if list, err := s.List(t.Context(), dir); err != nil || len(list) != 2 {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
}

func TestStore_AddsNothingToAnIndexThatCouldNotBeReadAgain(t *testing.T) {
	dir := t.TempDir()
	s := NewFolders(Limits{Images: 1 << 20, Bytes: 1 << 30}, asPath)
	name := strings.Repeat("<", 255) // six bytes each in JSON
	var records []Record
	for i := range maxIndexBytes/(6*len(name)+350) + 1 {
		records = append(records, Record{ID: ID(fmt.Append(nil, i)), Label: Normal, Filename: name, Score: score(1), Scores: ID(nil), Bytes: 1})
	}
	for ; ; records = records[1:] { // as large as can be read
		data, err := encode(records)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) <= maxIndexBytes {
			break
		}
	}
	if err := write(dir, records); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(t.Context(), dir, Record{Label: Normal, Filename: name}, []byte("image")); !errors.Is(err, ErrFull) {
		t.Errorf("Add returned %v", err)
	}
	if list, err := s.List(t.Context(), dir); err != nil || len(list) != len(records) {
		t.Errorf("%d images, %v", len(list), err)
	}
}

func TestStore_RemovesWhatAKilledProcessLeft(t *testing.T) {
	dir := t.TempDir()
	s := NewFolders(Limits{Images: 10, Bytes: 1000}, asPath)
	if err := os.MkdirAll(filepath.Join(dir, imagesDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{ID([]byte("lost")), ".anomaly-1"} {
		if err := os.WriteFile(filepath.Join(dir, imagesDir, name), []byte("lost"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Add(t.Context(), dir, Record{Label: Normal}, []byte("image")); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(filepath.Join(dir, imagesDir)); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}

func TestStore_ReportsADamagedIndex(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, indexFile), []byte(`{"feedback": [`), 0o600); err != nil {
		t.Fatal(err)
	}
	s := NewFolders(Limits{Images: 10, Bytes: 1000}, asPath)
	if _, err := s.List(t.Context(), dir); err == nil {
		t.Error("no error")
	}
	if _, err := s.Add(t.Context(), dir, Record{Label: Normal}, []byte("image")); err == nil {
		t.Error("the index was overwritten")
	}
}

func TestSummarize_SuggestsTheThresholdWithTheFewestErrors(t *testing.T) {
	for _, c := range []struct {
		name              string
		normal, anomalous []float64
		threshold, lowest float64
		errors            Errors
		suggested         float64 // 0 for none
		at                Errors
	}{
		{"nothing", nil, nil, 1, 1, Errors{}, 0, Errors{}},
		{"no error", []float64{0.5}, []float64{2}, 1, 1, Errors{}, 0, Errors{}},
		{"a false alarm", []float64{0.5, 1.2}, []float64{2}, 1, 1, Errors{FalseAlarms: 1}, 1.6, Errors{}},
		{"only false alarms", []float64{1.2, 1.5}, nil, 1, 1, Errors{FalseAlarms: 2}, 1.5 * (1 + above), Errors{}},
		{"a missed anomaly above the lowest", []float64{0.5}, []float64{1.5, 3}, 2, 1, Errors{Missed: 1}, 1, Errors{}},
		{"a missed anomaly below the lowest", nil, []float64{0.8}, 1, 1, Errors{Missed: 1}, 0, Errors{}},
		{"equally good", []float64{1.5}, []float64{1.4}, 1, 1, Errors{FalseAlarms: 1}, 0, Errors{}},
		{"the closest of two", []float64{1.2, 1.6}, []float64{1.4, 3}, 1, 1, Errors{FalseAlarms: 2}, 1.3, Errors{FalseAlarms: 1}},
		{"no calibration", []float64{1.2}, nil, 1, math.NaN(), Errors{FalseAlarms: 1}, 0, Errors{}},
	} {
		var records []Record
		for _, v := range c.normal {
			records = append(records, Record{Label: Normal, Score: score(v)})
		}
		for _, v := range c.anomalous {
			records = append(records, Record{Label: Anomalous, Score: score(v)})
		}
		n := len(records)
		records = append(records, Record{Label: Normal}) // without a score
		s := Summarize(records, c.threshold, c.lowest)
		if s.Normal != len(c.normal) || s.Anomalous != len(c.anomalous) || s.Errors != c.errors || s.Threshold != c.threshold || len(records) != n+1 {
			t.Errorf("%s: %+v", c.name, s)
		}
		switch {
		case (s.Suggested == nil) != (c.suggested == 0) || (s.AtSuggested == nil) != (s.Suggested == nil):
			t.Errorf("%s: suggested %v, %v", c.name, s.Suggested, s.AtSuggested)
		case s.Suggested != nil && (math.Abs(*s.Suggested-c.suggested) > 1e-9 || *s.AtSuggested != c.at):
			t.Errorf("%s: suggested %v with %+v, expected %v with %+v", c.name, *s.Suggested, *s.AtSuggested, c.suggested, c.at)
		}
	}
}

func TestParseLabel_AcceptsTheTwoLabels(t *testing.T) {
	var got []Label
	for _, text := range []string{"normal", "", "Normal", "anomalous", "anomaly", "normal "} {
		if l, err := ParseLabel(text); err == nil {
			got = append(got, l)
		} else if !errors.Is(err, ErrLabel) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if !slices.Equal(got, []Label{Normal, Anomalous}) {
		t.Errorf("%v", got)
	}
}

// asPath is for folders whose paths are the keys.
func asPath(key string) string { return key }
