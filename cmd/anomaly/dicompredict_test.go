package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"math"
	"path/filepath"
	"strings"
	"testing"
)

func TestPredict_ReadsDICOMAsDetect(t *testing.T) {
	s := newScript(t)
	if finish(t, s.python(t, "import pydicom.pixels")).status != 0 {
		t.Skip("pydicom is not installed in the Python of " + envPython)
	}
	files, err := filepath.Glob("../../testdata/dicom/*.dcm")
	if err != nil || len(files) < 100 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	// Others need further packages, or have a lossy codec or no preamble.
	prefixes := []string{"explicit_", "implicit_", "big_", "deflated_", "rle_"}
	further := 20 // frames of files of several
	if finish(t, s.python(t, "import libjpeg, openjpeg, jpeg_ls")).status == 0 {
		further = 40
		prefixes = append(prefixes, "jpegls_", "jpeg_lossless_", "jpeg2000_frames", "jpeg2000_mono", "jpeg_12_")
	}
	var images []string
	for _, f := range files {
		base := filepath.Base(f)
		for _, prefix := range prefixes {
			if strings.HasPrefix(base, prefix) {
				images = append(images, f)
			}
		}
	}
	ours := entries(t, run(t, append([]string{"detect", "--json", "--model", filepath.Join(s.dir, "autoencoder.onnx")}, images...)...))
	theirs := entries(t, s.run(t, append([]string{"--json"}, images...)...))
	if len(ours) != len(theirs) || len(ours) < len(images)+further || len(images) < 70 {
		t.Fatalf("%d and %d entries of %d images", len(ours), len(theirs), len(images))
	}
	for i, x := range ours {
		y := theirs[i]
		tolerance := 1e-4
		if strings.HasPrefix(filepath.Base(x.File), "jpeg_12_") { // pylibjpeg's values differ by up to 3 of 4095
			tolerance = 1e-2
		}
		if x.File != y.File {
			t.Errorf("detect has %s, predict.py %s", x.File, y.File)
		}
		if x.Error != nil || y.Error != nil {
			message := ""
			if y.Error != nil {
				message = *y.Error
			}
			t.Errorf("%s: detect has %+v, predict.py %s", x.File, x, message)
			continue
		}
		if math.Abs(*x.Value-*y.Value) > tolerance**x.Value || math.Abs(*x.MSE-*y.MSE) > tolerance**x.MSE {
			t.Errorf("%s: detect has %v, predict.py %v", x.File, *x.Value, *y.Value)
		}
	}
}

func TestPredict_AnswersForAFileOfSeveralFramesAsTheService(t *testing.T) {
	s := newScript(t)
	if finish(t, s.python(t, "import pydicom.pixels")).status != 0 {
		t.Skip("pydicom is not installed in the Python of " + envPython)
	}
	dir := t.TempDir()
	var frames []*image.Gray
	for _, f := range append(tileFiles(t, "test/crack", 1), tileFiles(t, "test/good", 2)...) {
		frames = append(frames, squareTile(t, f))
	}
	file := filepath.Join(dir, "many.dcm")
	write(t, dir, "many.dcm", dicomFrames(frames[1], frames[0], frames[2]))
	list := entries(t, run(t, "detect", "--json", "--model", filepath.Join(s.dir, "autoencoder.onnx"), file))
	if len(list) != 3 {
		t.Fatalf("%d entries, expected 3", len(list))
	}
	highest := 0
	for i := range list {
		if *list[i].Value > *list[highest].Value {
			highest = i
		}
	}
	r := finish(t, s.python(t, fmt.Sprintf("import json, sys; sys.path.insert(0, %q); import predict; print(json.dumps(predict.detect_anomaly(%q)))", s.dir, file)))
	var answer struct {
		Score  float64 `json:"reconstruction_error"`
		Frame  int     `json:"frame"`
		Frames []struct {
			Frame int     `json:"frame"`
			Score float64 `json:"reconstruction_error"`
		} `json:"frames"`
		Regions []any `json:"regions"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil {
		t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	if answer.Frame != highest+1 || len(answer.Frames) != 3 || answer.Score != answer.Frames[highest].Score {
		t.Errorf("%+v, expected frame %d of 3", answer, highest+1)
	}
	for i, f := range answer.Frames {
		if f.Frame != i+1 || math.Abs(f.Score-*list[i].Value) > 1e-4**list[i].Value {
			t.Errorf("frame %d has %v, expected %v", f.Frame, f.Score, *list[i].Value)
		}
	}
	write(t, dir, "many.dcm", bytes.Replace(dicomFrames(frames...), []byte(dicomElement(0x28, 8, "IS", "3")), []byte(dicomElement(0x28, 8, "IS", "2001")), 1))
	if r := s.run(t, "--json", file); r.status != exitError || !strings.Contains(r.stdout, "it has 2001 frames, at most 2000 are read") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	write(t, dir, "many.dcm", dicomOf(frames[0], dicomElement(0x28, 0x1050, "DS", "PLANTEDID")+dicomElement(0x28, 0x1051, "DS", "100")))
	if r := s.run(t, "--json", file); r.status != exitError || leaks(r.stdout+r.stderr) != nil {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestPredict_NamesPydicomWhereItIsMissing(t *testing.T) {
	s := newScript(t)
	without := t.TempDir()
	write(t, without, "pydicom.py", []byte("raise ImportError('none')\n"))
	s.env = append(s.env, "PYTHONPATH="+without)
	r := s.run(t, "--json", "../../testdata/dicom/explicit_mono2_8.dcm")
	var list []struct{ Error string }
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || len(list) != 1 || !strings.Contains(list[0].Error, "DICOM images need pydicom 3: pip install pydicom") || r.status != exitError {
		t.Errorf("exit %d, %v: %s%s", r.status, err, r.stdout, r.stderr)
	}
}
