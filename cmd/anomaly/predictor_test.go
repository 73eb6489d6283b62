package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	_ "image/jpeg"
	"image/png"
	"io"
	"math"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// defectivePNG returns a tile with a white square, without loss: every decoder returns
// the same pixels.
func defectivePNG(t testing.TB) []byte {
	t.Helper()
	tile, _, err := image.Decode(bytes.NewReader(read(t, tileFiles(t, "test/good", 1)[0])))
	if err != nil {
		t.Fatal(err)
	}
	b := tile.Bounds()
	grey := image.NewGray(b)
	draw.Draw(grey, b, tile, b.Min, draw.Src)
	draw.Draw(grey, image.Rect(40, 50, 120, 110), image.NewUniform(color.White), image.Point{}, draw.Src)
	return encoded(t, grey)
}

func encoded(t testing.TB, m image.Image) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := png.Encode(&out, m); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// inFolder runs predict.py in the folder of the model.
func (s script) inFolder(t testing.TB, args ...string) ran {
	t.Helper()
	c := exec.Command(s.interpreter, append([]string{"predict.py"}, args...)...)
	c.Dir = s.dir
	c.Env = append(os.Environ(), s.env...)
	return finish(t, c)
}

// failed checks an exit with status 2, nothing on standard output, and one sentence
// with the words on standard error.
func (r ran) failed(t testing.TB, words ...string) {
	t.Helper()
	sentence, ok := strings.CutSuffix(r.stderr, "\n")
	if r.status != exitError || r.stdout != "" || !ok || strings.Contains(sentence, "\n") {
		t.Errorf("exit %d, stdout %q, stderr %q; expected 2 and one sentence", r.status, r.stdout, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(sentence, w) {
			t.Errorf("%q has no %q", sentence, w)
		}
	}
}

// explanation is the answer of /detect with explain=true.
type explanation struct {
	entry
	Regions []region `json:"regions"`
}

type region struct {
	X, Y, Width, Height int
	Score               float64
}

// explain sends the model and the image to a service.
func explain(t testing.TB, address string, model, image []byte) explanation {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for name, data := range map[string][]byte{"modelFile": model, "imageFile": image} {
		part, err := w.CreateFormFile(name, name)
		if err == nil {
			_, err = part.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteField("explain", "true"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	res, err := http.Post("http://"+address+"/detect", w.FormDataContentType(), &body)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	var e explanation
	if err != nil || res.StatusCode != http.StatusOK || json.Unmarshal(data, &e) != nil {
		t.Fatalf("status %d, %v: %.200s", res.StatusCode, err, data)
	}
	return e
}

// sameRegions compares the scores within the rounding of float32.
func sameRegions(a, b []region) bool {
	return slices.EqualFunc(a, b, func(a, b region) bool {
		near := math.Abs(a.Score-b.Score) <= 1e-4*a.Score
		a.Score, b.Score = 0, 0
		return near && a == b
	})
}

// virtualEnvironment makes ./venv in the folder, as DeepMed's predictor does. The packages
// of the test's Python stand in for the installation of requirements.txt, which needs a
// network.
func virtualEnvironment(t testing.TB, s script) string {
	t.Helper()
	c := exec.Command(s.interpreter, "-m", "venv", "--without-pip", "venv")
	c.Dir = s.dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	packages := func(interpreter string) string {
		out, err := exec.Command(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	interpreter := filepath.Join(s.dir, "venv", "bin", "python")
	write(t, packages(interpreter), "test.pth", []byte(packages(s.interpreter)+"\n"))
	return interpreter
}

func TestPredictScript_JudgesTheOneImageBesideIt(t *testing.T) {
	s := newScript(t)
	picture := defectivePNG(t)
	write(t, s.dir, "model_package.zip", read(t, smallModel(t)))
	write(t, s.dir, "Scan 1.PNG", picture)
	write(t, s.dir, "._Scan 1.PNG", []byte("\x00\x05\x16\x07"))
	s.interpreter = virtualEnvironment(t, s)
	write(t, filepath.Join(s.dir, "venv"), "logo.png", picture)

	c := exec.Command(s.interpreter, filepath.Join(s.dir, "predict.py"))
	c.Dir = s.dir
	r := finish(t, c)
	if r.status != 0 {
		t.Fatalf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	want := explain(t, serve(t, nil, "--addr", "127.0.0.1:0").address, read(t, smallModel(t)), picture)
	if !*want.IsAnomaly || len(want.Regions) == 0 {
		t.Fatalf("the image must be anomalous for this test: %+v", want)
	}
	lines := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n")
	for i, line := range []string{
		"File:         Scan 1.PNG", "Verdict:      ANOMALY: the score is above the threshold",
		"Score:        ", fmt.Sprintf("Threshold:    %.6g", *want.Threshold), "Class names:  normal, anomaly",
		fmt.Sprintf("Regions:      %d above the threshold; boxes in pixels from the top left", len(want.Regions)),
	} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], line) {
			t.Fatalf("line %d is not %q:\n%s", i+1, line, r.stdout)
		}
	}
	var score float64
	if _, err := fmt.Sscanf(lines[2], "Score: %g", &score); err != nil || math.Abs(score-*want.Value) > 1e-4*score {
		t.Errorf("the score is %q, of the service %v", lines[2], *want.Value)
	}
	var got []region
	for _, line := range lines[6:] {
		var box region
		if _, err := fmt.Sscanf(line, "  x %d, y %d, width %d, height %d: score %g", &box.X, &box.Y, &box.Width, &box.Height, &box.Score); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		got = append(got, box)
	}
	if !sameRegions(want.Regions, got) {
		t.Errorf("the regions are %v, of the service %v", got, want.Regions)
	}
}

func TestPredictScript_ExitsWith0ForEveryVerdictWithoutImageArguments(t *testing.T) {
	s := newScript(t)
	write(t, s.dir, "photo", defectivePNG(t)) // without an ending, recognized by its content
	for verdict, threshold := range map[string]string{"ANOMALY: ": "1e-12", "normal: ": "1000"} {
		metadata := write(t, t.TempDir(), "m.json", []byte(`{"threshold": `+threshold+`, "class_names": ["gut", "Riß"]}`))
		for _, option := range []string{"--metadata", "--metadata_path"} {
			s.env = []string{"PYTHONIOENCODING=ascii"} // a terminal that cannot show every name
			r := s.inFolder(t, option, metadata)
			if r.status != 0 || !strings.Contains(r.stdout, "Verdict:      "+verdict) || !strings.Contains(r.stdout, `gut, Ri\xdf`) || strings.Contains(r.stdout, "Regions") {
				t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
			}
		}
	}
	r := s.inFolder(t, "--json", "--model_path", "autoencoder.onnx")
	if list := entries(t, r); r.status != 0 || len(list) != 1 || list[0].File != "photo" || list[0].Value == nil {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestPredictScript_RefusesNoneOrSeveralImages(t *testing.T) {
	picture, heic := defectivePNG(t), []byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00")
	for _, c := range []struct {
		name  string
		files map[string][]byte
		words []string
	}{
		{"none", nil, []string{"no image", "add one PNG, JPEG"}},
		{"a hidden one", map[string][]byte{"._photo.png": picture, ".photo.jpg": picture}, []string{"no image"}},
		{"one in a folder", map[string][]byte{"folder.png/photo.png": picture, "__MACOSX/photo.png": picture}, []string{"no image"}},
		{"HEIC", map[string][]byte{"IMG_1.HEIC": heic}, []string{"no image", "HEIC images are not read: export JPEG or PNG"}},
		{"two", map[string][]byte{"b.PNG": picture, "a.jfif": picture, "IMG_1.HEIC": heic}, []string{"2 images", "a.jfif, b.PNG"}},
		{"many", map[string][]byte{"1.bmp": {}, "2.tif": {}, "3.dib": {}, "4.jpe": {}, "5.webp": {}, "6.gif": {}, "7.tiff": {}}, []string{"7 images", "5.webp and 2 more"}},
		{"a damaged one", map[string][]byte{"photo.png": picture[:100]}, []string{"photo.png: cannot be judged: "}},
		{"HEIC under another ending", map[string][]byte{"photo.jpg": heic}, []string{"photo.jpg: cannot be judged: HEIC images are not read: export JPEG or PNG"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(t)
			for name, data := range c.files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(s.dir, name)), 0o755); err != nil {
					t.Fatal(err)
				}
				write(t, s.dir, name, data)
			}
			s.inFolder(t).failed(t, c.words...)
		})
	}
}

func TestPredictScript_IsImportable(t *testing.T) {
	s := newScript(t)
	photo := write(t, t.TempDir(), "photo.png", defectivePNG(t))
	lax := write(t, t.TempDir(), "lax.json", []byte("\xef\xbb\xbf"+`{"threshold": 1000}`))
	c := exec.Command(s.interpreter, "-c", `
import json, sys
from predict import detect_anomaly
photo, model, lax = sys.argv[1:]
print(json.dumps([detect_anomaly(photo), detect_anomaly(photo, model_path=model, metadata_path=lax), detect_anomaly(photo, model)]))
for arguments in ("nowhere.png",), (photo, "nowhere.onnx"), (photo, model, "nowhere.json"):
    try:
        detect_anomaly(*arguments)
    except Exception as problem:
        print(problem, file=sys.stderr)
`, photo, filepath.Join(s.dir, "autoencoder.onnx"), lax)
	c.Env = append(os.Environ(), "PYTHONPATH="+s.dir, "PYTHONDONTWRITEBYTECODE=1")
	r := finish(t, c)
	var got []explanation
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || r.status != 0 || len(got) != 3 {
		t.Fatalf("exit %d, %v: %s%s", r.status, err, r.stdout, r.stderr)
	}
	want := entries(t, run(t, "detect", "--json", "--model", smallModel(t), photo))
	agree(t, want, []entry{got[0].entry}, 1e-4)
	agree(t, want, []entry{got[2].entry}, 1e-4)
	if len(got[0].Regions) == 0 || *got[1].IsAnomaly || *got[1].Threshold != 1000 || *got[1].Value != *got[1].MSE || got[1].Regions != nil {
		t.Errorf("it returns %s", r.stdout)
	}
	for _, name := range []string{"nowhere.png", "nowhere.onnx", "nowhere.json"} {
		if !strings.Contains(r.stderr, name) {
			t.Errorf("no exception names %s: %s", name, r.stderr)
		}
	}
}

func TestPredictScript_TakesModelAndMetadataAfterTheImage(t *testing.T) {
	s := newScript(t)
	photo := write(t, t.TempDir(), "photo.png", defectivePNG(t))
	lax := write(t, t.TempDir(), "lax.json", []byte(`{"threshold": 1000}`))
	if r := s.run(t, photo, filepath.Join(s.dir, "autoencoder.onnx"), lax); r.status != exitNormal || !strings.Contains(r.stdout, "threshold 1000.") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	if r := s.run(t, photo, filepath.Join(s.dir, "autoencoder.onnx")); r.status != exitAnomaly {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	s.refused(t, "nowhere.pt", photo, "nowhere.pt")
}

func TestPredictScript_NamesFilesItPassesOver(t *testing.T) {
	s := newScript(t)
	root := t.TempDir()
	picture := defectivePNG(t)
	for name, data := range map[string][]byte{
		"a.JFIF": picture, "b.jpe": picture, "c.Dib": picture, "d": picture, "sub/e.PNG": picture,
		"notes": []byte("notes"), "empty": nil, "f.heic": []byte("\x00\x00\x00\x18ftypheic"), "g.txt": picture, "h.svg": nil, "i.pdf": nil,
		".hidden.png": picture, "._a.JFIF": picture, "__MACOSX/sub/._e.PNG": picture, "__MACOSX/e.png": picture, ".git/x.png": picture, ".DS_Store": nil,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, root, name, data)
	}
	r := s.run(t, "--json", root)
	var got []string
	for _, e := range entries(t, r) {
		name, err := filepath.Rel(root, e.File)
		if err != nil || e.Error != nil {
			t.Errorf("%s: %v", e.File, err)
		}
		got = append(got, filepath.ToSlash(name))
	}
	if want := []string{"a.JFIF", "b.jpe", "c.Dib", "d", "sub/e.PNG"}; !slices.Equal(got, want) {
		t.Errorf("it judges %q, expected %q", got, want)
	}
	path := func(name string) string { return filepath.Join(root, name) }
	want := fmt.Sprintf("6 files in the folders are not images and were passed over: %s, %s, %s, %s, %s and 1 more; HEIC images are not read: export JPEG or PNG\n",
		path("empty"), path("f.heic"), path("g.txt"), path("h.svg"), path("i.pdf"))
	if r.stderr != want || r.status != exitAnomaly {
		t.Errorf("exit %d, stderr %q, expected %q", r.status, r.stderr, want)
	}
	// A pattern selects like a folder; a file that is named is always judged.
	for argument, files := range map[string]int{"*": 5, "__MACOSX/*": 0, "**/*.png": 0, "*/*.PNG": 1} {
		judged := 0
		for _, e := range entries(t, s.run(t, "--json", path(argument))) {
			if e.Error == nil {
				judged++
			}
		}
		if judged != files {
			t.Errorf("%s: %d images are judged, expected %d", argument, judged, files)
		}
	}
	if list := entries(t, s.run(t, "--json", path(".hidden.png"))); len(list) != 1 || list[0].Value == nil {
		t.Errorf("%+v", list)
	}
}
