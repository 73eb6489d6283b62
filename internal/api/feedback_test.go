package api

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/models"
)

// feedbackAnswer is the answer of GET and POST /models/{name}/feedback.
type feedbackAnswer struct {
	feedbackItem
	Feedback []feedbackItem
	Summary  feedback.Summary
}

// addFeedback sends feedback about an image to the stored model m.
func (s *service) sendFeedback(t testing.TB, label, name string, image []byte) answer {
	t.Helper()
	return s.post(t, "/models/m/feedback", file("imageFile", name, image), text("label", label))
}

func (s *service) feedback(t testing.TB, query string) feedbackAnswer {
	t.Helper()
	a := s.request(t, http.MethodGet, "/models/m/feedback"+query, nil)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	return as[feedbackAnswer](t, a)
}

func TestFeedback_IsStoredListedAndDeleted(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	good, crack := tile(t, testGood), tile(t, testCrack)
	ofGood, ofCrack := s.verdict(t, good), s.verdict(t, crack)
	if got := s.feedback(t, ""); len(got.Feedback) != 0 || got.Summary.Normal != 0 || got.Summary.Suggested != nil {
		t.Errorf("%+v", got)
	}
	first := s.sendFeedback(t, "normal", `C:\line\good.jpg`, good)
	a := as[feedbackAnswer](t, first)
	if first.status != 201 || a.ID != feedback.ID(good) || a.Label != feedback.Normal || a.Filename != "good.jpg" || *a.Score != ofGood.AnomalyScore || a.IsAnomaly != ofGood.IsAnomaly || a.Summary.Normal != 1 {
		t.Errorf("status %d: %s", first.status, first.body)
	}
	second := as[feedbackAnswer](t, s.sendFeedback(t, "anomalous", "crack.jpg", crack))
	if second.Summary.Anomalous != 1 || second.Summary.Threshold != ofCrack.Threshold || *second.Score != ofCrack.AnomalyScore {
		t.Errorf("%+v", second)
	}
	// The same image with another label is one image.
	again := as[feedbackAnswer](t, s.sendFeedback(t, "anomalous", "good.jpg", good))
	if again.ID != a.ID || again.Summary.Normal != 0 || again.Summary.Anomalous != 2 {
		t.Errorf("%+v", again)
	}
	got := s.feedback(t, "")
	if len(got.Feedback) != 2 || got.Feedback[0].ID != a.ID || got.Feedback[1].ID != second.ID {
		t.Errorf("%+v", got)
	}
	above := max(ofGood.AnomalyScore, ofCrack.AnomalyScore)
	for threshold, missed := range map[float64]int{0: 0, above: 2} {
		if got := s.feedback(t, fmt.Sprintf("?threshold=%v", threshold)).Summary; got.Missed != missed || got.Threshold != threshold {
			t.Errorf("at %v: %+v", threshold, got)
		}
	}
	image := s.request(t, http.MethodGet, "/models/m/feedback/"+second.ID+"/image", nil)
	if image.status != 200 || !bytes.Equal(image.body, crack) || image.header.Get("Content-Type") != "image/jpeg" ||
		image.header.Get("X-Content-Type-Options") != "nosniff" || image.header.Get("Content-Disposition") != `attachment; filename="crack.jpg"` {
		t.Errorf("status %d: %v", image.status, image.header)
	}
	removed := s.request(t, http.MethodDelete, "/models/m/feedback/"+a.ID, nil)
	if removed.status != 200 || as[feedbackAnswer](t, removed).Summary.Anomalous != 1 {
		t.Errorf("status %d: %s", removed.status, removed.body)
	}
	for _, id := range []string{a.ID, "..%2f..%2fm.model", "x", "%00", strings.ToUpper(second.ID)} {
		for method, path := range map[string]string{http.MethodGet: "/image", http.MethodDelete: ""} {
			if a := s.request(t, method, "/models/m/feedback/"+id+path, nil); a.status != 404 || a.message(t) == "" {
				t.Errorf("%s %q: status %d: %s", method, id, a.status, a.body)
			}
		}
	}
	// The feedback is not one of the model's verdicts.
	if n := as[modelScores](t, s.request(t, http.MethodGet, "/models/m/scores", nil)).Recent.Count; n != 2 {
		t.Errorf("%d verdicts", n)
	}
}

