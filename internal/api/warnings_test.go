package api

import (
	"encoding/json"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/models"
)

// decodeWarnings decodes a header as a client does.
func decodeWarnings(t testing.TB, header string) []string {
	t.Helper()
	text, err := url.PathUnescape(header)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatalf("%v: %q", err, text)
	}
	return list
}

func TestTrain_SendsItsWarningsInAHeader(t *testing.T) {
	s := start(t, nil)
	zipped := trainingZip(t, 2, map[string][]byte{"Brüche\r\nX: y.png": []byte("no picture"), "data.yaml": []byte("names: {a: [")})
	a := s.post(t, "/train", smallTraining(zipped)...)
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	m := metadataOf(t, unzip(t, a.body))
	header := a.header.Get("X-Training-Warnings")
	list := decodeWarnings(t, header)
	if len(m.Training.Warnings) == 0 || !slices.Equal(list[:len(list)-1], m.Training.Warnings) {
		t.Errorf("the header has %q, the metadata %q", list, m.Training.Warnings)
	}
	if last := list[len(list)-1]; !strings.Contains(last, "skipped images: 1") || !strings.Contains(last, "Brüche") {
		t.Errorf("the skipped image: %q", last)
	}
	if strings.ContainsFunc(header, func(r rune) bool { return r <= ' ' || r > '~' }) {
		t.Errorf("the header %q", header)
	}
	if a := s.post(t, "/train", smallTraining(trainingZip(t, 2, nil))...); a.status != 200 || len(a.header.Values("X-Training-Warnings")) > len(metadataOf(t, unzip(t, a.body)).Training.Warnings) {
		t.Errorf("without warnings: status %d, %q", a.status, a.header.Values("X-Training-Warnings"))
	}
}

func TestCalibrate_SendsItsWarningsInAHeader(t *testing.T) {
	s := start(t, nil)
	skipped := calibrationZip(t, 8, map[string][]byte{"broken.png": []byte("no picture")})
	a := s.post(t, "/calibrate", modelPart(t), file("calibrationFile", "c.zip", skipped), text("false_alarm_rate", "0.01"))
	if a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	list := decodeWarnings(t, a.header.Get("X-Calibration-Warnings"))
	if want := metadataOf(t, unzip(t, a.body)).Decision.CalibratedOn.Warnings; len(want) == 0 || !slices.Equal(list[:len(list)-1], want) {
		t.Errorf("the header has %q, the metadata %q", list, want)
	}
	if !strings.Contains(list[len(list)-1], "broken.png") {
		t.Errorf("%q", list)
	}
}

func TestEncodeWarnings_BoundsTheHeader(t *testing.T) {
	for name, c := range map[string]struct {
		warnings []string
		want     []string // nil for any
	}{
		"one":                {[]string{"a, b; 100%"}, []string{"a, b; 100%"}},
		"many":               {slices.Repeat([]string{"w"}, 100), append(slices.Repeat([]string{"w"}, maxWarnings), "more warnings, in metadata.json: 84")},
		"long":               {[]string{strings.Repeat("x", 5000)}, []string{strings.Repeat("x", maxWarningBytes) + "…"}},
		"many long ones":     {slices.Repeat([]string{strings.Repeat("ü", 500)}, 50), nil},
		"control characters": {[]string{strings.Repeat("\x00", 5000)}, []string{"more warnings, in metadata.json: 1"}},
		"not UTF-8":          {[]string{strings.Repeat("\xff", 300)}, nil},
	} {
		header := encodeWarnings(c.warnings)
		if len(header) > maxWarningsHeader {
			t.Errorf("%s: %d bytes", name, len(header))
		}
		if got := decodeWarnings(t, header); c.want != nil && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestDetect_WarnsOfMetadataThatChangesTheMeasure(t *testing.T) {
	s := start(t, nil)
	model, image := modelPart(t), imagePart(t)
	own := trained(t)[models.MetadataFile]
	for name, c := range map[string]struct {
		metadata string
		measure  string
		warns    bool
	}{
		"none":                          {"", models.MeasurePatchMahalanobis, false},
		"the model's own":               {string(own), models.MeasurePatchMahalanobis, false},
		"the model's own, with a mark":  {"\ufeff" + string(own), models.MeasurePatchMahalanobis, false},
		"the threshold alone":           {`{"threshold": 3.5}`, models.MeasureMSE, true},
		"the threshold alone and marks": {"\ufeff" + `{"threshold": 3.5}`, models.MeasureMSE, true},
		"mse by name":                   {`{"threshold": 3.5, "decision": {"measure": "mse", "threshold": 3.5}}`, models.MeasureMSE, false},
	} {
		a := s.post(t, "/detect", model, image, file("metadataFile", "m.json", []byte(c.metadata)))
		if a.status != 200 {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
			continue
		}
		v := as[inference.Verdict](t, a)
		if v.Measure != c.measure || (len(v.Warnings) > 0) != c.warns {
			t.Errorf("%s: %s", name, a.body)
		}
		if c.warns && !strings.Contains(string(a.body), `"warnings":["the metadata names no decision: the verdict is by mse`) {
			t.Errorf("%s: %s", name, a.body)
		}
	}
	// Each image of a list has the warning.
	a := s.post(t, "/detect", model, image, image, file("metadataFile", "m.json", []byte(`{"threshold": 3.5}`)))
	if list := as[[]inference.Verdict](t, a); len(list) != 2 || len(list[0].Warnings) != 1 || len(list[1].Warnings) != 1 {
		t.Errorf("%s", a.body)
	}
}

// Clients iterate over the list without a check for null.
func TestExplain_SendsAnEmptyListForNoRegions(t *testing.T) {
	s := start(t, nil)
	meta := metadataOf(t, trained(t))
	meta.Decision.Threshold = 1e6
	high, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	a := s.post(t, "/detect", modelPart(t), imagePart(t), file("metadataFile", "m.json", high), text("explain", "true"))
	if a.status != 200 || !strings.Contains(string(a.body), `"regions":[]`) {
		t.Errorf("status %d: %.300s", a.status, a.body)
	}
	a = s.post(t, "/detect", modelPart(t), imagePart(t), imagePart(t), file("metadataFile", "m.json", high), text("explain", "true"))
	if a.status != 200 || strings.Count(string(a.body), `"regions":[]`) != 2 {
		t.Errorf("several images: status %d: %.300s", a.status, a.body)
	}
}
