package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/models"
)

func TestTrainGivesTheSameModelFromAFolderAndItsZip(t *testing.T) {
	dir := t.TempDir()
	zipped := write(t, dir, "normal.zip", normals(t, 6))
	folder := filepath.Join(dir, "images")
	if err := os.MkdirAll(filepath.Join(folder, "normal"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range tileFiles(t, "train/good", 6) {
		write(t, filepath.Join(folder, "normal"), filepath.Base(f), read(t, f))
	}
	var made [][]byte
	for i, source := range []string{zipped, folder} {
		out := filepath.Join(dir, fmt.Sprint("new/", i, ".zip"))
		r := run(t, "train", source, "--level", "1", "--image-size", "32", "--seed", "7", "--out", out)
		if r.status != exitNormal || r.stdout != "" {
			t.Fatalf("exit %d, stdout %q, stderr %q; expected 0 and nothing on standard output", r.status, r.stdout, r.stderr)
		}
		for _, words := range []string{"level 1: 5 epochs, batch 16", "epoch 1/5 loss 0.", "epoch 5/5 loss 0.", "trained on 6 images"} {
			if !strings.Contains(r.stderr, words) {
				t.Errorf("standard error does not say %q: %s", words, r.stderr)
			}
		}
		made = append(made, read(t, out))
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("the zip and the folder give different models")
	}
	if left := names(t, filepath.Join(dir, "new")); len(left) != 2 {
		t.Errorf("beside the models there are %v", left)
	}
}

func TestTrainGoesOnFromAModel(t *testing.T) {
	dir := t.TempDir()
	zipped := write(t, dir, "normal.zip", normals(t, 4))
	first, second := filepath.Join(dir, "first.zip"), filepath.Join(dir, "second.zip")
	if r := run(t, "train", zipped, "--level", "1", "--image-size", "32", "--out", first); r.status != exitNormal {
		t.Fatal(r.stderr)
	}
	if r := run(t, "train", zipped, "--level", "1", "--from", first, "--out", second); r.status != exitNormal || !strings.Contains(r.stderr, "32×32") {
		t.Fatalf("exit %d: %s", r.status, r.stderr)
	}
	r := run(t, "train", zipped, "--image-size", "64", "--from", first, "--out", filepath.Join(dir, "third.zip"))
	if r.status != exitError || !strings.Contains(r.stderr, "32×32") {
		t.Errorf("another image size: exit %d: %s", r.status, r.stderr)
	}
	if left := names(t, dir); len(left) != 3 {
		t.Errorf("there are %v", left)
	}
}

func TestTrainDoesNotOverwriteWithoutForce(t *testing.T) {
	dir := t.TempDir()
	out := write(t, dir, "model.zip", []byte("mine"))
	args := []string{"train", filepath.Join(tiles, "test/good"), "--level", "1", "--image-size", "16", "--out", out}
	run(t, args...).refused(t, out+" exists", "--force")
	if got := read(t, out); string(got) != "mine" {
		t.Errorf("the file was changed to %.20q", got)
	}
	if r := run(t, append(args, "--force", "--quiet")...); r.status != exitNormal {
		t.Fatalf("with --force: exit %d: %s", r.status, r.stderr)
	} else if strings.Contains(r.stderr, "epoch") {
		t.Errorf("--quiet shows progress: %s", r.stderr)
	}
	if got := read(t, out); !bytes.HasPrefix(got, []byte("PK")) {
		t.Errorf("with --force the file is %.20q", got)
	}
	if left := names(t, dir); !slices.Equal(left, []string{"model.zip"}) {
		t.Errorf("the folder holds %v", left)
	}
}

func TestTrainRefusesBeforeAnythingIsWritten(t *testing.T) {
	good := filepath.Join(tiles, "train/good")
	prose := write(t, t.TempDir(), "prose.zip", []byte("I am no zip."))
	empty := t.TempDir()
	for _, c := range []struct {
		name string
		args []string
		says []string
	}{
		{"level 0", []string{good, "--level", "0"}, []string{"Level must be between 1 and 5", "got 0"}},
		{"level 6", []string{good, "--level", "6"}, []string{"Level must be between 1 and 5", "got 6"}},
		{"level abc", []string{good, "--level", "abc"}, []string{"abc", "--level"}},
		{"size 0", []string{good, "--image-size", "0"}, []string{"image size: 0", "multiple of 16 from 16 to 1024"}},
		{"size 17", []string{good, "--image-size", "17"}, []string{"image size: 17", "multiple of 16 from 16 to 1024"}},
		{"size abc", []string{good, "--image-size", "abc"}, []string{"abc", "--image-size"}},
		{"no source", nil, []string{"arg"}},
		{"a source that is not there", []string{"nowhere.zip"}, []string{"nowhere.zip"}},
		{"prose", []string{prose}, []string{"prose.zip", "not a readable ZIP"}},
		{"an unknown flag", []string{good, "--epochs", "9"}, []string{"--epochs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			out := filepath.Join(dir, "folder", "model.zip")
			run(t, append(append([]string{"train"}, c.args...), "--out", out)...).refused(t, c.says...)
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("there is %v", left)
			}
		})
	}
	t.Run("a folder to write to", func(t *testing.T) {
		run(t, "train", good, "--force", "--out", empty).refused(t, "--out is the folder "+empty)
	})
	t.Run("a folder without images", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "model.zip")
		run(t, "train", empty, "--quiet", "--out", out).refused(t, "No image files found in the uploaded dataset")
	})
}

