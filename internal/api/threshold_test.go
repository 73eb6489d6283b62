package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

// patch sends a change of the stored model m.
func (s *service) patch(t testing.TB, body string) answer {
	t.Helper()
	return s.send(t, http.MethodPatch, "/models/m", "application/json", strings.NewReader(body))
}

// versions returns the versions of the stored model m.
func (s *service) versions(t testing.TB) []registry.Version {
	t.Helper()
	a := s.request(t, http.MethodGet, "/models/m/versions", nil)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	return as[struct{ Versions []registry.Version }](t, a).Versions
}

// entry returns the entry of the stored model m.
func (s *service) entry(t testing.TB) registry.Entry {
	t.Helper()
	return as[registry.Entry](t, s.request(t, http.MethodGet, "/models/m", nil))
}

// verdict returns the verdict of the stored model m on an image.
func (s *service) verdict(t testing.TB, image []byte) inference.Verdict {
	t.Helper()
	a := s.byName(t, "m", image)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	return as[inference.Verdict](t, a)
}

func TestPatchModel_MovesTheThresholdAsANewVersion(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	before, image := s.entry(t), tile(t, testCrack)
	score := s.verdict(t, image).AnomalyScore
	decision := before.Metadata.Decision
	if decision == nil || len(decision.Scores) < 8 {
		t.Fatalf("the test's model has the decision %+v", decision)
	}
	ranks, _ := calibration.RanksOf(decision)
	conformal, err := ranks.Threshold(0.2)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		body      string
		threshold float64
		rate      float64
		reason    string
	}{
		{fmt.Sprintf(`{"threshold": %v}`, score+1), score + 1, ranks.Rate(score + 1), "threshold moved"},
		{fmt.Sprintf(`{"threshold": %v, "note": "line 3\n\t  at night"}`, score/2), score / 2, ranks.Rate(score / 2), ": line 3 at night"},
		{`{"false_alarm_rate": 0.2}`, conformal, 0.2, "rate of 0.2"},
	} {
		a := s.patch(t, c.body)
		if a.status != 200 {
			t.Fatalf("%s: status %d: %s", c.body, a.status, a.body)
		}
		e := as[registry.Entry](t, a)
		d := e.Metadata.Decision
		if d.Threshold != c.threshold || d.FalseAlarmRate != c.rate || e.SHA256 == before.SHA256 || e.Format != models.FormatBundle || !slices.Equal(d.Scores, decision.Scores) {
			t.Errorf("%s: %+v", c.body, e)
		}
		if v := s.verdict(t, image); v.Threshold != c.threshold || v.AnomalyScore != score || v.IsAnomaly != (score > c.threshold) || v.ModelSHA256 != e.SHA256 {
			t.Errorf("%s: %+v", c.body, v)
		}
		if list := s.versions(t); list[0].SHA256 != e.SHA256 || !list[0].Current || list[0].Threshold != c.threshold || !strings.Contains(list[0].Reason, c.reason) {
			t.Errorf("%s: %+v", c.body, list[0])
		}
	}
	list := s.versions(t)
	if len(list) != 4 || list[3].SHA256 != before.SHA256 || list[3].Reason != "uploaded" || list[3].Current {
		t.Errorf("%+v", list)
	}
}

// Models without scores of a calibration, such as those of the Python service, have a
// threshold of the mean squared error.
func TestPatchModel_MovesTheThresholdOfAModelWithoutADecision(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", withoutDecision(t))
	if a := s.patch(t, `{"false_alarm_rate": 0.1}`); a.status != 422 || !strings.Contains(a.message(t), "scores of its calibration") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	a := s.patch(t, `{"threshold": 0.5}`)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if v := s.verdict(t, tile(t, testGood)); v.Threshold != 0.5 || v.Measure != models.MeasureMSE {
		t.Errorf("%+v", v)
	}
}