func TestFeedback_HasTheScoresOfTheCurrentVersion(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	for i, path := range tileFiles(t, testGood, 3) {
		if a := s.sendFeedback(t, "normal", fmt.Sprintf("%d.jpg", i), read(t, path)); a.status != 201 {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
	}
	before := s.feedback(t, "")
	// A moved threshold leaves the scores and changes what they mean.
	if a := s.patch(t, `{"threshold": 0}`); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	moved := s.feedback(t, "")
	if moved.Summary.FalseAlarms != 3 || !moved.Feedback[0].IsAnomaly || moved.Summary.Threshold != 0 {
		t.Errorf("%+v", moved)
	}
	if a := s.post(t, "/models/m/calibrate", file("zipFile", "c.zip", calibrationZip(t, 8, nil))); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	after := s.feedback(t, "")
	for i, f := range after.Feedback {
		want := s.verdict(t, read(t, tileFiles(t, testGood, 3)[2-i]))
		if *f.Score != want.AnomalyScore || f.IsAnomaly != want.IsAnomaly || *moved.Feedback[i].Score != *before.Feedback[i].Score {
			t.Errorf("image %d: %+v, the verdict is %v, before %v", i, f, want.AnomalyScore, *before.Feedback[i].Score)
		}
		if *f.Score == *before.Feedback[i].Score {
			t.Errorf("image %d: the calibration did not change its score", i)
		}
	}
}

func TestFeedback_SuggestsAThreshold(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	if a := s.patch(t, `{"threshold": 0.1}`); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	good := s.sendFeedback(t, "normal", "a.jpg", tile(t, testGood))
	sum := as[feedbackAnswer](t, good).Summary
	if sum.FalseAlarms != 1 || sum.Suggested == nil || sum.AtSuggested.FalseAlarms != 0 {
		t.Fatalf("%s", good.body)
	}
	if a := s.patch(t, fmt.Sprintf(`{"threshold": %v}`, *sum.Suggested)); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if got := s.feedback(t, "").Summary; got.FalseAlarms != 0 || got.Suggested != nil || math.Abs(got.Threshold-*sum.Suggested) > 0 {
		t.Errorf("%+v", got)
	}
}

func TestFeedback_RejectsHostileUploads(t *testing.T) {
	s, dir := startWithModels(t, func(o *Options) {
		o.Images.MaxBytes = 1 << 20
		o.FeedbackImages = 2
	})
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	good := tile(t, testGood)
	type refusal struct {
		name   string
		status []int
		parts  []part
	}
	refusals := []refusal{
		{"no image", []int{400}, []part{text("label", "normal")}},
		{"no label", []int{400}, []part{file("imageFile", "a", good)}},
		{"another label", []int{400}, []part{file("imageFile", "a", good), text("label", "maybe")}},
		{"two images", []int{400}, []part{file("imageFile", "a", good), file("imageFile", "b", good), text("label", "normal")}},
		{"a text", []int{422}, []part{file("imageFile", "a.jpg", []byte("prose")), text("label", "normal")}},
		{"a large image", []int{413}, []part{file("imageFile", "a.jpg", make([]byte, 1<<20+1)), text("label", "normal")}},
		{"a long label", []int{413}, []part{file("imageFile", "a.jpg", good), text("label", strings.Repeat("a", 2000))}},
	}
	for _, image := range hostile.Images() {
		refusals = append(refusals, refusal{image.Name, []int{413, 422}, []part{file("imageFile", image.Name, image.Data), text("label", "normal")}})
	}
	for _, r := range refusals {
		if a := s.post(t, "/models/m/feedback", r.parts...); !slices.Contains(r.status, a.status) || a.message(t) == "" {
			t.Errorf("%s: status %d: %.200s", r.name, a.status, a.body)
		}
	}
	if a := s.post(t, "/models/none/feedback", file("imageFile", "a", good), text("label", "normal")); a.status != 404 {
		t.Errorf("status %d", a.status)
	}
	for _, query := range []string{"x", "-1", "NaN", "1e999"} {
		if a := s.request(t, http.MethodGet, "/models/m/feedback?threshold="+query, nil); a.status != 400 {
			t.Errorf("%s: status %d", query, a.status)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, ".history", "m", "feedback")); !os.IsNotExist(err) {
		t.Errorf("something was stored: %v", err)
	}
	s.keepsNoUpload(t)
	for i, path := range tileFiles(t, testGood, 3) {
		a := s.sendFeedback(t, "normal", "../../../etc/passwd", read(t, path))
		if full := i == 2; full != (a.status == 409) || !full && as[feedbackAnswer](t, a).Filename != "passwd" {
			t.Errorf("image %d: status %d: %s", i, a.status, a.body)
		}
	}
}

func TestCleanFilename_LeavesTheLastElement(t *testing.T) {
	for name, want := range map[string]string{
		"": "image", "..": "image", "a/..": "image", "/": "image", " a b.png ": "a b.png", `C:\a\b.png`: "b.png", "../../etc/passwd": "passwd",
		"a\x00\r\n\"b\x7f": "ab", "\xff.png": ".png", strings.Repeat("ä", 200): strings.Repeat("ä", 127),
	} {
		if got := cleanFilename(name); got != want {
			t.Errorf("%q: %q, expected %q", name, got, want)
		}
	}
}

func TestFeedback_IsDeletedWithItsModel(t *testing.T) {
	s, dir := startWithModels(t, nil)
	model := trained(t)[models.CheckpointFile]
	s.mustPut(t, "m", model)
	if a := s.sendFeedback(t, "normal", "a.jpg", tile(t, testGood)); a.status != 201 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if a := s.request(t, http.MethodDelete, "/models/m", nil); a.status != 204 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	s.named.monitors.Save()
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	s.mustPut(t, "m", model)
	if got := s.feedback(t, ""); len(got.Feedback) != 0 {
		t.Errorf("%+v", got)
	}
}