// trainUntilRunning starts a long training into dir and waits for its first
// epoch.
func trainUntilRunning(t *testing.T, dir string) (*exec.Cmd, *lockedBuffer) {
	t.Helper()
	c := command(t, "train", filepath.Join(tiles, "train/good"), "--level", "5", "--image-size", "256", "--out", filepath.Join(dir, "model.zip"))
	stderr := &lockedBuffer{}
	c.Stderr = stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the training runs", func() bool { return strings.Contains(stderr.String(), "epoch 1/") })
	return c, stderr
}

func TestTrainInterruptedOnceWritesTheModelSoFar(t *testing.T) {
	dir := t.TempDir()
	c, stderr := trainUntilRunning(t, dir)
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || !strings.Contains(stderr.String(), "ended early (stopped)") {
		t.Errorf("%v: %s", err, stderr)
	}
	m, _, err := readModel(filepath.Join(dir, "model.zip"), "")
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Metadata.Training; s.Ended != models.EndedByCaller || s.Steps == 0 || s.Steps >= s.PlannedSteps {
		t.Errorf("%+v", s)
	}
}

func TestTrainInterruptedTwiceOrTerminatedLeavesNothing(t *testing.T) {
	for name, signals := range map[string][]syscall.Signal{
		"interrupted twice": {syscall.SIGINT, syscall.SIGINT}, "terminated": {syscall.SIGTERM},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c, stderr := trainUntilRunning(t, dir)
			for i, signal := range signals {
				if i > 0 {
					eventually(t, "the first interrupt is heard", func() bool { return strings.Contains(stderr.String(), "interrupt again") })
				}
				if err := c.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
			}
			_ = c.Wait() // its status is looked at below
			if got := c.ProcessState.ExitCode(); got != exitError || !strings.HasSuffix(stderr.String(), "anomaly: interrupted; nothing was written\n") {
				t.Errorf("exit %d: %s", got, stderr)
			}
			if left := names(t, dir); len(left) > 0 {
				t.Errorf("there is %v", left)
			}
		})
	}
}

// eventually waits for something that must become true.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// entry is one of `detect --json`, read with the contract's names.
type entry struct {
	File       string   `json:"file"`
	Value      *float64 `json:"reconstruction_error"`
	MSE        *float64 `json:"mse"`
	Threshold  *float64 `json:"threshold"`
	IsAnomaly  *bool    `json:"is_anomaly"`
	ClassNames []string `json:"class_names"`
	Error      *string  `json:"error"`
}

func entries(t testing.TB, r ran) []entry {
	t.Helper()
	var list []entry
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("not a JSON array: %v: %q, stderr %q", err, r.stdout, r.stderr)
	}
	return list
}

