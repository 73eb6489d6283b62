package api

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

// service is a running server and a client of it.
type service struct {
	*Server
	url string
	dir string // of its uploads
}

// start runs a server until the test ends.
func start(t testing.TB, change func(*Options)) *service {
	t.Helper()
	return startLogging(t, slog.New(slog.DiscardHandler), change)
}

// startLogging is start with a logger. It calls prepare before the server listens.
func startLogging(t testing.TB, log *slog.Logger, change func(*Options), prepare ...func(*Server)) *service {
	t.Helper()
	o := DefaultOptions()
	o.TempDir = t.TempDir()
	// With a lower priority, trainings wait for the tests of other packages.
	o.TrainingNiceness = 0
	if change != nil {
		change(&o)
	}
	s, err := New(orttest.Open(t), log, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare {
		f(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		// A shutdown has no effect on a server that does not accept connections yet. The test may
		// have made no request, so that this one is the first.
		first := http.Client{Timeout: 10 * time.Second}
		if res, err := first.Get("http://" + l.Addr().String() + "/livez"); err == nil {
			res.Body.Close()
		}
		http.DefaultClient.CloseIdleConnections()
		if err := s.Shutdown(time.Second); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return &service{s, "http://" + l.Addr().String(), s.options.TempDir}
}

// startWithModels runs a server that stores models, and returns the folder of the
// models.
func startWithModels(t testing.TB, change func(*Options)) (*service, string) {
	t.Helper()
	dir := t.TempDir()
	return start(t, func(o *Options) {
		o.ModelsDir = dir
		if change != nil {
			change(o)
		}
	}), dir
}

// uploads returns the number of files in the server's upload folder.
func (s *service) uploads(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// keepsNoUpload fails the test if an upload is left.
func (s *service) keepsNoUpload(t testing.TB) {
	t.Helper()
	if n := s.uploads(t); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}

// fill takes all slots of a semaphore, and returns a function that releases them.
func fill(t testing.TB, s *semaphore) (release func()) {
	t.Helper()
	for range cap(s.slots) {
		if err := s.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		for range cap(s.slots) {
			s.release()
		}
	}
}

// eventually waits until a condition holds. The limit only ends a test that fails.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("condition not reached: %s", what)
}

// part is a part of a form. Without a file name it is sent as a plain field.
type part struct {
	name, file string
	data       []byte
}

func file(name, file string, data []byte) part { return part{name, file, data} }
func text(name, value string) part             { return part{name, "", []byte(value)} }

// encode returns a multipart body and its content type.
func encode(t testing.TB, parts ...part) (*bytes.Buffer, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		h := textproto.MIMEHeader{}
		disposition := `form-data; name="` + p.name + `"`
		if p.file != "" {
			disposition += `; filename="` + p.file + `"`
			h.Set("Content-Type", "application/octet-stream")
		}
		h.Set("Content-Disposition", disposition)
		out, err := w.CreatePart(h)
		if err == nil {
			_, err = out.Write(p.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b, w.FormDataContentType()
}

// answer is a response that was read to its end.
type answer struct {
	status int
	header http.Header
	length int64
	body   []byte
}

// message returns the error of an answer.
func (a answer) message(t testing.TB) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("status %d: not JSON: %.200q", a.status, a.body)
	}
	s, _ := m["error"].(string)
	return s
}

// as decodes the JSON of an answer.
func as[T any](t testing.TB, a answer) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("status %d: %v: %.300s", a.status, err, a.body)
	}
	return v
}

func (s *service) do(t testing.TB, r *http.Request) answer {
	t.Helper()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, res.ContentLength, body}
}

func (s *service) newRequest(t testing.TB, method, path string, header http.Header, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	return r
}

// request sends a request without a body. The header may be nil.
func (s *service) request(t testing.TB, method, path string, header http.Header) answer {
	t.Helper()
	return s.do(t, s.newRequest(t, method, path, header, nil))
}

// send sends a request with a body of the content type kind.
func (s *service) send(t testing.TB, method, path, kind string, body io.Reader) answer {
	t.Helper()
	header := http.Header{}
	if kind != "" {
		header.Set("Content-Type", kind)
	}
	return s.do(t, s.newRequest(t, method, path, header, body))
}

// post sends a form.
func (s *service) post(t testing.TB, path string, parts ...part) answer {
	t.Helper()
	body, kind := encode(t, parts...)
	return s.send(t, http.MethodPost, path, kind, body)
}

// postAcceptingEncodings sends a form as a client that accepts compressed answers.
func (s *service) postAcceptingEncodings(t testing.TB, path string, parts ...part) answer {
	t.Helper()
	body, kind := encode(t, parts...)
	return s.do(t, s.newRequest(t, http.MethodPost, path, http.Header{"Content-Type": {kind}, "Accept-Encoding": {"gzip, deflate, br"}}, body))
}

