package api

import (
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/models"
)

// DeepMed's web app sends three parts, and its proxy passes the answer's headers on.
func TestTrain_AnswersDeepMedsCall(t *testing.T) {
	s := start(t, func(o *Options) { o.DefaultMaxSeconds = 570 })
	for name, parts := range map[string][]part{
		"the zip first": {file("zipFile", "dataset.zip", trainingZip(t, 9, nil)), text("level", "1"), text("image_size", "128")},
		"the zip last":  {text("level", "1"), text("image_size", "16"), file("zipFile", "dataset.zip", trainingZip(t, 2, nil))},
		"empty fields":  {file("zipFile", "dataset.zip", trainingZip(t, 1, nil)), text("level", "1"), text("image_size", "16"), text("max_seconds", "")},
	} {
		a := s.postAcceptingEncodings(t, "/train", parts...)
		files := checkBundle(t, a)
		for file := range files {
			if strings.ContainsAny(file, `/\`) {
				t.Errorf("%s: %s is not in the root", name, file)
			}
		}
		m := metadataOf(t, files)
		if m.ModelType != "autoencoder" || len(m.TrainingLosses) != 5 || !(m.Threshold > 0) || !(m.Training.MaxSeconds > 0 && m.Training.MaxSeconds <= 570) {
			t.Errorf("%s: %+v", name, m)
		}
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(files[models.MetadataFile], &keys); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"model_type", "image_size", "threshold", "mean_error", "std_error", "training_losses"} {
			if len(keys[key]) == 0 {
				t.Errorf("%s: the metadata has no %s", name, key)
			}
		}
		// The app then sends the files of the zip.
		d := s.postAcceptingEncodings(t, "/detect", file("modelFile", "autoencoder.pt", files[models.CheckpointFile]),
			file("imageFile", "image.jpg", tile(t, testGood)), file("metadataFile", "metadata.json", files[models.MetadataFile]))
		checkLength(t, d)
		var v struct {
			Score      float64  `json:"reconstruction_error"`
			Threshold  float64  `json:"threshold"`
			IsAnomaly  bool     `json:"is_anomaly"`
			ClassNames []string `json:"class_names"`
		}
		if err := json.Unmarshal(d.body, &v); err != nil || d.status != 200 || v.IsAnomaly != (v.Score > v.Threshold) || len(v.ClassNames) == 0 || strings.Contains(string(d.body), "warnings") {
			t.Errorf("%s: status %d, %v: %s", name, d.status, err, d.body)
		}
	}
	for path, sentence := range map[string]string{"/train": "No ZIP file uploaded", "/detect": "Both model file and image file are required"} {
		if a := s.post(t, path, text("level", "3")); a.status != 400 || a.message(t) != sentence {
			t.Errorf("%s: status %d: %s", path, a.status, a.body)
		}
	}
	if a := s.request(t, http.MethodGet, "/health", nil); a.status != 200 {
		t.Errorf("status %d", a.status)
	}
}

func TestTrain_TakesTheDefaultTimeLimit(t *testing.T) {
	s := start(t, func(o *Options) { o.DefaultMaxSeconds = 1e-6 })
	zipped := trainingZip(t, 1, nil)
	for _, more := range [][]part{nil, {text("max_seconds", "")}, {text("max_seconds", " ")}} {
		if a := s.post(t, "/train", smallTraining(zipped, more...)...); a.status != 422 || !strings.Contains(a.message(t), "too little") {
			t.Errorf("%v: status %d: %s", more, a.status, a.body)
		}
	}
	// The form's own counts.
	a := s.post(t, "/train", smallTraining(zipped, text("max_seconds", "3600"))...)
	if a.status != 200 || a.header.Get("X-Training-Ended") != "complete" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestTrain_CountsTheQueueAgainstTheDefaultTimeLimit(t *testing.T) {
	s := start(t, func(o *Options) { o.DefaultMaxSeconds = 0.3 })
	release := fill(t, s.trainingSlots)
	defer release()
	started := time.Now()
	a := s.post(t, "/train", smallTraining(trainingZip(t, 1, nil))...)
	if a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if took := time.Since(started); took < 300*time.Millisecond {
		t.Errorf("it waited %s", took)
	}
	if s.trainingSlots.waiting() != 0 {
		t.Error("the training still waits")
	}
}

func TestNew_RejectsAnInvalidDefaultTimeLimit(t *testing.T) {
	for _, seconds := range []float64{-1, math.NaN(), math.Inf(1), 2592001} {
		o := DefaultOptions()
		o.TempDir, o.DefaultMaxSeconds = t.TempDir(), seconds
		if s, err := New(nil, nil, o); s != nil || err == nil || !strings.Contains(err.Error(), "max_seconds") {
			t.Errorf("%v: %v", seconds, err)
		}
	}
}
