package api

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/prometheus/client_golang/prometheus"
)

// describedMetrics returns the names of all metrics that a service may have, and the
// suffixes of histograms.
func describedMetrics(s *service) map[string]bool {
	names := map[string]bool{}
	descs := make(chan *prometheus.Desc)
	go func() {
		s.metrics.registry.Describe(descs)
		close(descs)
	}()
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		n := name.FindStringSubmatch(d.String())[1]
		for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
			names[n+suffix] = true
		}
	}
	return names
}

func TestDeploy_DashboardAndAlertsUseMetricsThatExist(t *testing.T) {
	b := brokertest.Open(t, brokertest.InProcess(t).URL(), nil)
	s := start(t, func(o *Options) { o.Broker = b })
	names := describedMetrics(s)
	metric := regexp.MustCompile(`\b(anomaly|process|go)_[a-z0-9_]+`)
	used := map[string][]string{}
	for _, path := range []string{"../../deploy/prometheus/alerts.yml", "../../deploy/grafana/dashboard.json", "../../deploy/helm/anomaly/templates/worker.yaml"} {
		text := string(read(t, path))
		if strings.HasSuffix(path, ".json") {
			text = expressions(t, path)
		}
		for _, m := range metric.FindAllString(text, -1) {
			if used[m] = append(used[m], path); !names[m] {
				t.Errorf("%s uses %s, which the service does not have", path, m)
			}
		}
	}
	if len(used) < 25 {
		t.Errorf("only %d metrics are used", len(used))
	}
	// Those that have values before anything happens are in the text too.
	text := string(s.request(t, "GET", "/metrics", nil).body)
	for _, m := range []string{`anomaly_jobs_waiting{kind="train"} 0`, `anomaly_jobs_oldest_waiting_seconds{kind="detect"} 0`, `anomaly_jobs_redelivered_total{kind="train"} 0`,
		"anomaly_nats_connected 1", "anomaly_nats_store_limit_bytes -1", "anomaly_nats_store_bytes "} {
		if !strings.Contains(text, m) {
			t.Errorf("/metrics has no %s", m)
		}
	}
}

// expressions returns those of a dashboard.
func expressions(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			list = append(list, target.Expr)
		}
	}
	if len(list) < 20 {
		t.Errorf("%s has %d expressions", path, len(list))
	}
	return strings.Join(list, "\n")
}

func TestDeploy_EveryMetricOfTheServiceIsDocumented(t *testing.T) {
	b := brokertest.Open(t, brokertest.InProcess(t).URL(), nil)
	s := start(t, func(o *Options) { o.Broker = b })
	text := string(read(t, "../../docs/http.md"))
	var missing []string
	for name := range describedMetrics(s) {
		if !strings.HasPrefix(name, "anomaly_") || strings.HasPrefix(name, "anomaly_training_") || strings.Contains(text, "`"+name+"`") {
			continue
		}
		base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		if base == name && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		t.Errorf("docs/http.md does not describe %q", missing)
	}
}
