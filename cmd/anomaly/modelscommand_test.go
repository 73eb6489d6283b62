package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

func TestModels_ChangesANamedModelOfAService(t *testing.T) {
	t.Run("with a folder", func(t *testing.T) {
		changeNamedModel(t, serve(t, nil, "--addr", "127.0.0.1:0", "--models", t.TempDir()))
	})
	t.Run("in a cluster", func(t *testing.T) {
		changeNamedModel(t, serve(t, nil, "--addr", "127.0.0.1:0", "--nats", brokertest.InProcess(t).URL(), "--replicas", "1"))
	})
}

func changeNamedModel(t *testing.T, s *serving) {
	t.Helper()
	server := "http://" + s.address
	call := func(status int, args ...string) ran {
		t.Helper()
		r := run(t, append(append([]string{"models"}, args...), "--server", server)...)
		if r.status != status {
			t.Fatalf("%v: exit %d: %s%s", args, r.status, r.stdout, r.stderr)
		}
		return r
	}
	file := smallModel(t)
	call(exitNormal, "put", "tiles", file)
	var list []registry.Entry
	decodeJSON(t, call(exitNormal, "list", "--json").stdout, &list)
	if len(list) != 1 || list[0].Name != "tiles" || list[0].SHA256 != models.Identity(read(t, file)) {
		t.Fatalf("%+v", list)
	}
	first := list[0]
	call(exitNormal, "threshold", "tiles", "0.5", "--note", "by hand")
	if text := call(exitNormal, "list").stdout; !strings.Contains(text, "threshold 0.500000") {
		t.Errorf("%s", text)
	}
	folder := filepath.Dir(tileFiles(t, "test/good", 8)[0])
	if text := call(exitNormal, "calibrate", "tiles", folder, "--false-alarm-rate", "0.2").stdout; !strings.Contains(text, "threshold before: 0.500000") || !strings.Contains(text, "20 % false alarms") {
		t.Errorf("%s", text)
	}
	call(exitNormal, "threshold", "tiles", "--false-alarm-rate", "0.3")
	good, crack := tileFiles(t, "test/good", 1)[0], tileFiles(t, "test/crack", 1)[0]
	call(exitNormal, "feedback", "tiles", good, "--label", "normal")
	if text := call(exitNormal, "feedback", "tiles", crack, "--label", "anomalous").stdout; !strings.Contains(text, filepath.Base(good)) || !strings.Contains(text, "1 normal images") {
		t.Errorf("%s", text)
	}
	id := feedback.ID(read(t, good))
	if text := call(exitNormal, "feedback", "tiles", "--remove", id).stdout; strings.Contains(text, id) || !strings.Contains(text, "1 anomalous ones") {
		t.Errorf("%s", text)
	}
	var versions []registry.Version
	decodeJSON(t, call(exitNormal, "versions", "tiles", "--json").stdout, &versions)
	if len(versions) != 4 || versions[3].SHA256 != first.SHA256 || !strings.HasSuffix(versions[2].Reason, "by hand") || !versions[0].Current {
		t.Fatalf("%+v", versions)
	}
	if text := call(exitNormal, "versions", "tiles").stdout; !strings.Contains(text, first.SHA256[:12]) || strings.Count(text, "current") != 1 {
		t.Errorf("%s", text)
	}
	call(exitNormal, "restore", "tiles", strings.ToUpper(first.SHA256[:12]))
	for _, format := range downloadFormats {
		call(exitNormal, "get", "tiles", "--format", format, "--out", filepath.Join(t.TempDir(), format))
	}
	out := filepath.Join(t.TempDir(), "m.pt")
	call(exitNormal, "get", "tiles", "--format", string(first.Format), "--out", out)
	if got := models.Identity(read(t, out)); got != first.SHA256 {
		t.Errorf("the download is %s, the model was %s", got, first.SHA256)
	}
	for _, c := range []struct {
		text string
		args []string
	}{
		{"No such model", []string{"versions", "none"}},
		{"either", []string{"threshold", "tiles"}},
		{"either", []string{"threshold", "tiles", "1", "--false-alarm-rate", "0.1"}},
		{"expected a number", []string{"threshold", "tiles", "much"}},
		{"unusable number", []string{"threshold", "tiles", "NaN"}},
		{"Too low", []string{"threshold", "tiles", "--false-alarm-rate", "1e-9"}},
		{"--label", []string{"feedback", "tiles", good}},
		{"normal or anomalous", []string{"feedback", "tiles", good, "--label", "good"}},
		{"not a readable image", []string{"feedback", "tiles", write(t, t.TempDir(), "a.jpg", []byte("prose")), "--label", "normal"}},
		{"no version", []string{"restore", "tiles", "0000000000"}},
		{"expected one of", []string{"get", "tiles", "--format", "exe", "--out", "x"}},
		{"exists", []string{"get", "tiles", "--out", out}},
	} {
		if r := call(exitError, c.args...); !strings.Contains(strings.ToLower(r.stderr), strings.ToLower(c.text)) {
			t.Errorf("%v: %s", c.args, r.stderr)
		}
	}
}

func decodeJSON(t testing.TB, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatal(fmt.Errorf("%w: %s", err, text))
	}
}
