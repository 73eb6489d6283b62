package api

import (
	"bytes"
	"encoding/json"
	"image"
	"image/color"
	"image/png"
	"math"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/models"
)

// An explanation contains the verdict that /detect returns without one. All routes return
// the same heatmap.
func TestExplain_ReturnsTheVerdictOfDetect(t *testing.T) {
	s, _ := startWithModels(t, nil)
	model := trained(t)["anomaly_detection_model.zip"]
	s.mustPut(t, "tiles", model)
	image := tile(t, testCrack)
	send := func(path string, parts ...part) answer {
		t.Helper()
		return s.post(t, path, parts...)
	}
	file, shot := part{name: "modelFile", file: "m.zip", data: model}, part{name: "imageFile", file: "a.jpg", data: image}
	yes := part{name: "explain", data: []byte("true")}

	plain := as[inference.Verdict](t, send("/detect", file, shot))
	if plain.Measure != models.MeasurePatchMahalanobis {
		t.Fatalf("the model decides by %s", plain.Measure)
	}
	if a := send("/detect", file, shot); bytes.Contains(a.body, []byte("regions")) || bytes.Contains(a.body, []byte("heatmap")) {
		t.Errorf("an explanation that was not requested: %s", a.body)
	}
	full := as[inference.Explanation](t, send("/detect", file, shot, yes))
	if full.ReconstructionError != plain.ReconstructionError || full.IsAnomaly != plain.IsAnomaly || full.MSE != plain.MSE {
		t.Errorf("with explain %+v, without %+v", full.Verdict, plain)
	}
	if (len(full.Regions) > 0) && !full.IsAnomaly {
		t.Errorf("%d regions of a normal image", len(full.Regions))
	}
	drawn, err := png.Decode(bytes.NewReader(full.Heatmap))
	if err != nil || drawn.Bounds().Dx() != 32 {
		t.Fatalf("%v: a picture of %v", err, drawn.Bounds())
	}
	for path, parts := range map[string][]part{
		"/detect/heatmap": {file, shot}, "/detect/heatmap/": {file, shot}, "/detect/HEATMAP": {file, shot},
		"/models/tiles/detect/heatmap": {shot}, "/models/tiles/detect/heatmap/": {shot}, "/models/tiles/detect/HeatMap": {shot},
	} {
		a := send(path, parts...)
		if a.status != http.StatusOK || a.header.Get("Content-Type") != "image/png" || !bytes.Equal(a.body, full.Heatmap) {
			t.Errorf("%s: status %d, %s, %d bytes", path, a.status, a.header.Get("Content-Type"), len(a.body))
		}
	}
	var list []struct {
		inference.Explanation
		File  string
		Error string
	}
	broken := part{name: "imageFile", file: "b.jpg", data: []byte("prose")}
	a := send("/models/tiles/detect", shot, broken, yes)
	if err := json.Unmarshal(a.body, &list); err != nil || len(list) != 2 {
		t.Fatalf("%v: %s", err, a.body)
	}
	if !bytes.Equal(list[0].Heatmap, full.Heatmap) || list[1].Error == "" || list[1].Heatmap != nil {
		t.Errorf("%+v", list)
	}
}

func TestExplain_RejectsInvalidRequests(t *testing.T) {
	s := start(t, nil)
	zip := trained(t)
	file, shot := part{name: "modelFile", file: "m.zip", data: zip["anomaly_detection_model.zip"]}, part{name: "imageFile", file: "a.jpg", data: tile(t, testCrack)}
	plain := part{name: "metadataFile", file: "metadata.json", data: []byte(`{"threshold": 0.02}`)}
	for name, c := range map[string]struct {
		path     string
		parts    []part
		status   int
		contains string
	}{
		"explain is neither true nor false": {"/detect", []part{file, shot, {name: "explain", data: []byte("perhaps")}}, 400, "perhaps"},
		"a heatmap of two images":           {"/detect/heatmap", []part{file, shot, shot}, 400, "one image"},
		"a decision by the plain error":     {"/detect", []part{file, shot, plain, {name: "explain", data: []byte("1")}}, 422, "no anomaly map"},
		"a heatmap without an image":        {"/detect/heatmap", []part{file}, 400, "required"},
	} {
		a := s.post(t, c.path, c.parts...)
		if a.status != c.status || !strings.Contains(string(a.body), c.contains) {
			t.Errorf("%s: status %d, %s", name, a.status, a.body)
		}
	}
}

// The overlay over the image in grey is the heatmap.
func TestExplain_ReturnsTheColoursAloneAsAnOverlay(t *testing.T) {
	s := start(t, nil)
	model := trained(t)["anomaly_detection_model.zip"]
	send := func(value string) (inference.Explanation, image.Image) {
		t.Helper()
		x := as[inference.Explanation](t, s.post(t, "/detect", part{name: "modelFile", file: "m.zip", data: model},
			part{name: "imageFile", file: "a.jpg", data: tile(t, testCrack)}, part{name: "explain", data: []byte(value)}))
		img, err := png.Decode(bytes.NewReader(x.Heatmap))
		if err != nil {
			t.Fatal(err)
		}
		return x, img
	}
	full, drawn := send("true")
	over, colours := send("overlay")
	if !reflect.DeepEqual(full.Regions, over.Regions) || full.ReconstructionError != over.ReconstructionError {
		t.Errorf("%+v with an overlay, %+v without", over.Regions, full.Regions)
	}
	covered := 0
	for y := range drawn.Bounds().Dy() {
		for x := range drawn.Bounds().Dx() {
			d := color.NRGBAModel.Convert(drawn.At(x, y)).(color.NRGBA)
			c := color.NRGBAModel.Convert(colours.At(x, y)).(color.NRGBA)
			a := float64(c.A) / 255
			if a > 0 {
				covered++
			}
			below := func(d, c uint8) float64 { return (float64(d) - a*float64(c)) / (1 - a) }
			r, g, b := below(d.R, c.R), below(d.G, c.G), below(d.B, c.B)
			if math.Abs(r-g) > 15 || math.Abs(g-b) > 15 { // rounding, divided by 0.15
				t.Fatalf("at %d, %d the heatmap %v is not the colour %v over a grey: it is over %.1f, %.1f, %.1f", x, y, d, c, r, g, b)
			}
		}
	}
	if all := drawn.Bounds().Dx() * drawn.Bounds().Dy(); covered == 0 || covered == all {
		t.Errorf("%d of %d pixels are covered", covered, all)
	}
}

func TestExplain_RejectsOtherValues(t *testing.T) {
	s := start(t, nil)
	a := s.post(t, "/detect", part{name: "modelFile", file: "m.zip", data: trained(t)["anomaly_detection_model.zip"]},
		part{name: "imageFile", file: "a.jpg", data: tile(t, testCrack)}, part{name: "explain", data: []byte("overlays")})
	if a.status != http.StatusBadRequest || !strings.Contains(a.message(t), "true, false or overlay") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}
