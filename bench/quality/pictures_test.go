package main

import (
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/trainer"
	"github.com/disintegration/imaging"
)

func TestPictures_DrawsBothSheets(t *testing.T) {
	e := orttest.Open(t)
	const tiles = "../../testdata/tiles"
	l, err := train(t.Context(), e, filepath.Join(tiles, evaluation.TrainFolder), trainer.Options{Level: 1, ImageSize: 64}, true)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	found, missed := filepath.Join(dir, "found.jpg"), filepath.Join(dir, "missed.jpg")
	var out bytes.Buffer
	err = judge(e, l.model, func(d *inference.Detector) error {
		if err := pictures(t.Context(), d, tiles, "no such defect", 6, 2, found, missed, io.Discard); err == nil {
			t.Error("unknown defect: no error")
		}
		return pictures(t.Context(), d, tiles, "blowhole", 6, 2, found, missed, &out)
	})
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(out.String(), "\n"); len(lines) != 3 || !strings.Contains(lines[0], "of 10 found") {
		t.Errorf("%q", out.String())
	}
	img, err := imaging.Open(found)
	if err != nil {
		t.Fatal(err)
	}
	// The first heatmap is colourful, because it is of a defect; the image is grey.
	colour := func(left int) int {
		most := 0
		for y := gap + lineHeight; y < gap+lineHeight+pictureSide; y++ {
			for x := left; x < left+pictureSide; x++ {
				r, _, b, _ := img.At(x, y).RGBA()
				most = max(most, int(r>>8)-int(b>>8))
			}
		}
		return most
	}
	if image, heat := colour(gap), colour(gap+pictureSide+seam); image > 60 || heat < 100 {
		t.Errorf("colour range of the image %d, of its heatmap %d", image, heat)
	}
}