func TestDetectTellsItsVerdictByTheExitStatus(t *testing.T) {
	dir := t.TempDir()
	lax := write(t, dir, "lax.json", []byte(`{"threshold": 1000}`))
	strict := write(t, dir, "strict.json", []byte(`{"threshold": 1e-12, "class_names": ["fine", "cracked"]}`))
	model, images := smallModel(t), filepath.Join(tiles, "test/crack")
	for _, c := range []struct {
		metadata string
		status   int
		anomaly  bool
		classes  []string
		word     string
		summary  string
	}{
		{lax, exitNormal, false, []string{"normal", "anomaly"}, "normal", "10 images: 10 normal, 0 anomalous, 0 not judged"},
		{strict, exitAnomaly, true, []string{"fine", "cracked"}, "ANOMALY", "10 images: 0 normal, 10 anomalous, 0 not judged"},
	} {
		r := run(t, "detect", "--model", model, "--metadata", c.metadata, "--json", images)
		list := entries(t, r)
		if r.status != c.status || r.stderr != "" || len(list) != 10 {
			t.Errorf("exit %d, %d entries, stderr %q", r.status, len(list), r.stderr)
		}
		for _, e := range list {
			if e.Error != nil || e.Value == nil || e.Threshold == nil || e.IsAnomaly == nil || *e.IsAnomaly != c.anomaly ||
				*e.IsAnomaly != (*e.Value > *e.Threshold) || !slices.Equal(e.ClassNames, c.classes) || filepath.Dir(e.File) != images {
				t.Errorf("entry %+v", e)
			}
		}
		r = run(t, "detect", "--model", model, "--metadata", c.metadata, images)
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
		if r.status != c.status || r.stderr != "" || len(lines) != 12 || lines[11] != c.summary ||
			!slices.Equal(strings.Fields(lines[0]), []string{"IMAGE", "ERROR", "THRESHOLD", "VERDICT"}) {
			t.Fatalf("exit %d, stderr %q, table\n%s", r.status, r.stderr, r.stdout)
		}
		for i, line := range lines[1:11] {
			want := []string{list[i].File, fmt.Sprintf("%.6f", *list[i].Value), fmt.Sprintf("%.6f", *list[i].Threshold), c.word}
			if !slices.Equal(strings.Fields(line), want) {
				t.Errorf("the table says %q, the JSON %q", line, want)
			}
		}
	}
}

func TestDetectNamesTheImagesItCannotJudge(t *testing.T) {
	prose := write(t, t.TempDir(), "prose.jpg", []byte("I am no picture."))
	good := tileFiles(t, "test/good", 1)[0]
	args := []string{"detect", "--model", smallModel(t), prose, good, "nowhere.png"}
	r := run(t, append(args, "--json")...)
	list := entries(t, r)
	if r.status != exitError || len(list) != 3 {
		t.Fatalf("exit %d, %d entries: %s", r.status, len(list), r.stderr)
	}
	var bare []map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &bare); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2} {
		if len(bare[i]) != 2 || bare[i]["file"] != args[3+i] || bare[i]["error"] == "" {
			t.Errorf("an unreadable image is %v", bare[i])
		}
	}
	if list[1].Error != nil || list[1].Value == nil || list[1].File != good {
		t.Errorf("the readable image is %+v", list[1])
	}
	r = run(t, args...)
	if r.status != exitError || strings.Count(r.stdout, "cannot be judged") != 2 || !strings.Contains(r.stdout, "2 not judged") {
		t.Errorf("exit %d: %s", r.status, r.stdout)
	}
}

func TestDetectRefusesInOneSentence(t *testing.T) {
	model, good := smallModel(t), tileFiles(t, "test/good", 1)[0]
	dir := t.TempDir()
	prose := write(t, dir, "prose.txt", []byte("I am no model."))
	cut := write(t, dir, "cut.zip", read(t, model)[:1000])
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		says []string
	}{
		{"no model", []string{good}, []string{"model"}},
		{"no image", []string{"--model", model}, []string{"arg"}},
		{"a model that is not there", []string{"--model", "nowhere.zip", good}, []string{"nowhere.zip"}},
		{"prose as model", []string{"--model", prose, good}, []string{"prose.txt", "not a readable model file"}},
		{"a model cut off", []string{"--model", cut, good}, []string{"cut.zip"}},
		{"a model without end", []string{"--model", "/dev/zero", good}, []string{"/dev/zero", "too large", "at most 67108864"}},
		{"metadata without end", []string{"--model", model, "--metadata", "/dev/zero", good}, []string{"/dev/zero", "at most 8388608"}},
		{"an image as model", []string{"--model", good, good}, []string{"not a readable model file"}},
		{"prose as metadata", []string{"--model", model, "--metadata", prose, good}, []string{"prose.txt", "unusable metadata"}},
		{"a folder without images", []string{"--model", model, filepath.Join(dir, "empty")}, []string{"no images"}},
		{"a library that is not there", []string{"--model", model, "--onnxruntime", "/nowhere/lib.so", good}, []string{"--onnxruntime names /nowhere/lib.so", "make runtime"}},
		{"a folder without the library", []string{"--model", model, "--onnxruntime", dir, good}, []string{"--onnxruntime names the folder " + dir}},
		{"prose as library", []string{"--model", model, "--onnxruntime", prose, good}, []string{"library cannot be used", "prose.txt", "make runtime"}},
		{"an unknown provider", []string{"--model", model, "--provider", "abacus", good}, []string{"abacus", "auto, cpu or cuda"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(t, append([]string{"detect"}, c.args...)...).refused(t, c.says...)
		})
	}
}

