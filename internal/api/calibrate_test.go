package api

import (
	"bytes"
	"context"
	"errors"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

func TestCalibrate_AnswersWithTheZipAndANewThreshold(t *testing.T) {
	s := start(t, nil)
	d, document := description(t, s)
	model := trained(t)[models.CheckpointFile]
	a := s.postAcceptingEncodings(t, "/calibrate", text("false_alarm_rate", " 0.1 "), text("unknown", "ignored"),
		file("calibrationFile", "c.zip", calibrationZip(t, 20, map[string][]byte{"broken.png": []byte("prose")})), file("modelFile", "m", model))
	files := checkBundle(t, a)
	conforms(t, d, document, http.MethodPost, "/calibrate", a)
	if a.header.Get(headerCalibrationImages) != "20" || a.header.Get(headerCalibrationFalseAlarms) == "" {
		t.Errorf("headers %v", a.header)
	}
	m, before := metadataOf(t, files), metadataOf(t, trained(t))
	if dec := m.Decision; dec.CalibrationImages != 20 || dec.FalseAlarmRate != 0.1 || len(dec.Scores) != 20 || dec.Threshold == before.Decision.Threshold ||
		dec.CalibratedOn.Images != 20 || dec.CalibratedOn.Skipped != 1 || dec.CalibratedOn.Model != models.Identity(model) {
		t.Errorf("%+v, %+v", dec, dec.CalibratedOn)
	}
	if m.Training.Images != before.Training.Images || math.Abs(m.Threshold-(m.MeanError+2*m.StdError)) > 1e-12 || m.MeanError == before.MeanError {
		t.Errorf("metadata %+v", m)
	}
	// A calibrated model can be calibrated again. With the same images, the shift is
	// about 0. The result depends only on the upload.
	var again [2]answer
	for i := range again {
		again[i] = s.post(t, "/calibrate", file("modelFile", "m", a.body), calibrationPart(t, 20))
		shift, err := strconv.ParseFloat(again[i].header.Get(headerCalibrationShift), 64)
		if again[i].status != 200 || err != nil || math.Abs(shift) > 0.1 {
			t.Errorf("status %d, headers %v", again[i].status, again[i].header)
		}
	}
	if !bytes.Equal(again[0].body, again[1].body) {
		t.Error("two calibrations with the same upload differ")
	}
	if v := s.post(t, "/detect", file("modelFile", "m", a.body), file("imageFile", "i", tile(t, testCrack))); v.status != 200 {
		t.Errorf("status %d: %s", v.status, v.body)
	}
	s.keepsNoUpload(t)
}

func TestTrain_SetsTheThresholdFromCalibrationImages(t *testing.T) {
	s := start(t, nil)
	d, document := description(t, s)
	train := func(more ...part) answer {
		t.Helper()
		a := s.post(t, "/train", append(more, text("level", "1"), text("image_size", "32"), file("zipFile", "a.zip", trainingZip(t, 16, nil)))...)
		conforms(t, d, document, http.MethodPost, "/train", a)
		return a
	}
	calibration := calibrationPart(t, 20)
	for name, more := range map[string][]part{
		"without a time limit": {calibration}, "with a time limit": {calibration, text("max_seconds", "600")},
	} {
		a := train(more...)
		if a.status != 200 {
			t.Fatalf("%s: status %d: %s", name, a.status, a.body)
		}
		m := metadataOf(t, unzip(t, a.body))
		if m.Training.Images != 16 || m.Decision.CalibrationImages != 20 || m.Decision.CalibratedOn.Images != 20 || m.Decision.CalibratedOn.Model != "" ||
			m.Decision.FalseAlarmRate != 0.05 || a.header.Get(headerCalibrationImages) != "20" || a.header.Get("X-Training-Ended") != "complete" {
			t.Errorf("%s: %+v, headers %v", name, m.Decision, a.header)
		}
	}
	for _, c := range []struct {
		name     string
		data     []byte
		status   int
		contains string
	}{
		{"prose", []byte("prose"), 422, "In calibrationFile: the data set is not a readable ZIP file"},
		{"no images", testkit.Zip(t, nil), 400, "In calibrationFile: No image files found"},
		{"too few", calibrationZip(t, 7, nil), 422, "In calibrationFile: too few normal images to calibrate on: got 7, expected at least 8"},
	} {
		if a := train(file("calibrationFile", "c.zip", c.data)); a.status != c.status || !strings.Contains(a.message(t), c.contains) {
			t.Errorf("%s: status %d: %s", c.name, a.status, a.body)
		}
	}
	if n := s.uploads(t); n != 0 || s.trainingSlots.running() != 0 {
		t.Errorf("%d uploads are left, %d trainings run", n, s.trainingSlots.running())
	}
}

func TestCalibrate_RejectsInvalidRequests(t *testing.T) {
	s := start(t, func(o *Options) { o.Dataset.Entries = 50 })
	d, document := description(t, s)
	model, zipped := modelPart(t), calibrationPart(t, 8)
	archive := func(data []byte) []part { return []part{model, file("calibrationFile", "c.zip", data)} }
	many := map[string][]byte{}
	for i := range 60 {
		many[strings.Repeat("n", i+1)+".png"] = nil
	}
	for _, c := range []struct {
		name     string
		parts    []part
		status   int
		contains string
	}{
		{"no parts", []part{text("x", "y")}, 400, "Both model file and calibration file are required"},
		{"no model", []part{zipped}, 400, "Both model file and calibration file are required"},
		{"no images", []part{model}, 400, "Both model file and calibration file are required"},
		{"an empty model", []part{file("modelFile", "m", nil), zipped}, 400, "Both model file"},
		{"prose as model", []part{file("modelFile", "m", []byte("prose")), zipped}, 422, "model file"},
		{"prose as images", archive([]byte("prose")), 422, "ZIP"},
		{"an empty zip", archive(testkit.Zip(t, nil)), 400, "No image files found"},
		{"seven images", archive(calibrationZip(t, 7, nil)), 422, "got 7, expected at least 8"},
		{"seven images that can be read", archive(calibrationZip(t, 7, map[string][]byte{"a.png": nil, "b.png": nil})), 422, "got 7 and 2 that cannot be read"},
		{"none that can be read", archive(testkit.Zip(t, map[string][]byte{"a.png": nil, "b.png": nil, "c.png": nil, "d.png": nil, "e.png": nil, "f.png": nil, "g.png": nil, "h.png": nil})), 400, "none of its 8 image files"},
		{"too many files", archive(testkit.Zip(t, many)), 413, "60 files"},
		{"a rate of 0", []part{model, zipped, text("false_alarm_rate", "0")}, 400, "Unusable false alarm rate"},
		{"a rate of 1", []part{model, zipped, text("false_alarm_rate", "1")}, 400, "Unusable false alarm rate"},
		{"a rate in words", []part{model, zipped, text("false_alarm_rate", "few")}, 400, "Unusable false alarm rate"},
		{"a rate that is no number", []part{model, zipped, text("false_alarm_rate", "NaN")}, 400, "Unusable false alarm rate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.post(t, "/calibrate", c.parts...)
			if a.status != c.status || !strings.Contains(a.message(t), c.contains) {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			s.isOneSentence(t, a)
			conforms(t, d, document, http.MethodPost, "/calibrate", a)
			if n := s.uploads(t); n != 0 || s.trainingSlots.running() != 0 {
				t.Errorf("%d uploads are left, %d calibrations run", n, s.trainingSlots.running())
			}
		})
	}
	if a := s.send(t, http.MethodPost, "/calibrate", "application/zip", bytes.NewReader(zipped.data)); a.status != 415 {
		t.Errorf("a body that is not a form: status %d: %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, "/calibrate", "", nil); a.status != 405 {
		t.Errorf("GET: status %d: %s", a.status, a.body)
	}
	s.draining.Store(true)
	// The request is rejected unread: a large form might not be sent to its end.
	a := s.post(t, "/calibrate", file("modelFile", "m", []byte("prose")), zipped)
	s.draining.Store(false)
	if conforms(t, d, document, http.MethodPost, "/calibrate", a); a.status != 503 {
		t.Errorf("during shutdown: status %d: %s", a.status, a.body)
	}
}

// A calibration waits for a training slot, and leaves the queue when its client
// disconnects.
func TestCalibrate_WaitsForATrainingSlot(t *testing.T) {
	s := start(t, func(o *Options) { o.WaitingTrainings = 1 })
	model, zipped := modelPart(t), calibrationPart(t, 8)
	if err := s.trainingSlots.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, disconnect := context.WithCancel(t.Context())
	done := s.postInBackground(t, ctx, "/calibrate", model, zipped)
	eventually(t, "it waits", func() bool { return s.trainingSlots.waiting() == 1 })
	if a := s.post(t, "/calibrate", model, zipped); a.status != 503 || a.message(t) != errBusy.message {
		t.Errorf("with a full queue: status %d: %s", a.status, a.body)
	}
	disconnect()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the request in the queue ended with %v", err)
	}
	eventually(t, "it has left the queue", func() bool { return s.trainingSlots.waiting() == 0 && s.uploads(t) == 0 })
	s.trainingSlots.release()
	if a := s.post(t, "/calibrate", model, zipped); a.status != 200 {
		t.Errorf("with a free slot: status %d: %s", a.status, a.body)
	}
}

func TestCalibrate_StopsWhenTheClientDisconnects(t *testing.T) {
	s := start(t, nil)
	// A network that is slow.
	arch := models.DefaultArchitecture()
	slow := &models.Model{Architecture: arch, Weights: network.InitialWeights(arch.Parameters(), streams.New(1, streams.Weights)), ImageSize: 1024,
		Metadata: models.Metadata{ModelType: models.ModelType, ImageSize: 1024, Threshold: 1}}
	var model bytes.Buffer
	if err := exporter.WriteCheckpoint(&model, slow); err != nil {
		t.Fatal(err)
	}
	ctx, disconnect := context.WithCancel(t.Context())
	done := s.postInBackground(t, ctx, "/calibrate", file("modelFile", "m", model.Bytes()), file("calibrationFile", "c.zip", trainingZip(t, 60, nil)))
	eventually(t, "it runs", func() bool { return s.trainingSlots.running() == 1 })
	disconnect()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the calibration ended with %v before the client disconnected", err)
	}
	eventually(t, "it has stopped", func() bool { return s.trainingSlots.running() == 0 && s.uploads(t) == 0 })
}

