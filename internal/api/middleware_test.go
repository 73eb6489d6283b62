package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scraped returns the samples of /metrics by name and labels. The value of a histogram is
// its count.
func (s *service) scraped(t testing.TB) map[string]float64 {
	t.Helper()
	a := s.request(t, http.MethodGet, pathMetrics, nil)
	if a.status != 200 || !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("status %d, type %q", a.status, a.header.Get("Content-Type"))
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			key := name
			for _, l := range m.GetLabel() {
				key += fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue())
			}
			switch {
			case m.Counter != nil:
				out[key] = m.GetCounter().GetValue()
			case m.Gauge != nil:
				out[key] = m.GetGauge().GetValue()
			case m.Histogram != nil:
				out[key] = float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return out
}

func TestMetrics_CountRequestsAndStages(t *testing.T) {
	s := start(t, nil)
	model, image := modelPart(t), imagePart(t)
	for range 3 {
		if a := s.post(t, "/detect", model, image); a.status != 200 {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
	}
	s.post(t, "/detect", model)
	s.request(t, http.MethodGet, "/unknown/path", nil)
	s.request(t, "BREW", "/health", nil)
	if a := s.post(t, "/train", smallTraining(trainingZip(t, 2, nil))...); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	if a := s.post(t, "/train", smallTraining(trainingZip(t, 2, nil), text("max_seconds", "1e-6"))...); a.status != 422 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	got := s.scraped(t)
	for name, want := range map[string]float64{
		"anomaly_http_requests_total method=POST route=/detect status=200": 3,
		"anomaly_http_requests_total method=POST route=/detect status=400": 1,
		"anomaly_http_requests_total method=GET route=none status=404":     1,
		"anomaly_http_requests_total method=other route=none status=405":   1,
		"anomaly_http_requests_total method=POST route=/train status=200":  1,
		"anomaly_http_request_duration_seconds route=/detect":              4,
		"anomaly_stage_duration_seconds stage=receive work=detect":         4,
		"anomaly_stage_duration_seconds stage=queue work=detect":           3,
		"anomaly_stage_duration_seconds stage=load work=detect":            3,
		"anomaly_stage_duration_seconds stage=decode work=detect":          3,
		"anomaly_stage_duration_seconds stage=infer work=detect":           3,
		"anomaly_stage_duration_seconds stage=receive work=train":          2,
		"anomaly_model_cache_lookups_total result=hit":                     2,
		"anomaly_model_cache_lookups_total result=miss":                    1,
		"anomaly_model_cache_models":                                       1,
		"anomaly_model_cache_evictions_total":                              0,
		"anomaly_model_cache_bytes":                                        float64(s.cache.Stats().Bytes),
		"anomaly_batch_images":                                             3,
		"anomaly_queue_running work=detect":                                0,
		"anomaly_queue_waiting work=train":                                 0,
		"anomaly_trainings_total ended=complete":                           1,
		"anomaly_training_step":                                            0,
		"anomaly_panics_total":                                             0,
		"anomaly_http_requests_in_flight":                                  1, // the scrape
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (found: %t), expected %v", name, v, ok, want)
		}
	}
	if got["go_goroutines"] < 1 {
		t.Error("no metrics of the process")
	}
	for name := range got {
		if strings.Contains(name, "unknown") {
			t.Errorf("an unknown path has the series %s", name)
		}
	}
}

