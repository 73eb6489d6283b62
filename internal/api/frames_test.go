package api

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
)

// A DICOM file of several frames is answered with the frame of the highest score, by all
// routes, and every frame counts as an image of the model's monitor.
func TestDetect_AnswersForTheFrameWithTheHighestScore(t *testing.T) {
	s, _ := startWithModels(t, nil)
	model := trained(t)[exporter.BundleFile]
	s.mustPut(t, "m", model)
	image := read(t, "../../testdata/dicom/jpegls_frames_extended.dcm") // of 4 frames
	one := read(t, "../../testdata/dicom/explicit_mono2_12.dcm")
	file, shot := part{name: "modelFile", file: "m.zip", data: model}, part{name: "imageFile", file: "a.dcm", data: image}

	stored := s.byName(t, "m", image)
	v := as[inference.Verdict](t, stored)
	if len(v.Frames) != 4 || v.Frame < 1 {
		t.Fatalf("%s, expected 4 frames", stored.body)
	}
	var scores []float64
	for i, f := range v.Frames {
		scores = append(scores, f.ReconstructionError)
		if f.Frame != i+1 || f.IsAnomaly != (f.ReconstructionError > v.Threshold) {
			t.Errorf("%+v at %d", f, i)
		}
	}
	if v.ReconstructionError != slices.Max(scores) || scores[v.Frame-1] != v.ReconstructionError || slices.Min(scores) == slices.Max(scores) {
		t.Errorf("the score is %v of frame %d, those of the frames are %v", v.ReconstructionError, v.Frame, scores)
	}
	if got := s.scores(t); got.Recent.Count != 4 || !slices.Equal(got.Recent.Scores, scores) {
		t.Errorf("the monitor has %+v, expected %v", got.Recent, scores)
	}
	sent := as[inference.Verdict](t, s.post(t, "/detect", file, shot))
	if sent.ReconstructionError != v.ReconstructionError || sent.Frame != v.Frame || !slices.Equal(sent.Frames, v.Frames) {
		t.Errorf("%+v, expected %+v", sent, v)
	}
	full := as[inference.Explanation](t, s.post(t, "/detect", file, shot, part{name: "explain", data: []byte("true")}))
	if full.Frame != v.Frame || full.ReconstructionError != v.ReconstructionError || len(full.Frames) != 4 || len(full.Heatmap) == 0 {
		t.Errorf("with explain %+v, expected %+v", full.Verdict, v)
	}
	if a := s.post(t, "/models/m/detect/heatmap", shot); a.status != 200 || !bytes.Equal(a.body, full.Heatmap) {
		t.Errorf("status %d, %d bytes, expected the heatmap of the frame", a.status, len(a.body))
	}

	var list []map[string]json.RawMessage
	if err := json.Unmarshal(s.byName(t, "m", image, one).body, &list); err != nil || len(list) != 2 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	if list[0]["frames"] == nil || list[1]["frames"] != nil || list[1]["frame"] != nil {
		t.Errorf("%s, expected frames in the first only", list)
	}
	damaged := bytes.Clone(image)
	damaged = damaged[:len(damaged)-40]
	if a := s.byName(t, "m", damaged); a.status != 422 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if feedback := as[feedbackItem](t, s.sendFeedback(t, "anomalous", "a.dcm", image)); feedback.Score == nil || *feedback.Score != v.ReconstructionError {
		t.Errorf("%+v, expected the highest score", feedback)
	}
}
