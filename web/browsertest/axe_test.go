//go:build browser

package browsertest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/deepmed/anomaly/internal/testkit"
)

// accessible checks the view that is shown with axe-core, in light and in dark: there must
// be no finding of the impact serious or critical.
func (b *tab) accessible(t *testing.T, view string) {
	t.Helper()
	axe, err := os.ReadFile(filepath.Join(testkit.Root(t), "web", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatalf("%v: run npm ci in web, as make browser does", err)
	}
	type finding struct {
		ID, Impact, Help string
		Nodes            []struct {
			HTML           string
			FailureSummary string
		}
	}
	for _, scheme := range []string{"dark", "light"} {
		b.scheme(scheme)
		var result struct {
			Violations []finding
			Passes     int
		}
		await := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
		b.run(chromedp.Evaluate(string(axe)+";0", nil),
			chromedp.Evaluate(`axe.run().then(r => ({violations: r.violations, passes: r.passes.length}))`, &result, await))
		if result.Passes < 10 {
			t.Errorf("%s, %s: axe-core made only %d checks", view, scheme, result.Passes)
		}
		for _, f := range result.Violations {
			if f.Impact != "serious" && f.Impact != "critical" {
				t.Logf("%s, %s: %s (%s): %s", view, scheme, f.ID, f.Impact, f.Help)
				continue
			}
			t.Errorf("%s, %s: %s (%s): %s", view, scheme, f.ID, f.Impact, f.Help)
			for _, n := range f.Nodes[:min(len(f.Nodes), 3)] {
				t.Errorf("  %s\n  %s", n.HTML, n.FailureSummary)
			}
		}
	}
}