func TestMetrics_CountEachImageOfARequest(t *testing.T) {
	s, images, _ := startInference(t)
	before := s.scraped(t)
	image := tile(t, testGood)
	if a := s.byName(t, "tiles", image, []byte("prose"), image); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	body := marshal(t, map[string]any{"inputs": []any{map[string]any{"name": "image", "datatype": "FP32", "shape": []int{2, 3, 32, 32}, "data": images}}})
	if a := s.infer(t, body, ""); a.status != 200 {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	after := s.scraped(t)
	for name, want := range map[string]float64{
		"anomaly_stage_duration_seconds stage=receive work=detect":                      2,
		"anomaly_stage_duration_seconds stage=queue work=detect":                        2,
		"anomaly_stage_duration_seconds stage=load work=detect":                         2,
		"anomaly_stage_duration_seconds stage=decode work=detect":                       2 + 1,
		"anomaly_stage_duration_seconds stage=infer work=detect":                        2 + 1,
		"anomaly_http_requests_total method=POST route=/models/:name/detect status=200": 1,
	} {
		if got := after[name] - before[name]; got != want {
			t.Errorf("%s increased by %v, expected %v", name, got, want)
		}
	}
	if after["anomaly_batch_images"] <= before["anomaly_batch_images"] {
		t.Error("no batch was counted")
	}
}

func TestReady_WaitsForTheModelFolder(t *testing.T) {
	s, err := New(orttest.Open(t), slog.New(slog.DiscardHandler), Options{TempDir: t.TempDir(), Models: models.DefaultLimits()})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tiles.pt"), trained(t)["autoencoder.pt"], 0o644); err != nil {
		t.Fatal(err)
	}
	if s.registry, err = registry.OpenFolder(dir, models.DefaultLimits(), registry.Options{MaxModels: 10}, s.log); err != nil {
		t.Fatal(err)
	}
	status := func(path string) int {
		t.Helper()
		r, err := s.app.Test(httptest.NewRequest(http.MethodGet, path, nil), -1)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	for _, path := range []string{pathReady, pathInferenceReady} {
		if got := status(path); got != 503 {
			t.Errorf("%s: status %d before the models were read", path, got)
		}
	}
	s.registry.Load(t.Context(), nil)
	for _, path := range []string{pathReady, pathInferenceReady} {
		if got := status(path); got != 200 {
			t.Errorf("%s: status %d after the models were read", path, got)
		}
	}
	if err := s.Shutdown(0); err != nil {
		t.Error(err)
	}
}

func TestMetrics_ShowTheRunningTraining(t *testing.T) {
	s := start(t, nil)
	done := s.startTraining(t, t.Context(), 7, 384)
	eventually(t, "the metrics show steps", func() bool { return s.scraped(t)["anomaly_training_step"] > 1 })
	got := s.scraped(t)
	if got["anomaly_training_epochs"] != 100 || got["anomaly_training_steps"] != 100 || !(got["anomaly_training_loss"] > 0) || !(got["anomaly_training_remaining_seconds"] > 0) {
		t.Errorf("epochs %v, steps %v, loss %v, remaining %v", got["anomaly_training_epochs"], got["anomaly_training_steps"], got["anomaly_training_loss"], got["anomaly_training_remaining_seconds"])
	}
	if got["anomaly_queue_running work=train"] != 1 {
		t.Error("the metrics show no running training")
	}
	s.cancel(errShuttingDown)
	<-done
	if got := s.scraped(t); got["anomaly_trainings_total ended=failed"] != 1 || got["anomaly_training_epoch"] != 0 {
		t.Errorf("afterwards: failed %v, epoch %v", got["anomaly_trainings_total ended=failed"], got["anomaly_training_epoch"])
	}
}

// startLogged runs a server and returns a function that returns its log.
func startLogged(t *testing.T, level slog.Level, prepare ...func(*Server)) (*service, func() []map[string]any) {
	var mu sync.Mutex
	var lines bytes.Buffer
	write := writerFunc(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return lines.Write(p)
	})
	s := startLogging(t, slog.New(slog.NewJSONHandler(write, &slog.HandlerOptions{Level: level})), nil, prepare...)
	return s, func() (out []map[string]any) {
		mu.Lock()
		defer mu.Unlock()
		for line := range bytes.Lines(lines.Bytes()) {
			var m map[string]any
			if err := json.Unmarshal(line, &m); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			out = append(out, m)
		}
		return out
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestRequestID_IsKeptIfValid(t *testing.T) {
	s, log := startLogged(t, slog.LevelInfo)
	for _, c := range []struct {
		name, id string
		kept     bool
	}{
		{"plain", "order-66_a.b", true},
		{"the longest", strings.Repeat("x", 64), true},
		{"too long", strings.Repeat("x", 65), false},
		{"empty", "", false},
		{"with a space", "a b", false},
		{"a line of the log", `x" level=ERROR msg="owned`, false},
		{"markup", "<script>", false},
		{"not ASCII", "é", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.request(t, http.MethodGet, "/nowhere/"+strconv.Itoa(len(c.id)), http.Header{"X-Request-Id": {c.id}})
			got := a.header.Get("X-Request-ID")
			if (got == c.id) != c.kept || !validID.MatchString(got) {
				t.Errorf("%q became %q", c.id, got)
			}
			lines := log()
			if last := lines[len(lines)-1]; last["id"] != got || last["status"] != 404.0 || last["method"] != "GET" || last["msg"] != "request" {
				t.Errorf("the log has %v", last)
			}
		})
	}
}

func TestProbes_AreLoggedAtDebugUnlessTheyFail(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelInfo: 1, slog.LevelDebug: 5} {
		s, log := startLogged(t, level)
		for _, path := range []string{pathHealth, pathLive, pathReady, pathMetrics} {
			s.request(t, http.MethodGet, path, nil)
		}
		s.draining.Store(true)
		s.request(t, http.MethodGet, pathReady, nil)
		s.draining.Store(false)
		if got := len(log()); got != want {
			t.Errorf("at %s: %d lines, expected %d", level, got, want)
		}
	}
}

