package api

import (
	"bytes"
	"context"
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
	"github.com/deepmed/anomaly/models"
)

// others is a zip of the n normal tiles of the test, which no model learnt from.
func others(t testing.TB, n int, more map[string][]byte) []byte {
	t.Helper()
	files := map[string][]byte{}
	for _, f := range tileFiles(t, "test/good", n) {
		files[filepath.Base(f)] = read(t, f)
	}
	for name, data := range more {
		files[name] = data
	}
	return zipOf(t, files)
}

func TestCalibrateAnswersTheWholeZipWithANewThreshold(t *testing.T) {
	s := start(t, nil)
	d, document := description(t, s)
	model := trained(t)[models.CheckpointFile]
	body, kind := encode(t, text("false_alarm_rate", " 0.1 "), text("unknown", "ignored"),
		file("calibrationFile", "c.zip", others(t, 20, map[string][]byte{"broken.png": []byte("prose")})), file("modelFile", "m", model))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/calibrate", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	r.Header.Set("Accept-Encoding", "gzip, deflate, br")
	a := s.do(t, r)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	plain(t, a)
	conforms(t, d, document, http.MethodPost, "/calibrate", a)
	if a.header.Get("Content-Type") != "application/zip" || a.header.Get("Content-Disposition") != `attachment; filename="anomaly_detection_model.zip"` ||
		a.header.Get(headerCalibrationImages) != "20" || a.header.Get(headerCalibrationFalseAlarms) == "" {
		t.Errorf("headers %v", a.header)
	}
	files := unzip(t, a.body)
	for _, name := range []string{"autoencoder.pt", "autoencoder.onnx", "autoencoder_image.onnx", "metadata.json", "predict.py", "requirements.txt", "README.md"} {
		if len(files[name]) == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	m, before := metadataOf(t, files), metadataOf(t, trained(t))
	if dec := m.Decision; dec.CalibrationImages != 20 || dec.FalseAlarmRate != 0.1 || len(dec.Scores) != 20 || dec.Threshold == before.Decision.Threshold ||
		dec.CalibratedOn.Images != 20 || dec.CalibratedOn.Skipped != 1 || dec.CalibratedOn.Model != models.Identity(model) {
		t.Errorf("%+v, %+v", dec, dec.CalibratedOn)
	}
	if m.Training.Images != before.Training.Images || math.Abs(m.Threshold-(m.MeanError+2*m.StdError)) > 1e-12 || m.MeanError == before.MeanError {
		t.Errorf("metadata %+v", m)
	}
	// The calibrated model is a model: it can be calibrated again, tells the shift, which
	// is next to none, and gives the same bytes for the same.
	var again [2]answer
	for i := range again {
		again[i] = s.post(t, "/calibrate", file("modelFile", "m", a.body), file("calibrationFile", "c.zip", others(t, 20, nil)))
		shift, err := strconv.ParseFloat(again[i].header.Get(headerCalibrationShift), 64)
		if again[i].status != 200 || err != nil || math.Abs(shift) > 0.1 {
			t.Errorf("status %d, headers %v", again[i].status, again[i].header)
		}
	}
	if !bytes.Equal(again[0].body, again[1].body) {
		t.Error("the same images give other bytes the second time")
	}
	if v := s.post(t, "/detect", file("modelFile", "m", a.body), file("imageFile", "i", read(t, tileFiles(t, "test/crack", 1)[0]))); v.status != 200 {
		t.Errorf("status %d: %s", v.status, v.body)
	}
	if n := s.uploads(t); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}

func TestTrainDrawsTheThresholdFromImagesHeldBack(t *testing.T) {
	s := start(t, nil)
	d, document := description(t, s)
	train := func(more ...part) answer {
		t.Helper()
		a := s.post(t, "/train", append(more, text("level", "1"), text("image_size", "32"), file("zipFile", "a.zip", normals(t, 16, nil)))...)
		conforms(t, d, document, http.MethodPost, "/train", a)
		return a
	}
	calibration := file("calibrationFile", "c.zip", others(t, 20, nil))
	for name, more := range map[string][]part{
		"as long as it takes": {calibration}, "in time": {calibration, text("max_seconds", "600")},
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
		name   string
		data   []byte
		status int
		says   string
	}{
		{"prose", []byte("prose"), 422, "In calibrationFile: the data set is not a readable ZIP file"},
		{"no images", zipOf(t, nil), 400, "In calibrationFile: No image files found"},
		{"too few", others(t, 7, nil), 422, "In calibrationFile: too few normal images to calibrate on: got 7, expected at least 8"},
	} {
		if a := train(file("calibrationFile", "c.zip", c.data)); a.status != c.status || !strings.Contains(a.message(t), c.says) {
			t.Errorf("%s: status %d: %s", c.name, a.status, a.body)
		}
	}
	if n := s.uploads(t); n != 0 || len(s.training.places) != 0 {
		t.Errorf("%d uploads are left, %d trainings go on", n, len(s.training.places))
	}
}

func TestCalibrateRefusesInTheContractsWay(t *testing.T) {
	s := start(t, func(o *Options) { o.Dataset.Entries = 50 })
	d, document := description(t, s)
	model, zipped := file("modelFile", "m", trained(t)[models.CheckpointFile]), file("calibrationFile", "c.zip", others(t, 8, nil))
	archive := func(data []byte) []part { return []part{model, file("calibrationFile", "c.zip", data)} }
	many := map[string][]byte{}
	for i := range 60 {
		many[strings.Repeat("n", i+1)+".png"] = nil
	}
	for _, c := range []struct {
		name   string
		parts  []part
		status int
		says   string
	}{
		{"no parts", []part{text("x", "y")}, 400, "Both model file and calibration file are required"},
		{"no model", []part{zipped}, 400, "Both model file and calibration file are required"},
		{"no images", []part{model}, 400, "Both model file and calibration file are required"},
		{"an empty model", []part{file("modelFile", "m", nil), zipped}, 400, "Both model file"},
		{"prose as model", []part{file("modelFile", "m", []byte("prose")), zipped}, 422, "model file"},
		{"prose as images", archive([]byte("prose")), 422, "ZIP"},
		{"an empty zip", archive(zipOf(t, nil)), 400, "No image files found"},
		{"seven images", archive(others(t, 7, nil)), 422, "got 7, expected at least 8"},
		{"seven images that can be read", archive(others(t, 7, map[string][]byte{"a.png": nil, "b.png": nil})), 422, "got 7 and 2 that cannot be read"},
		{"none that can be read", archive(zipOf(t, map[string][]byte{"a.png": nil, "b.png": nil, "c.png": nil, "d.png": nil, "e.png": nil, "f.png": nil, "g.png": nil, "h.png": nil})), 400, "none of its 8 image files"},
		{"too many files", archive(zipOf(t, many)), 413, "60 files"},
		{"a rate of 0", []part{model, zipped, text("false_alarm_rate", "0")}, 400, "Unusable false alarm rate"},
		{"a rate of 1", []part{model, zipped, text("false_alarm_rate", "1")}, 400, "Unusable false alarm rate"},
		{"a rate in words", []part{model, zipped, text("false_alarm_rate", "few")}, 400, "Unusable false alarm rate"},
		{"a rate that is no number", []part{model, zipped, text("false_alarm_rate", "NaN")}, 400, "Unusable false alarm rate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.post(t, "/calibrate", c.parts...)
			if a.status != c.status || !strings.Contains(a.message(t), c.says) {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			s.toldInOneSentence(t, a)
			conforms(t, d, document, http.MethodPost, "/calibrate", a)
			if n := s.uploads(t); n != 0 || len(s.training.places) != 0 {
				t.Errorf("%d uploads are left, %d are worked on", n, len(s.training.places))
			}
		})
	}
	if a := s.send(t, http.MethodPost, "/calibrate", "application/zip", bytes.NewReader(zipped.data)); a.status != 415 {
		t.Errorf("a body that is no form: status %d: %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodGet, "/calibrate", "", nil); a.status != 405 {
		t.Errorf("GET: status %d: %s", a.status, a.body)
	}
	s.draining.Store(true)
	// It is refused before it is read: a large form might not be sent to its end.
	a := s.post(t, "/calibrate", file("modelFile", "m", []byte("prose")), zipped)
	s.draining.Store(false)
	if conforms(t, d, document, http.MethodPost, "/calibrate", a); a.status != 503 {
		t.Errorf("at the end: status %d: %s", a.status, a.body)
	}
}

// A calibration waits for its turn among trainings, and a client that leaves gives the
// place up.
func TestCalibrationQueuesAsTrainingsDo(t *testing.T) {
	s := start(t, func(o *Options) { o.WaitingTrainings = 1 })
	model, zipped := file("modelFile", "m", trained(t)[models.CheckpointFile]), file("calibrationFile", "c.zip", others(t, 8, nil))
	if err := s.training.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	body, kind := encode(t, model, zipped)
	go func() {
		defer close(gone)
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/calibrate", body)
		if err != nil {
			t.Error(err)
			return
		}
		r.Header.Set("Content-Type", kind)
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
			t.Errorf("status %d", res.StatusCode)
		}
	}()
	eventually(t, "it waits", func() bool { return s.training.outside() == 1 })
	if a := s.post(t, "/calibrate", model, zipped); a.status != 503 || a.message(t) != errBusy.message {
		t.Errorf("one more is answered %d: %s", a.status, a.body)
	}
	leave()
	<-gone
	eventually(t, "who left waits no more, and left nothing", func() bool { return s.training.outside() == 0 && s.uploads(t) == 0 })
	s.training.leave()
	if a := s.post(t, "/calibrate", model, zipped); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

func TestCalibrationEndsWhenItsClientLeaves(t *testing.T) {
	s := start(t, nil)
	// A network that takes its time for each image.
	arch := models.DefaultArchitecture()
	slow := &models.Model{Architecture: arch, Weights: network.InitialWeights(arch.Parameters(), streams.New(1, streams.Weights)), ImageSize: 1024,
		Metadata: models.Metadata{ModelType: models.ModelType, ImageSize: 1024, Threshold: 1}}
	var model bytes.Buffer
	if err := exporter.WriteCheckpoint(&model, slow); err != nil {
		t.Fatal(err)
	}
	body, kind := encode(t, file("modelFile", "m", model.Bytes()), file("calibrationFile", "c.zip", normals(t, 60, nil)))
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/calibrate", body)
		if err != nil {
			t.Error(err)
			return
		}
		r.Header.Set("Content-Type", kind)
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
			t.Errorf("status %d before the client left", res.StatusCode)
		}
	}()
	eventually(t, "it runs", func() bool { return s.training.inside() == 1 })
	leave()
	<-gone
	eventually(t, "it ends, and leaves nothing", func() bool { return s.training.inside() == 0 && s.uploads(t) == 0 })
}

