//go:build browser

package browsertest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// scheme sets the colour scheme that the browser prefers.
func (b *tab) scheme(name string) {
	b.t.Helper()
	b.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"}}))
}

// shot writes a picture of the page in light, in dark and on a telephone into the folder
// of PAGE_PICTURES, if that is set.
func (b *tab) shot(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("PAGE_PICTURES")
	if dir == "" {
		return
	}
	for _, v := range []struct {
		suffix, scheme string
		width, height  int64
		mobile         bool
	}{{"light", "light", 1280, 900, false}, {"dark", "dark", 1280, 900, false}, {"phone", "light", 390, 844, true}} {
		b.scheme(v.scheme)
		var picture []byte
		b.run(emulation.SetDeviceMetricsOverride(v.width, v.height, 1, v.mobile), chromedp.Evaluate("scrollTo(0, 0)", nil), chromedp.CaptureScreenshot(&picture))
		if err := os.WriteFile(filepath.Join(dir, name+"-"+v.suffix+".png"), picture, 0o644); err != nil {
			t.Fatal(err)
		}
		if full := os.Getenv("PAGE_FULL_PICTURES"); full != "" {
			b.run(chromedp.FullScreenshot(&picture, 100))
			if err := os.WriteFile(filepath.Join(full, name+"-"+v.suffix+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.scheme("light")
	b.run(emulation.ClearDeviceMetricsOverride())
	time.Sleep(300 * time.Millisecond) // plots are drawn for the new width
}
