package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

// storedFiles returns the names of the files in a model folder, except its lock and the
// folder of the history.
func storedFiles(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range list {
		if f.Name() != ".lock" && f.Name() != ".history" {
			out = append(out, f.Name())
		}
	}
	return out
}

func TestNamedModels_AreStoredListedUsedReplacedAndDeleted(t *testing.T) {
	s, dir := startWithModels(t, nil)
	image := tile(t, testCrack)
	for i, form := range []string{"autoencoder.pt", "autoencoder.onnx", "anomaly_detection_model.zip"} {
		model := trained(t)[form]
		a := s.put(t, "tiles-1.0", model)
		if want := map[bool]int{true: 201, false: 200}[i == 0]; a.status != want {
			t.Fatalf("%s: status %d instead of %d: %s", form, a.status, want, a.body)
		}
		e := as[registry.Entry](t, a)
		if e.Name != "tiles-1.0" || e.State != registry.Ready || e.SHA256 != models.Identity(model) || e.Bytes != int64(len(model)) ||
			e.Metadata == nil || e.Metadata.ImageSize != 32 || e.Metadata.Threshold <= 0 {
			t.Errorf("%s: %+v", form, e)
		}
		if one := s.send(t, http.MethodGet, "/models/tiles-1.0", "", nil); one.status != 200 || as[registry.Entry](t, one).SHA256 != e.SHA256 {
			t.Errorf("%s: status %d: %s", form, one.status, one.body)
		}
		list := as[struct{ Models []registry.Entry }](t, s.send(t, http.MethodGet, "/models", "", nil))
		if len(list.Models) != 1 || list.Models[0].SHA256 != e.SHA256 {
			t.Errorf("%s: %+v", form, list)
		}
		sent := s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i.jpg", image))
		if got := s.byName(t, "tiles-1.0", image); got.status != 200 || string(got.body) != string(sent.body) {
			t.Errorf("%s: status %d: by name %s, with the model file %s", form, got.status, got.body, sent.body)
		}
		if files := storedFiles(t, dir); !slices.Equal(files, []string{"tiles-1.0.model"}) || !bytes.Equal(read(t, filepath.Join(dir, files[0])), model) {
			t.Errorf("%s: the folder has %v", form, files)
		}
	}
	form, kind := encode(t, text("x", "y"), modelPart(t))
	if a := s.send(t, http.MethodPut, "/models/by-form", kind, form); a.status != 201 {
		t.Errorf("as a form: status %d: %s", a.status, a.body)
	}
	for _, name := range []string{"tiles-1.0", "by-form"} {
		if a := s.send(t, http.MethodDelete, "/models/"+name, "", nil); a.status != 204 || len(a.body) != 0 {
			t.Errorf("status %d: %s", a.status, a.body)
		}
		for method, path := range map[string]string{http.MethodDelete: "", http.MethodGet: "", http.MethodPost: "/detect"} {
			if a := s.send(t, method, "/models/"+name+path, "", nil); a.status != 404 || !strings.Contains(a.message(t), "No such model") {
				t.Errorf("%s after the deletion: status %d: %s", method, a.status, a.body)
			}
		}
	}
	if files := storedFiles(t, dir); len(files) != 0 {
		t.Errorf("the folder has %v", files)
	}
}

func TestNamedModels_RejectInvalidNames(t *testing.T) {
	s, dir := startWithModels(t, nil)
	model := trained(t)["autoencoder.pt"]
	for _, name := range []string{"..%2fa", "%2e%2e", "A", "a%20b", "-a", ".a", "a.", "_a", "a..b", "%00", "ä", "a%5Cb", strings.Repeat("a", 101), "a:b", "a%2Fb"} {
		for method, path := range map[string]string{http.MethodPut: "", http.MethodGet: "", http.MethodDelete: "", http.MethodPost: "/detect"} {
			var body io.Reader
			if method == http.MethodPut || method == http.MethodPost {
				body = bytes.NewReader(model)
			}
			a := s.send(t, method, "/models/"+name+path, "application/octet-stream", body)
			if (a.status != 400 && a.status != 404) || a.message(t) == "" {
				t.Errorf("%s %q: status %d: %s", method, name, a.status, a.body)
			}
		}
	}
	for _, name := range []string{"a", "0", "a-b_c.d", strings.Repeat("a", 100)} {
		if a := s.put(t, name, model); a.status != 201 {
			t.Errorf("%q: status %d: %s", name, a.status, a.body)
		}
	}
	if files := storedFiles(t, dir); len(files) != 4 {
		t.Errorf("the folder has %v", files)
	}
	if list, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(list) > 2 {
		t.Errorf("beside the folder are %v, %v", list, err)
	}
}

