//go:build browser

package browsertest

import (
	"bytes"
	"image"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// scheme sets the colour scheme that the browser prefers, and waits until the page has it.
func (b *tab) scheme(name string) {
	b.t.Helper()
	b.run(emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"}}))
	background := map[string]string{"light": "rgb(245, 247, 246)", "dark": "rgb(15, 21, 20)"}[name]
	b.until("the colours of "+name, "getComputedStyle(document.body).backgroundColor === '"+background+"'", 10*time.Second)
	time.Sleep(300 * time.Millisecond) // the colours of buttons change in steps
}

// maxPicture is the maximum size of a picture in the repository, in bytes.
const maxPicture = 200_000

// smaller returns a picture of at most maxPicture bytes, with coarser colours if they are
// necessary for it: photographs in it have noise.
func smaller(t *testing.T, picture []byte) []byte {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	size := img.Bounds()
	for step := 1; step <= 16; step *= 2 {
		out := image.NewNRGBA(size)
		draw.Draw(out, size, img, size.Min, draw.Src)
		for i, v := range out.Pix {
			if i%4 != 3 {
				out.Pix[i] = byte(min((int(v)+step/2)/step*step, 255))
			}
		}
		var b bytes.Buffer
		if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, out); err != nil {
			t.Fatal(err)
		}
		if b.Len() <= maxPicture {
			return b.Bytes()
		}
	}
	t.Fatalf("a picture of %d bytes cannot be made smaller than %d", len(picture), maxPicture)
	return nil
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
		b.run(emulation.SetDeviceMetricsOverride(v.width, v.height, 1, v.mobile), chromedp.Evaluate("scrollTo(0, 0)", nil),
			chromedp.Sleep(300*time.Millisecond), chromedp.CaptureScreenshot(&picture))
		if err := os.WriteFile(filepath.Join(dir, name+"-"+v.suffix+".png"), smaller(t, picture), 0o644); err != nil {
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
