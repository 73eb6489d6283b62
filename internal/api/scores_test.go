package api

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/models"
)

// scores returns the scores of the stored model m.
func (s *service) scores(t testing.TB) modelScores {
	t.Helper()
	a := s.request(t, http.MethodGet, "/models/m/scores", nil)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	return as[modelScores](t, a)
}

// ring sends images that are no tiles to the stored model m until its alarm is on.
func (s *service) ring(t testing.TB) (images int) {
	t.Helper()
	for images = 1; images <= 200; images++ {
		if v := s.verdict(t, hostile.Picture()); len(v.Warnings) > 0 {
			return images
		}
	}
	t.Fatalf("no alarm: %+v", s.scores(t))
	return 0
}

func TestScores_AreThoseOfTheVerdicts(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	e := s.entry(t)
	got := s.scores(t)
	if d := e.Metadata.Decision; got.Threshold != d.Threshold || *got.FalseAlarmRate != d.FalseAlarmRate || got.Calibration.Count != int64(d.CalibrationImages) ||
		!slices.Equal(got.Calibration.Scores, d.Scores) || got.Recent.Count != 0 || len(got.Feedback) != 0 || !got.Drift.Available || got.Drift.Alarm {
		t.Errorf("%+v", got)
	}
	var want []float64
	var images [][]byte
	for _, path := range tileFiles(t, testGood, 5) {
		images = append(images, read(t, path))
	}
	for _, image := range images {
		want = append(want, s.verdict(t, image).AnomalyScore)
	}
	list := as[[]inference.Verdict](t, s.byName(t, "m", images...))
	for _, v := range list {
		want = append(want, v.AnomalyScore)
	}
	feedback := as[feedbackItem](t, s.sendFeedback(t, "normal", "a.jpg", images[0]))
	// These are no verdicts by the model's own decision.
	s.byName(t, "m", []byte("prose"))
	if a := s.post(t, "/models/m/detect", file("imageFile", "i", images[0]), file("metadataFile", "m", []byte(`{"threshold": 1}`))); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	got = s.scores(t)
	if got.Recent.Count != 10 || got.Drift.Images != 10 || !slices.Equal(got.Recent.Scores[:5], want[:5]) || !slices.Equal(sorted(got.Recent.Scores), sorted(want)) {
		t.Errorf("%+v, expected %v", got.Recent, want)
	}
	if len(got.Feedback) != 1 || got.Feedback[0].ID != feedback.ID || *got.Feedback[0].Score != want[0] {
		t.Errorf("%+v", got.Feedback)
	}
}

func sorted(v []float64) []float64 { return slices.Sorted(slices.Values(v)) }

func TestDrift_WarnsUntilItIsReset(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	metric := func(name string) string {
		for line := range strings.Lines(string(s.request(t, http.MethodGet, "/metrics", nil).body)) {
			if value, ok := strings.CutPrefix(line, name+`{model="m"} `); ok {
				return strings.TrimSpace(value)
			}
		}
		return "missing"
	}
	if got := metric("anomaly_drift_alarm"); got != "0" {
		t.Errorf("alarm %s", got)
	}
	images := s.ring(t)
	if d := s.scores(t).Drift; !d.Alarm || d.Images != int64(images) || d.Log10Evidence < 2 || d.Since == nil || time.Since(*d.Since) > time.Hour || d.Message == nil || d.Level != 0.01 {
		t.Errorf("%+v", d)
	}
	if got := metric("anomaly_drift_alarm"); got != "1" || metric("anomaly_drift_log10_evidence") == "missing" {
		t.Errorf("alarm %s", got)
	}
	if v := s.verdict(t, tile(t, testGood)); len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0], "score higher") {
		t.Errorf("%+v", v.Warnings)
	}
	a := s.request(t, http.MethodPost, "/models/m/drift/reset", nil)
	if d := as[driftState](t, a); a.status != 200 || d.Alarm || d.Images != 0 || d.Since != nil || d.Message != nil || d.Log10Evidence != 0 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if v := s.verdict(t, tile(t, testGood)); len(v.Warnings) != 0 || metric("anomaly_drift_alarm") != "0" {
		t.Errorf("%+v", v.Warnings)
	}
	if got := s.scores(t).Recent.Count; got != int64(images)+2 {
		t.Errorf("%d verdicts", got)
	}
	if a := s.request(t, http.MethodPost, "/models/none/drift/reset", nil); a.status != 404 {
		t.Errorf("status %d", a.status)
	}
}