func TestPutModel_RejectsHostileModels(t *testing.T) {
	s, dir := startWithModels(t, func(o *Options) { o.StoredModels = 1 })
	good := trained(t)["autoencoder.pt"]
	s.mustPut(t, "good", good)
	canary := filepath.Join(t.TempDir(), "canary")
	for _, f := range hostile.Models(canary) {
		a := s.put(t, "good", f.Data)
		want := 422
		if f.Want == hostile.TooLarge {
			want = 413
		}
		if a.status != want || a.message(t) == "" {
			t.Errorf("%s/%s: status %d: %s; expected %d", f.Class, f.Name, a.status, a.body, want)
		}
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("a model file was executed")
	}
	for name, c := range map[string]struct {
		body   []byte
		status int
	}{"good": {nil, 400}, "another": {good, 409}} {
		if a := s.put(t, name, c.body); a.status != c.status || a.message(t) == "" {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	if files := storedFiles(t, dir); !slices.Equal(files, []string{"good.model"}) || !bytes.Equal(read(t, filepath.Join(dir, files[0])), good) {
		t.Errorf("the folder has %v", files)
	}
	if a := s.byName(t, "good", tile(t, testGood)); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

func TestModelFolder_IsReadAtStartAndListsBrokenFiles(t *testing.T) {
	dir := t.TempDir()
	pt, zipped := trained(t)["autoencoder.pt"], trained(t)["anomaly_detection_model.zip"]
	for name, data := range map[string][]byte{
		"by-hand.zip": zipped, "checkpoint.pt": pt, "graph.onnx": trained(t)["autoencoder.onnx"],
		"half.pt": pt[:len(pt)/2], "prose.zip": []byte("prose"), "empty.onnx": nil,
		".put-123": pt[:1000], "notes.txt": []byte("notes"), "Upper.pt": pt, ".hidden.pt": pt,
		"both.model": zipped, "both.pt": pt,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.pt"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := start(t, func(o *Options) { o.ModelsDir = dir })
	eventually(t, "the models are read", func() bool { return s.send(t, http.MethodGet, "/v2/health/ready", "", nil).status == 200 })
	states := map[string]registry.State{}
	for _, e := range as[struct{ Models []registry.Entry }](t, s.send(t, http.MethodGet, "/models", "", nil)).Models {
		states[e.Name] = e.State
		if (e.State == registry.Broken) != (e.Error != "") || (e.State == registry.Ready) != (e.Metadata != nil) {
			t.Errorf("%+v", e)
		}
		if e.Name == "both" && e.SHA256 != models.Identity(zipped) {
			t.Errorf("the first of two files does not count: %+v", e)
		}
	}
	want := map[string]registry.State{"by-hand": registry.Ready, "checkpoint": registry.Ready, "graph": registry.Ready, "both": registry.Ready,
		"half": registry.Broken, "prose": registry.Broken, "empty": registry.Broken}
	for name, state := range want {
		if states[name] != state {
			t.Errorf("%s is %q, expected %q", name, states[name], state)
		}
	}
	if len(states) != len(want) {
		t.Errorf("the list has %v", states)
	}
	if slices.Contains(storedFiles(t, dir), ".put-123") {
		t.Error("a half-written file is left")
	}
	image := tile(t, testGood)
	if a := s.byName(t, "by-hand", image); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := s.byName(t, "half", image); a.status != 422 || !strings.Contains(a.message(t), "half") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	// PUT replaces files that were copied into the folder.
	if a := s.put(t, "half", pt); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := s.send(t, http.MethodDelete, "/models/both", "", nil); a.status != 204 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	files := storedFiles(t, dir)
	for file, there := range map[string]bool{"half.model": true, "half.pt": false, "both.model": false, "both.pt": false} {
		if slices.Contains(files, file) != there {
			t.Errorf("the folder has %v", files)
		}
	}
	o := DefaultOptions()
	o.ModelsDir, o.TempDir = dir, t.TempDir()
	if _, err := New(orttest.Open(t), slog.New(slog.DiscardHandler), o); !errors.Is(err, registry.ErrInUse) {
		t.Errorf("a second server on the folder: %v", err)
	}
	if left, err := os.ReadDir(o.TempDir); err != nil || len(left) != 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
}

// While a model is replaced and deleted, each client receives a verdict of one of its
// versions or a 404.
func TestNamedModels_CanBeReplacedAndDeletedInUse(t *testing.T) {
	const clients, changes = 4, 15
	s, _ := startWithModels(t, func(o *Options) { o.CacheBytes = 1 }) // each model evicts the other
	image := tile(t, testCrack)
	versions := [][]byte{trained(t)["autoencoder.pt"], trained(t)["autoencoder.onnx"]}
	valid := map[string]bool{}
	for _, model := range versions {
		if a := s.put(t, "m", model); a.status/100 != 2 {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
		valid[string(s.byName(t, "m", image).body)] = true
	}
	if len(valid) != 2 {
		t.Fatal("the two versions have the same verdict")
	}
	body, kind := encode(t, file("imageFile", "i", image))
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				res, err := http.Post(s.url+"/models/m/detect", kind, bytes.NewReader(body.Bytes()))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if err != nil || !(res.StatusCode == 404 || (res.StatusCode == 200 && valid[string(got)])) {
					t.Errorf("status %d, %v: %s", res.StatusCode, err, got)
				}
			}
		})
	}
	for i := range changes {
		if a := s.put(t, "m", versions[i%2]); a.status/100 != 2 {
			t.Errorf("status %d: %s", a.status, a.body)
		}
		if i%3 == 2 {
			if a := s.send(t, http.MethodDelete, "/models/m", "", nil); a.status != 204 {
				t.Errorf("status %d: %s", a.status, a.body)
			}
		}
	}
	close(stop)
	group.Wait()
	if st := s.cache.Stats(); st.Leaving != 0 || st.Models != 1 {
		t.Errorf("%+v", st)
	}
}

func TestDeleteModel_LetsRequestsInProgressFinish(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)["autoencoder.pt"])
	body, kind := encode(t, file("imageFile", "i", tile(t, testCrack)))
	var group sync.WaitGroup
	err := s.scheduler.Work(t.Context(), func() error { // take both threads, so that the request waits
		return s.scheduler.Work(t.Context(), func() error {
			group.Go(func() {
				res, err := http.Post(s.url+"/models/m/detect", kind, body)
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				if got, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 {
					t.Errorf("status %d, %v: %s", res.StatusCode, err, got)
				}
			})
			eventually(t, "the request has the model", func() bool { return s.cache.Stats().Hits == 1 })
			if a := s.send(t, http.MethodDelete, "/models/m", "", nil); a.status != 204 {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			return nil
		})
	})
	group.Wait()
	if err != nil {
		t.Error(err)
	}
}