// withoutDecision returns the zip of trained with a metadata.json without a decision.
func withoutDecision(t testing.TB) []byte {
	t.Helper()
	var md map[string]any
	if err := json.Unmarshal(trained(t)[models.MetadataFile], &md); err != nil {
		t.Fatal(err)
	}
	delete(md, "decision")
	m, err := models.Read(trained(t)[exporter.BundleFile], models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	m.Metadata.Decision, m.Metadata.Detectability, m.Reference = nil, nil, nil
	var b bytes.Buffer
	if err := exporter.WriteBundle(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPatchModel_RejectsInvalidChanges(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	before := s.entry(t)
	least := 1 / float64(before.Metadata.Decision.CalibrationImages+1)
	for _, c := range []struct {
		body   string
		status int
		text   string
	}{
		{``, 400, "either threshold or false_alarm_rate"},
		{`{}`, 400, "either threshold or false_alarm_rate"},
		{`null`, 400, "either threshold or false_alarm_rate"},
		{`[]`, 400, "either threshold or false_alarm_rate"},
		{`{"threshold": 1, "false_alarm_rate": 0.1}`, 400, "either threshold or false_alarm_rate"},
		{`{"threshold": "1"}`, 400, "either threshold or false_alarm_rate"},
		{`{"treshold": 1}`, 400, "either threshold or false_alarm_rate"},
		{`{"threshold": 1} {"threshold": 2}`, 400, "either threshold or false_alarm_rate"},
		{`{"threshold": 1e999}`, 400, "either threshold or false_alarm_rate"},
		{`{"threshold": -1}`, 400, "expected a number of 0 or more"},
		{`{"false_alarm_rate": 0}`, 400, "between 0 and 1"},
		{`{"false_alarm_rate": 1}`, 400, "between 0 and 1"},
		{fmt.Sprintf(`{"false_alarm_rate": %v}`, least*0.99), 422, "too low for the calibration images"},
		{`{"threshold": 1, "note": "` + strings.Repeat("ä", 201) + `"}`, 400, "200 characters"},
		{`{"threshold": 1, "note": "` + strings.Repeat("a", 5000) + `"}`, 413, "4096 bytes"},
		{strings.Repeat("[", 4000), 400, "either threshold or false_alarm_rate"},
	} {
		if a := s.patch(t, c.body); a.status != c.status || !strings.Contains(a.message(t), c.text) {
			t.Errorf("%.80s: status %d: %s", c.body, a.status, a.body)
		}
	}
	if a := s.send(t, http.MethodPatch, "/models/none", "application/json", strings.NewReader(`{"threshold": 1}`)); a.status != 404 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := start(t, nil).patch(t, `{"threshold": 1}`); a.status != 404 || !strings.Contains(a.message(t), "--models") {
		t.Errorf("without a folder: status %d: %s", a.status, a.body)
	}
	if e := s.entry(t); e.SHA256 != before.SHA256 || len(s.versions(t)) != 1 {
		t.Errorf("%+v", e)
	}
}

func TestCalibrateByName_StoresANewVersion(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[exporter.BundleFile])
	before := s.entry(t)
	zipped := calibrationZip(t, 10, map[string][]byte{"broken.png": []byte("\x89PNG\r\n\x1a\n")})
	a := s.post(t, "/models/m/calibrate", file("zipFile", "c.zip", zipped), text("false_alarm_rate", "0.2"))
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	got := as[struct {
		Model    registry.Entry
		Warnings []string
		Report   struct {
			Images         int
			Skipped        int
			ThresholdAfter float64 `json:"threshold_after"`
		}
	}](t, a)
	_, threshold := got.Model.Metadata.Measure()
	if got.Report.Images != 10 || got.Report.Skipped != 1 || got.Report.ThresholdAfter != threshold || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "skipped images: 1") {
		t.Errorf("%+v", got)
	}
	if d := got.Model.Metadata.Decision; d.CalibratedOn == nil || d.CalibratedOn.Model != before.SHA256 || d.FalseAlarmRate != 0.2 {
		t.Errorf("%+v", d)
	}
	if e := s.entry(t); e.SHA256 != got.Model.SHA256 || e.SHA256 == before.SHA256 {
		t.Errorf("%+v", e)
	}
	// The same as POST /calibrate with the model's file.
	direct := s.post(t, "/calibrate", file("modelFile", "m", trained(t)[exporter.BundleFile]), file("calibrationFile", "c.zip", zipped), text("false_alarm_rate", "0.2"))
	if direct.status != 200 || models.Identity(direct.body) != got.Model.SHA256 {
		t.Errorf("status %d, another model", direct.status)
	}
	if list := s.versions(t); len(list) != 2 || list[0].Reason != "calibrated on 10 images" || list[0].Threshold != threshold {
		t.Errorf("%+v", list)
	}
	for _, c := range []struct {
		status int
		text   string
		path   string
		parts  []part
	}{
		{400, "zipFile", "/models/m/calibrate", []part{text("false_alarm_rate", "0.1")}},
		{400, "between 0 and 1", "/models/m/calibrate", []part{file("zipFile", "c.zip", zipped), text("false_alarm_rate", "2")}},
		{422, "", "/models/m/calibrate", []part{file("zipFile", "c.zip", []byte("prose"))}},
		{422, "at least 8", "/models/m/calibrate", []part{file("zipFile", "c.zip", calibrationZip(t, 3, nil))}},
		{404, "No such model", "/models/none/calibrate", []part{file("zipFile", "c.zip", zipped)}},
	} {
		if a := s.post(t, c.path, c.parts...); a.status != c.status || !strings.Contains(a.message(t), c.text) {
			t.Errorf("expected %d: status %d: %s", c.status, a.status, a.body)
		}
	}
	s.keepsNoUpload(t)
}

func TestVersions_AreRestoredAndBounded(t *testing.T) {
	s, dir := startWithModels(t, func(o *Options) { o.ModelVersions = 3 })
	model := trained(t)[exporter.BundleFile]
	s.mustPut(t, "m", model)
	image := tile(t, testCrack)
	first := s.verdict(t, image)
	if a := s.patch(t, `{"threshold": 7}`); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	a := s.request(t, http.MethodPost, "/models/m/versions/"+first.ModelSHA256+"/restore", nil)
	if a.status != 200 || as[registry.Entry](t, a).SHA256 != models.Identity(model) {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if v := s.verdict(t, image); v.Threshold != first.Threshold || v.ModelSHA256 != first.ModelSHA256 {
		t.Errorf("%+v, before %+v", v, first)
	}
	if list := s.versions(t); len(list) != 2 || list[0].Reason != "restored: uploaded" || !list[0].Current || list[1].Threshold != 7 {
		t.Errorf("%+v", list)
	}
	for i := range 4 {
		if a := s.patch(t, fmt.Sprintf(`{"threshold": %d}`, i)); a.status != 200 {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
	}
	list := s.versions(t)
	if len(list) != 3 || list[0].Threshold != 3 || list[2].Threshold != 1 {
		t.Errorf("%+v", list)
	}
	for _, id := range []string{first.ModelSHA256, "x", "..%2f..%2fversions.json", strings.Repeat("0", 64), strings.ToUpper(list[1].SHA256), "%00"} {
		if a := s.request(t, http.MethodPost, "/models/m/versions/"+id+"/restore", nil); a.status != 404 || a.message(t) == "" {
			t.Errorf("%q: status %d: %s", id, a.status, a.body)
		}
	}
	if a := s.request(t, http.MethodDelete, "/models/m", nil); a.status != 204 {
		t.Errorf("status %d", a.status)
	}
	if _, err := os.Stat(filepath.Join(dir, ".history")); !os.IsNotExist(err) {
		t.Errorf("the history is left: %v", err)
	}
	for _, path := range []string{"/models/m/versions", "/models/none/versions", "/models/m/scores", "/models/m/feedback", "/models/m/file?format=zip"} {
		if a := s.request(t, http.MethodGet, path, nil); a.status != 404 {
			t.Errorf("%s: status %d", path, a.status)
		}
	}
}

func TestModelFile_SendsEachFormat(t *testing.T) {
	s, _ := startWithModels(t, nil)
	files := trained(t)
	for stored, model := range map[string][]byte{"zip": files[exporter.BundleFile], "pt": files[models.CheckpointFile], "onnx": files[models.ONNXFile]} {
		if a := s.put(t, "m", model); a.status >= 300 {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
		for format, want := range map[string][]byte{"zip": files[exporter.BundleFile], "pt": files[models.CheckpointFile], "onnx": files[models.ONNXFile], "onnx-image": files[models.ImageONNXFile], "triton": nil} {
			a := s.request(t, http.MethodGet, "/models/m/file?format="+format, nil)
			if a.status != 200 {
				t.Errorf("%s of %s: status %d: %s", format, stored, a.status, a.body)
				continue
			}
			tag := `"` + models.Identity(a.body) + `"`
			if a.header.Get("ETag") != tag || !strings.HasPrefix(a.header.Get("Content-Disposition"), `attachment; filename="m`) || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s of %s: %v", format, stored, a.header)
			}
			switch {
			case format == "triton":
				entries := unzip(t, a.body)
				if len(entries) != 4 || len(entries["m/config.pbtxt"]) == 0 || !bytes.Equal(entries["m/1/model.onnx"], files[models.ONNXFile]) || !bytes.Equal(entries["m_image/1/model.onnx"], files[models.ImageONNXFile]) {
					t.Errorf("triton of %s: %d entries", stored, len(entries))
				}
			case stored == "zip" && !bytes.Equal(a.body, want):
				t.Errorf("%s of %s: %d bytes, the training wrote %d others", format, stored, len(a.body), len(want))
			case format == stored && !bytes.Equal(a.body, model):
				t.Errorf("%s of %s: another file", format, stored)
			}
			again := s.request(t, http.MethodGet, "/models/m/file?format="+format, http.Header{"If-None-Match": {tag}})
			if again.status != 304 || len(again.body) != 0 {
				t.Errorf("%s of %s: status %d for a known file", format, stored, again.status)
			}
		}
	}
	// All formats have the threshold of the current version.
	if a := s.patch(t, `{"threshold": 0.625}`); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	for _, format := range []string{"zip", "pt", "onnx"} {
		m, err := models.Read(s.request(t, http.MethodGet, "/models/m/file?format="+format, nil).body, models.DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		if _, threshold := m.Metadata.Measure(); math.Abs(threshold-0.625) > 0 {
			t.Errorf("%s: threshold %v", format, threshold)
		}
	}
	for path, want := range map[string]int{"/models/m/file": 400, "/models/m/file?format=exe": 400, "/models/m/file?format=..%2f": 400, "/models/none/file?format=zip": 404} {
		if a := s.request(t, http.MethodGet, path, nil); a.status != want || a.message(t) == "" {
			t.Errorf("%s: status %d: %s", path, a.status, a.body)
		}
	}
}
