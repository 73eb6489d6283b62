package api

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
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
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

const tiles = "../../testdata/tiles"

// service is a server on a port of its own, with what tests send to it.
type service struct {
	*Server
	url string
	dir string
}

// start runs a server until the test ends; what it kept must be gone then.
func start(t testing.TB, change func(*Options)) *service {
	t.Helper()
	return startLogging(t, slog.New(slog.DiscardHandler), change)
}

func startLogging(t testing.TB, log *slog.Logger, change func(*Options), prepare ...func(*Server)) *service {
	t.Helper()
	o := DefaultOptions()
	o.TempDir = t.TempDir()
	if change != nil {
		change(&o)
	}
	s, err := New(orttest.Open(t), log, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare { // before it serves
		f(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
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

// uploads counts the files that the server keeps at the moment.
func (s *service) uploads(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// part is a part of a form. Without a file name it is sent as a plain field.
type part struct {
	name, file string
	data       []byte
}

func file(name, file string, data []byte) part { return part{name, file, data} }
func text(name, value string) part             { return part{name, "", []byte(value)} }

// encode writes the parts as a multipart body and gives its content type.
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

// answer is a response, read to its end.
type answer struct {
	status int
	header http.Header
	length int64
	body   []byte
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

func (s *service) post(t testing.TB, path string, parts ...part) answer {
	t.Helper()
	body, kind := encode(t, parts...)
	return s.send(t, http.MethodPost, path, kind, body)
}

func (s *service) send(t testing.TB, method, path, kind string, body io.Reader) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, s.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	return s.do(t, r)
}

// message is the error of the contract's JSON.
func (a answer) message(t testing.TB) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("status %d: not JSON: %.200q", a.status, a.body)
	}
	s, _ := m["error"].(string)
	return s
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// tileFiles are n tiles of a folder below testdata/tiles.
func tileFiles(t testing.TB, folder string, n int) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(tiles, folder, "*.jpg"))
	if err != nil || len(list) < n {
		t.Fatalf("%d tiles in %s, %v", len(list), folder, err)
	}
	return list[:n]
}

// zipOf packs files under the names given.
func zipOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range files {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// normals is a zip of n normal tiles.
func normals(t testing.TB, n int, more map[string][]byte) []byte {
	t.Helper()
	files := map[string][]byte{}
	for _, f := range tileFiles(t, "train/good", n) {
		files["some/folder/"+strings.ToUpper(filepath.Base(f))] = read(t, f)
	}
	for name, data := range more {
		files[name] = data
	}
	return zipOf(t, files)
}

// trained is the bundle of a small model, trained once for all tests, and the
// files in it.
func trained(t testing.TB) map[string][]byte {
	t.Helper()
	if fixture == nil {
		src, err := dataset.OpenFolder(filepath.Join(tiles, "train/good"), dataset.DefaultLimits())
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
		fixture = unzip(t, b.Bytes())
		fixture[exporter.BundleFile] = b.Bytes()
	}
	return fixture
}

var fixture map[string][]byte

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
