package api

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

func TestHealth_FollowsTheContract(t *testing.T) {
	s := start(t, nil)
	a := s.send(t, http.MethodGet, "/health", "", nil)
	var health map[string]any
	if err := json.Unmarshal(a.body, &health); err != nil {
		t.Fatal(err)
	}
	if a.status != 200 || health["status"] != "healthy" || health["service"] != "anomaly-detection-service" {
		t.Errorf("status %d, %s", a.status, a.body)
	}
}

// checkLength checks that an answer is uncompressed and has a Content-Length, which the
// proxies need.
func checkLength(t *testing.T, a answer) {
	t.Helper()
	if got := a.header.Get("Content-Encoding"); got != "" {
		t.Errorf("Content-Encoding is %q", got)
	}
	if a.length != int64(len(a.body)) || a.header.Get("Content-Length") != strconv.Itoa(len(a.body)) {
		t.Errorf("Content-Length is %q for %d bytes", a.header.Get("Content-Length"), len(a.body))
	}
}

// checkBundle checks an answer with a model's zip, and returns the files in the zip.
func checkBundle(t *testing.T, a answer) map[string][]byte {
	t.Helper()
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	checkLength(t, a)
	if a.header.Get("Content-Type") != "application/zip" ||
		a.header.Get("Content-Disposition") != `attachment; filename="anomaly_detection_model.zip"` {
		t.Errorf("headers %v", a.header)
	}
	files := unzip(t, a.body)
	for _, name := range []string{"autoencoder.pt", "autoencoder.onnx", "autoencoder_image.onnx", "metadata.json", "predict.py", "requirements.txt", "README.md"} {
		if len(files[name]) == 0 {
			t.Errorf("%s is missing", name)
		}
	}
	return files
}

func TestTrain_AnswersWithAUsableZip(t *testing.T) {
	s := start(t, nil)
	more := map[string][]byte{
		"data.yaml":  []byte("names: {1: tumor, 0: normal, 2: polyp}\n"),
		"broken.PNG": []byte("no picture"), "__MACOSX/._a.jpg": []byte("fork"), ".hidden.jpg": []byte("dot"),
	}
	a := s.postAcceptingEncodings(t, "/train", text("level", "1"), text("image_size", "32"), text("unknown", "ignored"),
		file("zipFile", "a.zip", trainingZip(t, 6, more)))
	files := checkBundle(t, a)
	m := metadataOf(t, files)
	if m.ModelType != "autoencoder" || m.ImageSize != 32 || len(m.TrainingLosses) != 5 ||
		!slices.Equal(m.ClassNames, []string{"normal", "tumor", "polyp"}) ||
		math.Abs(m.Threshold-(m.MeanError+2*m.StdError)) > 1e-12 {
		t.Errorf("metadata %+v", m)
	}
	if tr := m.Training; tr.Images != 6 || tr.Skipped != 1 || tr.SkippedFiles[0].Name != "broken.PNG" || tr.Level != 1 {
		t.Errorf("training %+v", tr)
	}
	if m.Files["autoencoder.pt"] != models.Identity(files["autoencoder.pt"]) {
		t.Error("the metadata has another SHA-256 than the checkpoint")
	}
	image := tile(t, testGood)
	var first inference.Verdict
	for i, form := range []string{"autoencoder.pt", "autoencoder.onnx", ""} {
		model := a.body
		if form != "" {
			model = files[form]
		}
		d := s.post(t, "/detect", file("imageFile", "i.jpg", image), file("modelFile", "m", model))
		checkLength(t, d)
		var v inference.Verdict
		if err := json.Unmarshal(d.body, &v); err != nil || d.status != 200 {
			t.Fatalf("%q: status %d: %s", form, d.status, d.body)
		}
		if v.IsAnomaly != (v.ReconstructionError > v.Threshold) || v.Threshold != m.Threshold || !slices.Equal(v.ClassNames, m.ClassNames) {
			t.Errorf("%q: %+v", form, v)
		}
		if i == 0 {
			first = v
		} else if v.ReconstructionError != first.ReconstructionError {
			t.Errorf("%q has the score %v, the checkpoint %v", form, v.ReconstructionError, first.ReconstructionError)
		}
	}
	s.keepsNoUpload(t)
}