// postInBackground sends a form until ctx ends. The channel receives the error of the
// request, or one with the status of its answer.
func (s *service) postInBackground(t testing.TB, ctx context.Context, path string, parts ...part) <-chan error {
	t.Helper()
	body, kind := encode(t, parts...)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	done := make(chan error, 1)
	go func() {
		res, err := http.DefaultClient.Do(r)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			err = errors.Join(err, fmt.Errorf("status %d", res.StatusCode))
		}
		done <- err
	}()
	return done
}

// dial opens a connection to the server, which is closed when the test ends.
func (s *service) dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// sendHalf sends a form without its second half, on a connection of its own.
func (s *service) sendHalf(t testing.TB, path string, parts ...part) net.Conn {
	t.Helper()
	body, kind := encode(t, parts...)
	c := s.dial(t)
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", path, kind, body.Len())
	if _, err := c.Write(body.Bytes()[:body.Len()/2]); err != nil {
		t.Fatal(err)
	}
	return c
}

// put stores a model.
func (s *service) put(t testing.TB, name string, model []byte) answer {
	t.Helper()
	return s.send(t, http.MethodPut, "/models/"+name, "application/octet-stream", bytes.NewReader(model))
}

// mustPut stores a model under a new name.
func (s *service) mustPut(t testing.TB, name string, model []byte) {
	t.Helper()
	if a := s.put(t, name, model); a.status != http.StatusCreated {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
}

// byName sends images to a stored model.
func (s *service) byName(t testing.TB, name string, images ...[]byte) answer {
	t.Helper()
	var parts []part
	for _, image := range images {
		parts = append(parts, file("imageFile", "i.jpg", image))
	}
	return s.post(t, "/models/"+name+"/detect", parts...)
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// The folders of the test images, below testdata/tiles.
const (
	testGood  = "test/good"
	testCrack = "test/crack"
)

// tileFiles returns the paths of the first n tiles in a folder below testdata/tiles.
func tileFiles(t testing.TB, folder string, n int) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "tiles", folder, "*.jpg"))
	if err != nil || len(list) < n {
		t.Fatalf("%d tiles in %s, %v", len(list), folder, err)
	}
	return list[:n]
}

// tile returns the first tile in a folder below testdata/tiles.
func tile(t testing.TB, folder string) []byte {
	t.Helper()
	return read(t, tileFiles(t, folder, 1)[0])
}

// trainingZip returns a zip of n normal training tiles and more files.
func trainingZip(t testing.TB, n int, more map[string][]byte) []byte {
	t.Helper()
	files := maps.Clone(more)
	if files == nil {
		files = map[string][]byte{}
	}
	for name, data := range testkit.Tiles(t, n) {
		files["some/folder/"+strings.ToUpper(name)] = data
	}
	return testkit.Zip(t, files)
}

// calibrationZip returns a zip of n normal test tiles, on which no model was trained,
// and more files.
func calibrationZip(t testing.TB, n int, more map[string][]byte) []byte {
	t.Helper()
	files := maps.Clone(more)
	if files == nil {
		files = map[string][]byte{}
	}
	for _, f := range tileFiles(t, testGood, n) {
		files[filepath.Base(f)] = read(t, f)
	}
	return testkit.Zip(t, files)
}

// trained returns the bundle of a small model and the files in it. It trains the model
// once for all tests.
func trained(t testing.TB) map[string][]byte {
	t.Helper()
	if trainedFiles == nil {
		src, err := dataset.OpenFolder(testkit.NormalTiles(t), dataset.DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		m, err := trainer.Train(t.Context(), orttest.Open(t), src, trainer.Options{Level: 1, ImageSize: 32})
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := exporter.WriteBundle(&b, m); err != nil {
			t.Fatal(err)
		}
		trainedFiles = unzip(t, b.Bytes())
		trainedFiles[exporter.BundleFile] = b.Bytes()
	}
	return trainedFiles
}

var trainedFiles map[string][]byte

// modelPart returns the checkpoint of trained as a part of a form.
func modelPart(t testing.TB) part {
	t.Helper()
	return file("modelFile", "m", trained(t)[models.CheckpointFile])
}

// imagePart returns a normal test tile as a part of a form.
func imagePart(t testing.TB) part {
	t.Helper()
	return file("imageFile", "i", tile(t, testGood))
}

// calibrationPart returns a zip of n images as a part of a form.
func calibrationPart(t testing.TB, n int) part {
	t.Helper()
	return file("calibrationFile", "c.zip", calibrationZip(t, n, nil))
}

// smallTraining returns the form of a training that is as short as possible.
func smallTraining(zipped []byte, more ...part) []part {
	return append([]part{file("zipFile", "a.zip", zipped), text("level", "1"), text("image_size", "16")}, more...)
}

func unzip(t testing.TB, data []byte) map[string][]byte {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		if out[f.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	return out
}

func metadataOf(t testing.TB, files map[string][]byte) models.Metadata {
	t.Helper()
	m, err := models.ParseMetadata(files[models.MetadataFile])
	if err != nil {
		t.Fatal(err)
	}
	return m
}
