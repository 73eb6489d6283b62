package api

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// band returns a PNG of w×h pixels of 12 bits in 16, with a defect at a point.
func band(t testing.TB, seed, w, h int, defect image.Point) []byte {
	t.Helper()
	m := image.NewGray16(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			v := 1500 + 20*x + (x*y*(seed+3))%97
			if image.Pt(x, y).Sub(defect).In(image.Rect(0, 0, 9, 9)) {
				v = 4000
			}
			m.SetGray16(x, y, color.Gray16{Y: uint16(v)})
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTrain_PreparesImagesAsTheFormAsks(t *testing.T) {
	s := start(t, nil)
	images, nowhere := map[string][]byte{}, image.Pt(-99, 0)
	for i := range 8 {
		images[fmt.Sprintf("%d.png", i)] = band(t, i, 100, 40, nowhere)
	}
	mask := image.NewGray(image.Rect(0, 0, 10, 4))
	for i := range mask.Pix {
		if i%10 < 5 {
			mask.Pix[i] = 255
		}
	}
	var roi bytes.Buffer
	if err := png.Encode(&roi, mask); err != nil {
		t.Fatal(err)
	}
	zipped := file("zipFile", "a.zip", testkit.Zip(t, images))
	a := s.post(t, "/train", file("roiFile", "roi.png", roi.Bytes()), text("imageSize", "64x32"), text("fit", "pad"), text("window", "1000,4095"), text("level", "1"), zipped)
	if a.status != http.StatusOK {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	files := unzip(t, a.body)
	m := metadataOf(t, files)
	p := m.Preprocessing
	if m.ImageSize != 0 || p.Width != 64 || p.Height != 32 || p.Fit != models.FitPad || *p.Window != (models.Window{1000, 4095}) || p.Region.Share() != 0.5 || m.FormatVersion != 2 {
		t.Fatalf("image_size %d, format %d, %+v", m.ImageSize, m.FormatVersion, p)
	}
	j := s.submit(t, file("roiFile", "roi.png", roi.Bytes()), text("imageSize", "64x32"), text("fit", "pad"), text("window", "1000,4095"), text("level", "1"), zipped)
	s.becomes(t, j.ID, jobs.Succeeded)
	if of := metadataOf(t, unzip(t, s.request(t, "GET", "/jobs/"+j.ID+"/model", nil).body)).Preprocessing; !reflect.DeepEqual(of, p) {
		t.Errorf("a job prepares images as %+v, the request as %+v", of, p)
	}
	model := file("modelFile", "m.pt", files[models.CheckpointFile])
	judge := func(defect image.Point) inference.Explanation {
		a := s.post(t, "/detect", model, file("imageFile", "a.png", band(t, 1, 100, 40, defect)), text("explain", "true"))
		if a.status != http.StatusOK {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
		return as[inference.Explanation](t, a)
	}
	good, inside, outside := judge(nowhere), judge(image.Pt(20, 15)), judge(image.Pt(80, 15))
	if inside.ReconstructionError <= good.ReconstructionError || outside.ReconstructionError != good.ReconstructionError {
		t.Errorf("a score of %v without a defect, %v with one in the region, %v with one outside", good.ReconstructionError, inside.ReconstructionError, outside.ReconstructionError)
	}
	if c, err := png.DecodeConfig(bytes.NewReader(inside.Heatmap)); err != nil || c.Width != 100 || c.Height != 40 {
		t.Errorf("a heatmap of %d×%d pixels, %v", c.Width, c.Height, err)
	}
	for words, fields := range map[string][]part{
		"multiple of 16":            {text("image_size", "100x64")},
		"a width and a height such": {text("image_size", "64x")},
		"squash, pad or crop":       {text("fit", "stretch")},
		"the lowest and":            {text("window", "5")},
		"shares of the image":       {text("roi", "1,2,3,4")},
		"make them larger":          {text("image_size", "64x32"), text("roi", "0,0,0.001,0.001")},
		"one of them":               {text("roi", "0,0,1,1"), file("roiFile", "roi.png", roi.Bytes())},
		"mask of the region":        {file("roiFile", "roi.png", []byte("prose"))},
	} {
		if a := s.post(t, "/train", append(fields, zipped)...); a.status != http.StatusBadRequest || !strings.Contains(a.message(t), words) {
			t.Errorf("%s: status %d: %s; expected 400", words, a.status, a.body)
		}
	}
	s.keepsNoUpload(t)
}
