package api

import (
	"net/http"
	"strings"
	"testing"
)

func TestForm_RejectsFieldsInTheURL(t *testing.T) {
	s, _ := startWithModels(t, nil)
	model, image := modelPart(t), imagePart(t)
	s.mustPut(t, "tiles", model.data)
	training := smallTraining(trainingZip(t, 1, nil))
	for _, c := range []struct {
		path  string
		field string // in the message
		parts []part
	}{
		{"/train?level=5", "level", training},
		{"/train?level", "level", training},
		{"/train?x=y&max_seconds=10", "max_seconds", training},
		{"/train?image%5Fsize=32", "image_size", training},
		{"/train?zipFile=a.zip", "zipFile", []part{text("level", "1")}},
		{"/train?false_alarm_rate=", "false_alarm_rate", training},
		{"/train/?level=5", "level", training},
		{"/calibrate?false_alarm_rate=0.1", "false_alarm_rate", []part{model, calibrationPart(t, 8)}},
		{"/detect?explain=true", "explain", []part{model, image}},
		{"/detect?metadataFile=m.json", "metadataFile", []part{model, image}},
		{"/detect/heatmap?explain=1", "explain", []part{model, image}},
		{"/models/tiles/detect?explain=1", "explain", []part{image}},
		{"/models/tiles/detect/heatmap?explain=1", "explain", []part{image}},
	} {
		a := s.post(t, c.path, c.parts...)
		if message := a.message(t); a.status != 400 || !strings.Contains(message, "field "+c.field) || !strings.Contains(message, "form") {
			t.Errorf("%s: status %d: %s", c.path, a.status, a.body)
		}
	}
	for _, kind := range []string{"", "application/octet-stream"} {
		if a := s.send(t, http.MethodPut, "/models/other?modelFile=m", kind, strings.NewReader(string(model.data))); a.status != 400 || !strings.Contains(a.message(t), "modelFile") {
			t.Errorf("PUT as %q: status %d: %s", kind, a.status, a.body)
		}
	}
	s.keepsNoUpload(t)
}

func TestForm_IgnoresUnknownQueryParameters(t *testing.T) {
	s := start(t, nil)
	for _, path := range []string{"/detect?level=5", "/detect?x=y&utm_source=mail", "/detect?", "/detect?=", "/detect?Explain=true"} {
		if a := s.post(t, path, modelPart(t), imagePart(t)); a.status != 200 {
			t.Errorf("%s: status %d: %s", path, a.status, a.body)
		}
	}
}

// The sentences are the Python service's for /train and /detect, whose clients may match
// them as a whole.
func TestForm_WithoutFilesNamesTheMissingFile(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "tiles", modelPart(t).data)
	boundary := "multipart/form-data; boundary=b"
	unchosen := func(name string) string { // as a browser sends it
		return "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"; filename=\"\"\r\nContent-Type: application/octet-stream\r\n\r\n\r\n"
	}
	for path, sentence := range map[string]string{
		"/train":                       "No ZIP file uploaded",
		"/detect":                      "Both model file and image file are required",
		"/detect/heatmap":              "Both model file and image file are required",
		"/calibrate":                   errNoCalibration.message,
		"/models/tiles/detect":         errNoImage.message,
		"/models/tiles/detect/heatmap": errNoImage.message,
	} {
		for name, c := range map[string]struct{ kind, body string }{
			"nothing at all":                          {"", ""},
			"an empty form":                           {boundary, ""},
			"an empty form without a boundary":        {"multipart/form-data", ""},
			"an empty body of another type":           {"application/json", ""},
			"a form without parts":                    {boundary, "--b--\r\n"},
			"a form with a field":                     {boundary, "--b\r\nContent-Disposition: form-data; name=\"level\"\r\n\r\n3\r\n--b--\r\n"},
			"a form with files that are not chosen":   {boundary, unchosen("zipFile") + unchosen("modelFile") + unchosen("imageFile") + unchosen("calibrationFile") + "--b--\r\n"},
			"a URL-encoded form":                      {"application/x-www-form-urlencoded", "level=3&zipFile=a.zip"},
			"a URL-encoded form with a character set": {"application/x-www-form-urlencoded; charset=UTF-8", "level=9"},
			"an empty URL-encoded form":               {"application/x-www-form-urlencoded", ""},
			"a long URL-encoded form":                 {"application/x-www-form-urlencoded", strings.Repeat("a=b&", 1<<16)},
		} {
			a := s.send(t, http.MethodPost, path, c.kind, strings.NewReader(c.body))
			if a.status != 400 || a.message(t) != sentence {
				t.Errorf("%s, %s: status %d: %s", path, name, a.status, a.body)
			}
			if strings.Contains(c.body, "level=") { // the same in chunks
				a = s.send(t, http.MethodPost, path, c.kind, struct{ *strings.Reader }{strings.NewReader(c.body)})
				if a.status != 400 || a.message(t) != sentence {
					t.Errorf("%s, %s, chunked: status %d: %s", path, name, a.status, a.body)
				}
			}
		}
	}
	s.keepsNoUpload(t)
}

func TestTrain_IgnoresFilesThatAreNotChosen(t *testing.T) {
	s := start(t, nil)
	body, kind := encode(t, smallTraining(trainingZip(t, 1, nil))...)
	_, boundary, _ := strings.Cut(kind, "boundary=")
	form := ""
	for _, name := range []string{"calibrationFile", "zipFile", "baseModel"} {
		form += "--" + boundary + "\r\nContent-Disposition: form-data; name=\"" + name + "\"; filename=\"\"\r\n\r\n\r\n"
	}
	if a := s.send(t, http.MethodPost, "/train", kind, strings.NewReader(form+body.String())); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	s.keepsNoUpload(t)
}

// Clients may match the sentence as a whole.
func TestTrain_RejectsLevelsWithTheContractsSentence(t *testing.T) {
	s := start(t, nil)
	zipped := file("zipFile", "a.zip", trainingZip(t, 1, nil))
	for _, level := range []string{"0", "6", "-1", "abc", "3.5", "99999999999999999999"} {
		if a := s.post(t, "/train", zipped, text("level", level)); a.status != 400 || a.message(t) != "Level must be between 1 and 5" {
			t.Errorf("%s: status %d: %s", level, a.status, a.body)
		}
	}
}