func TestEveryCommandThatComputesChecksItsEngine(t *testing.T) {
	out := filepath.Join(t.TempDir(), "model.zip")
	for _, args := range [][]string{
		{"serve", "--addr", "127.0.0.1:0"},
		{"train", filepath.Join(tiles, "train/good"), "--out", out},
	} {
		run(t, append(args, "--onnxruntime", "/nowhere")...).refused(t, "--onnxruntime names /nowhere", "make runtime")
		run(t, append(args, "--provider", "abacus")...).refused(t, "abacus", "auto, cpu or cuda")
	}
	c := command(t, "detect", "--model", smallModel(t), tileFiles(t, "test/good", 1)[0])
	c.Env = append(c.Env, "ANOMALY_ONNXRUNTIME=/nowhere")
	finish(t, c).refused(t, "ANOMALY_ONNXRUNTIME names /nowhere")
}

func TestCUDAThatIsNotThereIsAClearError(t *testing.T) {
	// A folder with a copy of the library and nothing beside it has no CUDA,
	// whatever this machine has.
	s := serve(t, nil, "--addr", "127.0.0.1:0")
	var listening struct{ Library string }
	for line := range strings.SplitSeq(s.log.String(), "\n") {
		if strings.Contains(line, `"listening"`) {
			if err := json.Unmarshal([]byte(line), &listening); err != nil {
				t.Fatal(err)
			}
		}
	}
	library := write(t, t.TempDir(), filepath.Base(listening.Library), read(t, listening.Library))
	good := tileFiles(t, "test/good", 1)[0]
	run(t, "detect", "--model", smallModel(t), "--onnxruntime", library, "--provider", "cuda", good).
		refused(t, "cuda was asked for", "libonnxruntime_providers_cuda.so", "--provider cpu")
	if r := run(t, "detect", "--model", smallModel(t), "--onnxruntime", library, "--provider", "auto", "--json", good); r.status == exitError {
		t.Errorf("auto: exit %d: %s", r.status, r.stderr)
	}
}

func TestDetectSaysTheSameOfEveryFormOfAModel(t *testing.T) {
	model := smallModel(t)
	dir := unpacked(t, model)
	images := append(tileFiles(t, "test/good", 3), tileFiles(t, "test/blowhole", 3)...)
	whole := entries(t, run(t, append([]string{"detect", "--json", "--model", model}, images...)...))
	for _, form := range []string{"autoencoder.pt", "autoencoder.onnx", "autoencoder_image.onnx"} {
		for i, e := range entries(t, run(t, append([]string{"detect", "--json", "--threads", "1", "--model", filepath.Join(dir, form)}, images...)...)) {
			if *e.Value != *whole[i].Value || *e.Threshold != *whole[i].Threshold || !slices.Equal(e.ClassNames, whole[i].ClassNames) {
				t.Errorf("%s: %+v, the zip: %+v", form, e, whole[i])
			}
		}
	}
}

func TestDetectDrawsPictures(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pictures")
	image := tileFiles(t, "test/crack", 1)[0]
	r := run(t, "detect", "--model", smallModel(t), "--pictures", dir, image)
	if r.status == exitError {
		t.Fatalf("exit %d: %s", r.status, r.stdout)
	}
	want := "0001-" + filepath.Base(image) + ".png"
	if got := names(t, dir); !slices.Equal(got, []string{want}) {
		t.Fatalf("there is %v", got)
	}
	if data := read(t, filepath.Join(dir, want)); !bytes.HasPrefix(data, []byte("\x89PNG")) {
		t.Errorf("it begins with %q", data[:min(len(data), 8)])
	}
}