func TestCalibrationThatTakesTooLongIsTold(t *testing.T) {
	s := start(t, func(o *Options) { o.TrainTime = time.Second })
	if err := s.training.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.training.leave()
	a := s.post(t, "/calibrate", file("modelFile", "m", trained(t)[models.CheckpointFile]), file("calibrationFile", "c.zip", others(t, 8, nil)))
	if a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if n := s.uploads(t); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}

func TestHostileUploadsToCalibrateAreRefusedAndTouchNothing(t *testing.T) {
	s := start(t, func(o *Options) { o.Dataset.Entries, o.Dataset.UnpackedBytes = 100, 64<<20 })
	canary := filepath.Join(t.TempDir(), "canary")
	after, atEnd := unharmed(t, s)
	defer atEnd()
	model, zipped := file("modelFile", "m", trained(t)[models.CheckpointFile]), file("calibrationFile", "c.zip", others(t, 8, nil))
	for _, d := range hostile.Datasets(canary) {
		t.Run(d.Name, func(t *testing.T) {
			a := s.post(t, "/calibrate", model, file("calibrationFile", "c.zip", d.Data))
			// Most hold a few images, readable or not, which are too few; one holds one a
			// hundred times.
			want := map[hostile.Outcome][]int{hostile.NotZip: {422}, hostile.Oversized: {413}, hostile.NoImages: {400, 422}, hostile.Trains: {422, 200}}[d.Want]
			if !slices.Contains(want, a.status) {
				t.Errorf("status %d: %.300s; expected one of %d", a.status, a.body, want)
			}
			if a.status != 200 {
				s.toldInOneSentence(t, a)
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
	// Images that mean harm are passed over among good ones.
	files := map[string][]byte{}
	for i, f := range hostile.Images() {
		files[strings.Repeat("i", i+1)+".png"] = f.Data
	}
	s.options.Dataset.Entries = 1000
	a := s.post(t, "/calibrate", model, file("calibrationFile", "c.zip", others(t, 8, files)))
	if a.status != 200 || metadataOf(t, unzip(t, a.body)).Decision.CalibratedOn.Skipped != len(files) {
		t.Errorf("status %d: %.300s", a.status, a.body)
	}
	after(t)
}