func TestForm_AcceptsPartsInAnyOrder(t *testing.T) {
	s := start(t, nil)
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	zipped := trainingZip(t, 1, nil)
	for _, c := range []struct {
		name  string
		path  string
		parts []part
	}{
		{"the zip before level and size", "/train", []part{file("zipFile", "a.zip", zipped), text("level", "1"), text("image_size", "16")}},
		{"level and size before the zip", "/train", []part{text("image_size", "16"), text("level", "1"), file("zipFile", "a.zip", zipped)}},
		{"a zip without a file name", "/train", []part{text("zipFile", string(zipped)), text("level", "1"), text("image_size", "16")}},
		{"a level with a file name", "/train", []part{file("zipFile", "a.ZIP", zipped), file("level", "level", []byte("1")), text("image_size", "16")}},
		{"white space around numbers", "/train", []part{file("zipFile", "a.ZIP", zipped), text("level", " 1\r\n"), text("image_size", "16 ")}},
		{"the image before the model", "/detect", []part{file("imageFile", "i", image), file("modelFile", "m", model)}},
		{"parts without file names", "/detect", []part{text("modelFile", string(model)), text("imageFile", string(image))}},
		{"an empty metadata file", "/detect", []part{file("modelFile", "m", model), file("imageFile", "i", image), file("metadataFile", "", nil)}},
		{"unknown parts", "/detect", []part{text("x", "y"), file("modelFile", "m", model), file("z", "z", image), file("imageFile", "i", image)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.post(t, c.path, c.parts...)
			if a.status != 200 {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			body, kind := encode(t, c.parts...)
			// net/http sends a reader of unknown length chunked.
			a = s.send(t, http.MethodPost, c.path, kind, io.MultiReader(body, strings.NewReader("")))
			if a.status != 200 {
				t.Errorf("chunked: status %d: %s", a.status, a.body)
			}
		})
	}
}

func TestParseNumber_ReturnsTheDefaultForAnEmptyField(t *testing.T) {
	for _, c := range []struct {
		text string
		want int
	}{{"", 3}, {"4", 4}} {
		if got, err := parseNumber(c.text, 3, io.EOF); err != nil || got != c.want {
			t.Errorf("parseNumber(%q) = %d, %v", c.text, got, err)
		}
	}
}

func TestDetect_UsesTheMetadataFileAsAWhole(t *testing.T) {
	s := start(t, nil)
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	for _, c := range []struct {
		name, metadata string
		threshold      float64
		classes        []string
	}{
		{"the Python service's", `{"model_type":"autoencoder","image_size":32,"threshold":0.5,"mean_error":0.1,"std_error":0.2,"training_losses":[0.1]}`, 0.5, models.GenericClassNames()},
		{"with class names", `{"threshold":1e-9,"class_names":["a","b"]}`, 1e-9, []string{"a", "b"}},
		{"with a decision", `{"threshold":0.5,"decision":{"measure":"mse","threshold":0.25}}`, 0.25, models.GenericClassNames()},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i", image), file("metadataFile", "m.json", []byte(c.metadata)))
			var v inference.Verdict
			if err := json.Unmarshal(a.body, &v); err != nil || a.status != 200 {
				t.Fatalf("status %d: %s", a.status, a.body)
			}
			if v.Threshold != c.threshold || !slices.Equal(v.ClassNames, c.classes) || v.IsAnomaly != (v.ReconstructionError > c.threshold) {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestTrain_ContinuesFromAnUploadedModel(t *testing.T) {
	s := start(t, nil)
	base, zipped := trained(t)["autoencoder.pt"], trainingZip(t, 2, nil)
	a := s.post(t, "/train", file("zipFile", "a.zip", zipped), text("level", "1"), file("baseModel", "b.pt", base))
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if m := metadataOf(t, unzip(t, a.body)); m.ImageSize != 32 || m.Training.Base != models.Identity(base) {
		t.Errorf("metadata %+v, training %+v", m, m.Training)
	}
	for _, c := range []struct {
		name     string
		more     []part
		contains string
	}{
		{"another image size", []part{file("baseModel", "b.pt", base), text("image_size", "64")}, "32×32"},
		{"prose", []part{file("baseModel", "b.pt", []byte("prose"))}, "model file"},
	} {
		a := s.post(t, "/train", append(c.more, file("zipFile", "a.zip", zipped))...)
		if a.status != 422 || !strings.Contains(a.message(t), c.contains) {
			t.Errorf("%s: status %d: %s", c.name, a.status, a.body)
		}
	}
}

// The Python service failed 180 of 300 requests of 8 concurrent clients.
func TestDetect_ReturnsTheSameVerdictsToConcurrentClients(t *testing.T) {
	const clients, requests = 8, 160
	s := start(t, nil)
	model := trained(t)["autoencoder.pt"]
	var images [][]byte
	for _, folder := range []string{testGood, testCrack, "test/blowhole"} {
		for _, f := range tileFiles(t, folder, 4) {
			images = append(images, read(t, f))
		}
	}
	expected := make([]string, len(images))
	for i, image := range images {
		expected[i] = string(s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i", image)).body)
	}
	next := make(chan int, requests)
	for i := range requests {
		next <- i
	}
	close(next)
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for i := range next {
				image := i % len(images)
				body, kind := encode(t, file("modelFile", "m", model), file("imageFile", "i", images[image]))
				res, err := http.Post(s.url+"/detect", kind, bytes.NewReader(body.Bytes()))
				if err != nil {
					t.Error(err)
					continue
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || res.StatusCode != 200 || string(got) != expected[image] {
					t.Errorf("request %d: status %d, %v: %s, expected %s", i, res.StatusCode, err, got, expected[image])
				}
			}
		})
	}
	group.Wait()
}

// The shortest times must not be rounded to 0, which means no limit.
func TestTrain_RejectsATimeLimitThatIsTooShort(t *testing.T) {
	s := start(t, nil)
	zipped := file("zipFile", "a.zip", trainingZip(t, 2, nil))
	for _, seconds := range []string{"1e-6", "1e-9", "1e-10", "1e-300", "5e-324"} {
		a := s.post(t, "/train", zipped, text("level", "1"), text("image_size", "16"), text("max_seconds", seconds))
		if a.status != 422 || !strings.Contains(a.message(t), "too little") {
			t.Errorf("%s: status %d: %.200s", seconds, a.status, a.body)
		}
	}
}

// 20 seconds are too short for level 5 on this data, and long enough for reading the
// images and one step, even with the race detector on a busy machine.
func TestTrain_EndsWithinMaxSeconds(t *testing.T) {
	s := start(t, nil)
	a := s.post(t, "/train", file("zipFile", "a.zip", trainingZip(t, 40, nil)), text("level", "5"), text("image_size", "256"), text("max_seconds", "20"))
	if a.status != 200 || a.header.Get("X-Training-Ended") != "max_seconds" || !strings.HasSuffix(a.header.Get("X-Training-Epochs"), "/100") {
		t.Fatalf("status %d, headers %v: %.200s", a.status, a.header, a.body)
	}
	m := metadataOf(t, unzip(t, a.body))
	if tr := m.Training; tr.Ended != models.EndedByTime || tr.Steps < 1 || tr.Steps >= tr.PlannedSteps || !(tr.MaxSeconds > 0 && tr.MaxSeconds <= 20) || m.Threshold <= 0 {
		t.Errorf("%+v", tr)
	}
	// The lowest level with heads, on the minimum number of images for them.
	whole := s.post(t, "/train", file("zipFile", "a.zip", trainingZip(t, 16, nil)), text("level", "2"), text("image_size", "16"), text("max_seconds", " 3600.5 "))
	if whole.status != 200 || whole.header.Get("X-Training-Ended") != "complete" || whole.header.Get("X-Training-Epochs") != "10.00/10" {
		t.Fatalf("status %d, headers %v", whole.status, whole.header)
	}
	level, err := trainer.LevelOf(2)
	if err != nil {
		t.Fatal(err)
	}
	if tr := metadataOf(t, unzip(t, whole.body)).Training; tr.HeadSteps != level.HeadSteps || tr.HeadSteps == 0 {
		t.Errorf("%+v", tr)
	}
}
