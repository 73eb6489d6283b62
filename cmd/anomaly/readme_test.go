package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/api"
	"github.com/spf13/pflag"
)

// envPython names the Python that these tests run; `make test` sets it.
const envPython = "ANOMALY_TEST_PYTHON"

func python(t testing.TB) string {
	t.Helper()
	path := os.Getenv(envPython)
	if path == "" {
		t.Skip(envPython + " names no Python with the packages of testdata/requirements.txt: `make test` sets it")
	}
	return path
}

// Relative tolerances of scores of JPEG images, because Pillow's decoder and Go's
// round differently. A score may depend on a single patch, in which a difference of 1
// in 255 matters. The mean squared error is over all pixels.
const (
	jpegTolerance    = 0.1
	jpegToleranceMSE = 5e-3
)

// blocks returns the fenced code blocks of a language in a Markdown text.
func blocks(text, language string) []string {
	var out []string
	fence := regexp.MustCompile("(?ms)^```" + language + "\n(.*?)^```$")
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// exampleFolder returns a folder with the files that the README's examples read.
func exampleFolder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "normal.zip", normals(t, 4))
	write(t, dir, "photo.jpg", read(t, tileFiles(t, "test/crack", 1)[0]))
	return dir
}

// example runs an example of the README against a service.
func example(t testing.TB, dir, address, text string, interpreter ...string) string {
	t.Helper()
	const documented = "127.0.0.1:5029"
	if !strings.Contains(text, documented) {
		t.Fatalf("the example does not use %s:\n%s", documented, text)
	}
	text = strings.ReplaceAll(text, documented, address)
	c := exec.Command(interpreter[0], append(interpreter[1:], text)...)
	c.Dir = dir
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		t.Fatalf("%v: %s\n%s", err, stderr.String(), text)
	}
	return stdout.String()
}

func TestReadme_CurlExamplesRun(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	s := serve(t, nil, "--addr", "127.0.0.1:0")
	dir := exampleFolder(t)
	var output strings.Builder
	ran := 0
	for _, block := range blocks(string(read(t, "../../README.md")), "sh") {
		if strings.Contains(block, "curl ") {
			output.WriteString(example(t, dir, s.address, block, "bash", "-euo", "pipefail", "-c"))
			ran++
		}
	}
	answers := json.NewDecoder(strings.NewReader(output.String()))
	var health struct{ Status, Service string }
	if err := answers.Decode(&health); err != nil || health.Status != "healthy" || health.Service != api.ServiceName {
		t.Errorf("health: %v: %+v", err, health)
	}
	var verdict entry
	if err := answers.Decode(&verdict); err != nil || verdict.Value == nil || *verdict.IsAnomaly != (*verdict.Value > *verdict.Threshold) {
		t.Errorf("verdict: %v: %s", err, output.String())
	}
	if ran != 1 || answers.More() {
		t.Errorf("%d blocks ran and printed %s", ran, output.String())
	}
	want := []string{"README.md", "autoencoder.onnx", "autoencoder.pt", "autoencoder_image.onnx", "metadata.json", "predict.py", "requirements.txt"}
	if got := names(t, unpacked(t, filepath.Join(dir, "anomaly_detection_model.zip"))); !slices.Equal(got, want) {
		t.Errorf("the zip holds %v", got)
	}
}

func TestReadme_PythonExampleRuns(t *testing.T) {
	interpreter := python(t)
	s := serve(t, nil, "--addr", "127.0.0.1:0")
	dir := exampleFolder(t)
	examples := blocks(string(read(t, "../../README.md")), "python")
	if len(examples) != 1 {
		t.Fatalf("%d examples", len(examples))
	}
	got := example(t, dir, s.address, examples[0], interpreter, "-c")
	r := run(t, "detect", "--json", "--model", filepath.Join(dir, "model/autoencoder.pt"), filepath.Join(dir, "photo.jpg"))
	word := map[bool]string{false: "normal", true: "anomaly"}[*entries(t, r)[0].IsAnomaly]
	if want := word + " ['normal', 'anomaly']\n"; got != want {
		t.Errorf("it prints %q, the command line %q", got, want)
	}
}

func TestReadme_JSONExampleHasTheKeysOfAVerdict(t *testing.T) {
	examples := blocks(string(read(t, "../../README.md")), "json")
	if len(examples) != 1 {
		t.Fatalf("%d examples", len(examples))
	}
	r := run(t, "detect", "--json", "--model", smallModel(t), tileFiles(t, "test/crack", 1)[0])
	var documented map[string]any
	var real []map[string]any
	if err := json.Unmarshal([]byte(examples[0]), &documented); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(r.stdout), &real); err != nil {
		t.Fatal(err)
	}
	delete(real[0], "file")
	for key := range real[0] {
		if _, ok := documented[key]; !ok {
			t.Errorf("the example has no %s", key)
		}
		delete(documented, key)
	}
	if len(documented) > 0 {
		t.Errorf("the example also has %v", documented)
	}
}

func TestReadme_FiguresAreTheMeasuredMeans(t *testing.T) {
	row := regexp.MustCompile(`(?m)^\| \*\*mean of the twelve\*\* \|.*\| \*\*(\d\.\d+)\*\* \| \*\*0\.(\d\d)\*\* \| ([\d.]+) % \|$`)
	mean := row.FindStringSubmatch(string(read(t, "../../docs/detection.md")))
	if mean == nil {
		t.Fatal("docs/detection.md has no row of means")
	}
	readme := string(read(t, "../../README.md"))
	for _, want := range []string{"**" + mean[1] + "**", "**" + mean[2] + " %**", "(measured: " + mean[3] + " %)"} {
		if !strings.Contains(readme, want) {
			t.Errorf("the README does not contain %q, which docs/detection.md has", want)
		}
	}
}

func TestHTTPPage_NamesEveryLimitAndMetric(t *testing.T) {
	page := string(read(t, "../../docs/http.md"))
	limits := pflag.NewFlagSet("limits", pflag.ContinueOnError)
	options := api.DefaultOptions()
	addLimits(limits, &options)
	n := 0
	limits.VisitAll(func(f *pflag.Flag) {
		n++
		if !strings.Contains(page, "`--"+f.Name+"`") {
			t.Errorf("docs/http.md does not name --%s", f.Name)
		}
	})
	if n < 15 {
		t.Errorf("only %d limits", n)
	}
	s := serve(t, nil, "--addr", "127.0.0.1:0")
	res, err := http.Get("http://" + s.address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	n = 0
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (anomaly_\w+) `).FindAllStringSubmatch(string(text), -1) {
		n++
		// The metrics of a training share a row, which names their suffixes.
		short := "`" + strings.TrimPrefix(m[1], "anomaly_training") + "`"
		if !strings.Contains(page, "`"+m[1]+"`") && !strings.Contains(page, short) {
			t.Errorf("docs/http.md does not name %s", m[1])
		}
	}
	if n < 12 {
		t.Errorf("only %d metrics", n)
	}
}