func TestDrift_BelongsToACalibration(t *testing.T) {
	s, _ := startWithModels(t, nil)
	model := trained(t)[exporter.BundleFile]
	s.mustPut(t, "m", model)
	for _, c := range []struct {
		name   string
		change func() answer
		reset  bool
	}{
		{"a moved threshold", func() answer { return s.patch(t, `{"threshold": 3}`) }, false},
		{"the same model again", func() answer {
			return s.put(t, "m", s.request(t, http.MethodGet, "/models/m/file?format=zip", nil).body)
		}, false},
		{"a restored version", func() answer {
			return s.request(t, http.MethodPost, "/models/m/versions/"+models.Identity(model)+"/restore", nil)
		}, true},
		// Of 8 images, whether the alarm comes would depend on the seed.
		{"a calibration", func() answer {
			return s.post(t, "/models/m/calibrate", file("zipFile", "c.zip", calibrationZip(t, 20, nil)))
		}, true},
		{"another model", func() answer { return s.put(t, "m", trained(t)[models.ONNXFile]) }, true},
	} {
		s.ring(t)
		before := s.scores(t)
		if a := c.change(); a.status != 200 {
			t.Fatalf("%s: status %d: %s", c.name, a.status, a.body)
		}
		got := s.scores(t)
		if c.reset && (got.Drift.Alarm || got.Drift.Images != 0 || got.Recent.Count != 0) || !c.reset && (!got.Drift.Alarm || got.Drift.Log10Evidence != before.Drift.Log10Evidence || got.Recent.Count != before.Recent.Count) {
			t.Errorf("%s: %+v of %d verdicts", c.name, got.Drift, got.Recent.Count)
		}
	}
}

func TestDrift_IsNotAvailableWithoutScoresOfACalibration(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", withoutDecision(t))
	s.verdict(t, tile(t, testCrack))
	got := s.scores(t)
	if got.Drift.Available || got.Drift.Alarm || got.Recent.Count != 1 || got.Calibration.Count != 0 || got.FalseAlarmRate != nil {
		t.Errorf("%+v", got)
	}
	if text := string(s.request(t, http.MethodGet, "/metrics", nil).body); strings.Contains(text, "anomaly_drift_alarm{") {
		t.Error("it has a metric")
	}
}

func TestVerdicts_SurviveARestart(t *testing.T) {
	dir := t.TempDir()
	var before modelScores
	t.Run("first", func(t *testing.T) {
		s := start(t, func(o *Options) { o.ModelsDir = dir })
		s.mustPut(t, "m", trained(t)[exporter.BundleFile])
		s.ring(t)
		s.verdict(t, tile(t, testGood))
		before = s.scores(t)
	})
	if before.Recent.Count == 0 {
		t.Fatal("no verdict")
	}
	path := filepath.Join(dir, ".history", "m", "verdicts.json")
	whole := read(t, path)
	for name, state := range map[string][]byte{"whole": whole, "cut off": whole[:len(whole)/2], "other": []byte(`{"count": -1}`),
		"inconsistent": []byte(strings.Replace(string(whole), `"images":`, `"images":9`, 1))} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, state, 0o600); err != nil {
				t.Fatal(err)
			}
			s := start(t, func(o *Options) { o.ModelsDir = dir })
			eventually(t, "the model is read", func() bool { return s.entry(t).State == "ready" })
			got := s.scores(t)
			if name == "whole" {
				if fmt.Sprint(got.Recent, got.Drift.Log10Evidence, got.Drift.Since, got.Drift.Alarm) != fmt.Sprint(before.Recent, before.Drift.Log10Evidence, before.Drift.Since, before.Drift.Alarm) {
					t.Errorf("%+v, before %+v", got, before)
				}
			} else if got.Recent.Count != 0 || got.Drift.Alarm {
				t.Errorf("%+v", got)
			}
		})
	}
}

// BenchmarkServer_Judged measures what a verdict on a stored model costs besides the verdict.
func BenchmarkServer_Judged(b *testing.B) {
	s, _ := startWithModels(b, nil)
	s.mustPut(b, "m", trained(b)[exporter.BundleFile])
	v := s.verdict(b, tile(b, testGood))
	for b.Loop() {
		judged := v
		s.judged("m", &judged)
	}
}