func TestInspectShowsEveryFormOfAModel(t *testing.T) {
	model := smallModel(t)
	dir := unpacked(t, model)
	for path, format := range map[string]string{
		model: "zip", filepath.Join(dir, "autoencoder.pt"): "pt", filepath.Join(dir, "autoencoder.onnx"): "onnx",
	} {
		sum := models.Identity(read(t, path))
		r := run(t, "inspect", path)
		for _, words := range []string{sum, "3-32-64-128-256", "776579", "32×32", "normal, anomaly", "60 images, 0 skipped"} {
			if r.status != exitNormal || !strings.Contains(r.stdout, words) {
				t.Errorf("%s: exit %d, without %q: %s%s", format, r.status, words, r.stdout, r.stderr)
			}
		}
		r = run(t, "inspect", "--json", path)
		var d struct {
			Format     string
			SHA256     string
			ImageSize  int `json:"image_size"`
			Parameters []struct {
				Name  string
				Shape []int
			}
			Metadata models.Metadata
		}
		if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || r.status != exitNormal {
			t.Fatalf("%s: exit %d: %v: %s", format, r.status, err, r.stderr)
		}
		if d.Format != format || d.SHA256 != sum || d.ImageSize != 32 || len(d.Parameters) != 16 ||
			d.Parameters[0].Name != "encoder.0.weight" || d.Metadata.Threshold <= 0 || len(d.Metadata.TrainingLosses) != 5 {
			t.Errorf("%s: %+v", format, d)
		}
		if strings.Contains(r.stdout, `"Name"`) {
			t.Errorf("%s: a key in capitals", format)
		}
	}
	run(t, "inspect", filepath.Join(dir, "README.md")).refused(t, "README.md", "not a readable model file")
	run(t, "inspect", "nowhere").refused(t, "nowhere")
}

func TestHelpNeedsNothing(t *testing.T) {
	c := command(t, "help")
	c.Env = append(c.Env, "ANOMALY_ONNXRUNTIME=/nowhere")
	if r := finish(t, c); r.status != exitNormal || !strings.Contains(r.stdout, "serve") {
		t.Errorf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	run(t, "dance").refused(t, "dance")
}

// freePort is a port that nobody listened on a moment ago.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestServeListensWhereItIsTold(t *testing.T) {
	port := freePort(t)
	s := serve(t, []string{"PORT=" + port})
	if s.address != "127.0.0.1:"+port {
		t.Errorf("with PORT=%s it listens on %s", port, s.address)
	}
	c := command(t, "health")
	c.Env = append(c.Env, "PORT="+port)
	if r := finish(t, c); r.status != exitNormal || r.stdout != "healthy\n" {
		t.Errorf("health: exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	run(t, "serve", "--addr", s.address).refused(t, "cannot listen", port)

	other := serve(t, []string{"PORT=" + port}, "--addr", "127.0.0.1:0")
	if other.address == s.address {
		t.Error("PORT counted before --addr")
	}
	if r := run(t, "health", "--addr", other.address); r.status != exitNormal {
		t.Errorf("health: exit %d: %s", r.status, r.stderr)
	}
	run(t, "health", "--addr", "127.0.0.1:"+freePort(t)).refused(t, "refused")
	run(t, "serve", "--addr", "127.0.0.1:0", "--log-format", "poetry").refused(t, "poetry", "text or json")
}

func TestServeEndsWellWhenIdle(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			s := serve(t, nil, "--addr", "127.0.0.1:0")
			res, err := http.Get("http://" + s.address + "/health") // its connection stays open
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if took := s.stop(t, signal); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestServeEndsWellDuringATraining(t *testing.T) {
	const grace = 500 * time.Millisecond
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--grace", grace.String())
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, err := w.CreateFormFile("zipFile", "normal.zip")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write(normals(t, 60)); err != nil {
		t.Fatal(err)
	}
	_ = w.WriteField("level", "5") // into memory
	_ = w.WriteField("image_size", "128")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		status int
		body   []byte
		err    error
	}
	answered := make(chan answer, 1)
	go func() {
		res, err := http.Post("http://"+s.address+"/train", w.FormDataContentType(), &body)
		if err != nil {
			answered <- answer{err: err}
			return
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		answered <- answer{res.StatusCode, data, err}
	}()
	eventually(t, "the upload is kept", func() bool {
		list, _ := filepath.Glob(filepath.Join(s.temp, "*", "*"))
		return len(list) > 0
	})
	// Making the graphs of a step cannot be cut short, and takes seconds on a busy
	// machine.
	stepped := regexp.MustCompile(`(?m)^anomaly_training_step [1-9]`)
	eventually(t, "the training takes steps", func() bool {
		res, err := http.Get("http://" + s.address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		metrics, err := io.ReadAll(res.Body)
		return err == nil && stepped.Match(metrics)
	})
	s.stop(t, syscall.SIGTERM)
	a := <-answered
	var told struct{ Error string }
	if a.err != nil || a.status != http.StatusServiceUnavailable || json.Unmarshal(a.body, &told) != nil || told.Error == "" {
		t.Errorf("the client got %v, status %d, %.200q", a.err, a.status, a.body)
	}
}