func TestCalibrate_TimesOut(t *testing.T) {
	s := start(t, func(o *Options) { o.TrainTime = time.Second })
	if err := s.trainingSlots.acquire(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.trainingSlots.release()
	a := s.post(t, "/calibrate", modelPart(t), calibrationPart(t, 8))
	if a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	s.keepsNoUpload(t)
}

func TestCalibrate_RejectsHostileUploads(t *testing.T) {
	s := start(t, func(o *Options) { o.Dataset.Entries, o.Dataset.UnpackedBytes = 100, 64<<20 })
	canary := filepath.Join(t.TempDir(), "canary")
	after, atEnd := unharmed(t, s)
	defer atEnd()
	model, zipped := modelPart(t), calibrationPart(t, 8)
	for _, d := range hostile.Datasets(canary) {
		t.Run(d.Name, func(t *testing.T) {
			a := s.post(t, "/calibrate", model, file("calibrationFile", "c.zip", d.Data))
			// Most data sets have too few images for a calibration. One has the same image
			// a hundred times.
			want := map[hostile.Outcome][]int{hostile.NotZip: {422}, hostile.Oversized: {413}, hostile.NoImages: {400, 422}, hostile.Trains: {422, 200}}[d.Want]
			if !slices.Contains(want, a.status) {
				t.Errorf("status %d: %.300s; expected one of %d", a.status, a.body, want)
			}
			if a.status != 200 {
				s.isOneSentence(t, a)
			}
			for _, path := range []string{canary, canary + ".png"} {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s was made", path)
				}
			}
			after(t)
		})
	}
	for _, f := range hostile.Models(canary) {
		a := s.post(t, "/calibrate", file("modelFile", "m", f.Data), zipped)
		want := 422
		if f.Want == hostile.TooLarge {
			want = 413
		}
		if a.status != want {
			t.Errorf("%s: status %d: %.300s; expected %d", f.Name, a.status, a.body, want)
		}
		after(t)
	}
	// Hostile images among good ones are skipped.
	files := map[string][]byte{}
	for i, f := range hostile.Images() {
		files[strings.Repeat("i", i+1)+".png"] = f.Data
	}
	s.options.Dataset.Entries = 1000
	a := s.post(t, "/calibrate", model, file("calibrationFile", "c.zip", calibrationZip(t, 8, files)))
	if a.status != 200 || metadataOf(t, unzip(t, a.body)).Decision.CalibratedOn.Skipped != len(files) {
		t.Errorf("status %d: %.300s", a.status, a.body)
	}
	after(t)
}
