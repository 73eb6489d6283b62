package api

import (
	"bytes"
	"fmt"
	"image"
	"image/png"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// speckled returns a PNG of w×h random grey pixels.
func speckled(t testing.TB, seed uint64, w, h int) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	m := image.NewGray(image.Rect(0, 0, w, h))
	for i := range m.Pix {
		m.Pix[i] = byte(120 + 8*r.NormFloat64())
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTrain_CutsImagesIntoTiles(t *testing.T) {
	s, _ := startWithModels(t, nil)
	images := map[string][]byte{}
	for i := range 8 {
		images[fmt.Sprintf("%d.png", i)] = speckled(t, uint64(i), 120, 70)
	}
	zipped := file("zipFile", "a.zip", testkit.Zip(t, images))
	a := s.post(t, "/train", zipped, text("level", "1"), text("tile", "64"), text("overlap", "8"), text("tiles", "places"))
	if a.status != http.StatusOK {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	bundle := a.body
	files := unzip(t, bundle)
	m := metadataOf(t, files)
	if tiles := m.Preprocessing.Tiles; tiles == nil || tiles.Overlap != 8 || tiles.Columns != 2 || tiles.Rows != 2 || m.ImageSize != 64 || m.Decision.Tiles.Count != 4 {
		t.Fatalf("%+v, decision %+v", m.Preprocessing.Tiles, m.Decision)
	}
	model := file("modelFile", "m.pt", files[models.CheckpointFile])
	a = s.post(t, "/detect", model, file("imageFile", "a.png", speckled(t, 99, 120, 70)), text("explain", "true"))
	x := as[inference.Explanation](t, a)
	if a.status != http.StatusOK || x.Measure != models.MeasureTiledPatchMahalanobis {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if c, err := png.DecodeConfig(bytes.NewReader(x.Heatmap)); err != nil || c.Width != 120 || c.Height != 70 {
		t.Errorf("a heatmap of %d×%d pixels, %v", c.Width, c.Height, err)
	}
	small := file("imageFile", "b.png", speckled(t, 1, 64, 64))
	if a := s.post(t, "/detect", model, small); a.status != http.StatusUnprocessableEntity || !strings.Contains(a.message(t), "2×2") {
		t.Errorf("an image of other places: status %d: %s", a.status, a.body)
	}
	// Of several images it is the result of one.
	a = s.post(t, "/detect", model, small, file("imageFile", "a.png", speckled(t, 2, 120, 70)))
	if list := as[[]map[string]any](t, a); a.status != http.StatusOK || list[0]["error"] == nil || list[1]["anomaly_score"] == nil {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	// A tile alone has no place, so the protocol of /v2 cannot judge it.
	s.mustPut(t, "places", bundle)
	input := fmt.Sprintf(`{"inputs":[{"name":"image","datatype":"FP32","shape":[1,3,64,64],"data":[%s0]}]}`, strings.Repeat("0,", 3*64*64-1))
	request := s.newRequest(t, http.MethodPost, "/v2/models/places/infer", http.Header{"Content-Type": {"application/json"}}, strings.NewReader(input))
	if a := s.do(t, request); a.status != http.StatusUnprocessableEntity || !strings.Contains(string(a.body), "/detect") {
		t.Errorf("a tile without its place: status %d: %s", a.status, a.body)
	}
	for words, fields := range map[string][]part{
		"no fit":           {text("tile", "64"), text("fit", "pad")},
		"multiple of 16":   {text("tile", "70")},
		"overlap by 33":    {text("tile", "64"), text("overlap", "33")},
		"number of pixels": {text("tile", "large")},
		"set the tile":     {text("tiles", "same")},
		"image size and":   {text("tile", "64"), text("image_size", "64")},
		"at most 8192":     {text("tile", "64"), text("longest_side", "10000")},
	} {
		if a := s.post(t, "/train", append(fields, zipped)...); a.status != http.StatusBadRequest || !strings.Contains(a.message(t), words) {
			t.Errorf("%v: status %d: %.200s; expected 400 and %q", fields, a.status, a.body, words)
		}
	}
	few := testkit.Zip(t, map[string][]byte{"a.png": images["1.png"], "b.png": images["2.png"]})
	if a := s.post(t, "/train", file("zipFile", "a.zip", few), text("tile", "64")); a.status != http.StatusUnprocessableEntity || !strings.Contains(a.message(t), "at least 8") {
		t.Errorf("two images: status %d: %s", a.status, a.body)
	}
	s.keepsNoUpload(t)
}