func TestAnswers_HaveSecurityHeadersALengthAndNoEncoding(t *testing.T) {
	s := start(t, func(o *Options) { o.Token = "0123456789abcdef" })
	bearer := http.Header{"Authorization": {"Bearer 0123456789abcdef"}, "Accept-Encoding": {"gzip, br"}}
	for _, path := range []string{pathHealth, pathLive, pathReady, pathMetrics, pathOpenAPI, "/detect", "/nothing"} {
		for name, header := range map[string]http.Header{"with a token": bearer, "without": {"Accept-Encoding": {"gzip, br"}}} {
			t.Run(path+" "+name, func(t *testing.T) {
				a := s.request(t, http.MethodGet, path, header)
				for _, h := range securityHeaders {
					if a.header.Get(h[0]) != h[1] {
						t.Errorf("%s is %q", h[0], a.header.Get(h[0]))
					}
				}
				if a.length < 0 || a.header.Get("Content-Encoding") != "" || a.header.Get("Server") != "" || a.header.Get("Access-Control-Allow-Origin") != "" {
					t.Errorf("length %d, headers %v", a.length, a.header)
				}
			})
		}
	}
}

func TestProbes_ReportWhetherWorkIsAccepted(t *testing.T) {
	s := start(t, nil)
	status := func(path string) int { return s.request(t, http.MethodGet, path, nil).status }
	if status(pathLive) != 200 || status(pathReady) != 200 {
		t.Error("a new server is not ready")
	}
	s.draining.Store(true)
	defer s.draining.Store(false)
	if status(pathLive) != 200 || status(pathHealth) != 200 || status(pathReady) != 503 {
		t.Errorf("during shutdown: live %d, health %d, ready %d", status(pathLive), status(pathHealth), status(pathReady))
	}
}

// The body of a rejected request must not be parsed as the next request on the
// connection.
func TestReject_DoesNotParseTheBodyAsARequest(t *testing.T) {
	s := start(t, func(o *Options) { o.Token = "0123456789abcdef" })
	body := bytes.Repeat([]byte("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"), 40_000)
	for _, path := range []string{"/nothing", "/health", "/detect"} {
		t.Run(path, func(t *testing.T) {
			c := s.dial(t)
			go func() {
				fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
				fmt.Fprint(c, "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			}()
			answers, err := io.ReadAll(c)
			if n := strings.Count(string(answers), "HTTP/1.1 "); n > 2 {
				t.Errorf("%d answers to two requests, %v", n, err)
			}
			if !strings.HasPrefix(string(answers), "HTTP/1.1 4") {
				t.Errorf("%v: %.200q", err, answers)
			}
		})
	}
}

func TestPanic_IsAnsweredAndCounted(t *testing.T) {
	s, log := startLogged(t, slog.LevelInfo, func(s *Server) {
		s.app.Get("/panic", func(*fiber.Ctx) error { panic("secret detail") })
	})
	a := s.request(t, http.MethodGet, "/panic", nil)
	if a.status != 500 || strings.Contains(string(a.body), "secret") || !strings.Contains(a.message(t), a.header.Get("X-Request-ID")) {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if s.scraped(t)["anomaly_panics_total"] != 1 {
		t.Error("the panic is not counted")
	}
	if first := log()[0]; first["msg"] != "handler panicked" || !strings.Contains(fmt.Sprint(first["stack"]), "goroutine") {
		t.Errorf("the log has %v", first)
	}
}