func TestPutModel_KeepsTheOldModelOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	small := trained(t)["autoencoder.pt"]
	if err := syscall.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", len(small)>>10+1<<10)); err != nil {
		t.Skipf("mounting a small disk requires root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := start(t, func(o *Options) { o.ModelsDir = dir })
	if a := s.put(t, "m", small); a.status != 201 { // leaves a megabyte
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	for _, name := range []string{"m", "n"} {
		a := s.put(t, name, trained(t)["autoencoder.onnx"])
		if a.status != 503 || !strings.Contains(a.message(t), "disk space") {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	if files := storedFiles(t, dir); !slices.Equal(files, []string{"m.model"}) {
		t.Errorf("the folder has %v", files)
	}
	a := s.byName(t, "m", tile(t, testGood))
	if v := as[inference.Verdict](t, a); a.status != 200 || v.ModelSHA256 != models.Identity(small) {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if err := s.Shutdown(0); err != nil { // before the disk is unmounted
		t.Error(err)
	}
}

func TestDetect_AnswersSeveralImagesWithAList(t *testing.T) {
	s, _ := startWithModels(t, func(o *Options) { o.Images.MaxBytes, o.RequestImages = 1<<20, 3<<20 })
	model := trained(t)["autoencoder.pt"]
	s.mustPut(t, "m", model)
	var parts []part
	var want []inference.Verdict
	for _, f := range tileFiles(t, testCrack, 5) {
		image := read(t, f)
		want = append(want, as[inference.Verdict](t, s.byName(t, "m", image)))
		parts = append(parts, file("imageFile", filepath.Base(f), image))
	}
	parts = append(parts, file("imageFile", "prose.png", []byte("prose")), text("imageFile", "nameless"))
	for path, more := range map[string][]part{"/detect": {file("modelFile", "m", model)}, "/models/m/detect": nil} {
		a := s.post(t, path, append(slices.Clone(parts), more...)...)
		list := as[[]imageResult](t, a)
		checkLength(t, a)
		if a.status != 200 || len(list) != len(parts) {
			t.Fatalf("%s: status %d: %s", path, a.status, a.body)
		}
		for i, j := range list {
			switch {
			case j.File != parts[i].file:
				t.Errorf("%s: the file is %q, expected %q", path, j.File, parts[i].file)
			case i >= len(want):
				if j.Verdict != nil || !strings.Contains(j.Error, "image") {
					t.Errorf("%s: %+v", path, j)
				}
			case j.Verdict == nil || j.Error != "" || j.ReconstructionError != want[i].ReconstructionError || j.IsAnomaly != want[i].IsAnomaly:
				t.Errorf("%s: %+v, expected %+v", path, j.Verdict, want[i])
			}
		}
	}
	big := bytes.Repeat([]byte("x"), 1<<20)
	for name, c := range map[string]struct {
		images   [][]byte
		status   int
		contains string
	}{
		"all together too large": {[][]byte{big, big, big, big}, 413, "All of imageFile"},
		"one too large":          {[][]byte{nil, append(big, 'x')}, 413, "imageFile is larger"},
		"all empty":              {[][]byte{nil, nil}, 400, "image"},
		"none":                   {nil, 400, ""},
	} {
		if a := s.byName(t, "m", c.images...); a.status != c.status || !strings.Contains(a.message(t), c.contains) {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
}

func TestDetect_LoadsAModelOnce(t *testing.T) {
	s := start(t, nil)
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	for range 5 {
		if a := s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i", image)); a.status != 200 {
			t.Errorf("status %d: %s", a.status, a.body)
		}
	}
	if st := s.cache.Stats(); st.Misses != 1 || st.Hits != 4 || st.Models != 1 {
		t.Errorf("%+v", st)
	}
}

// A file that begins as a known model but differs later must not match it.
func TestDetect_DistinguishesFilesWithACommonPrefix(t *testing.T) {
	s := start(t, nil)
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	onnx := trained(t)["autoencoder.onnx"]
	detect := func(data []byte) answer {
		return s.post(t, "/detect", file("modelFile", "m", data), file("imageFile", "i", image))
	}
	sum := func(data []byte) string {
		h := sha256.Sum256(data)
		return hex.EncodeToString(h[:])
	}
	var first answer
	for i := range 4 {
		a := detect(model)
		if i == 0 {
			first = a
		}
		if a.status != 200 || !bytes.Equal(a.body, first.body) || !strings.Contains(string(a.body), sum(model)) {
			t.Fatalf("status %d: %s, expected %s", a.status, a.body, first.body)
		}
	}
	changed := bytes.Clone(model)
	changed[len(changed)/2] ^= 1
	for name, data := range map[string][]byte{"changed": changed, "cut": model[:len(model)-1], "longer": append(bytes.Clone(model), "x"...), "a prefix": model[:100]} {
		if a := detect(data); a.status == 200 && !strings.Contains(string(a.body), sum(data)) {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	for range 3 {
		if a := detect(onnx); a.status != 200 || !strings.Contains(string(a.body), sum(onnx)) {
			t.Errorf("another model: status %d: %s", a.status, a.body)
		}
	}
	if a := detect(model); !bytes.Equal(a.body, first.body) {
		t.Errorf("afterwards: %s, expected %s", a.body, first.body)
	}
}
