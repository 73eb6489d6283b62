//go:build browser

package browsertest

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// maskFile writes a mask of 64×32 pixels, white in its left columns, and returns its path.
func maskFile(t *testing.T, columns int, outside color.Color) string {
	t.Helper()
	m := image.NewNRGBA(image.Rect(0, 0, 64, 32))
	for i := range 64 * 32 {
		if i%64 < columns {
			m.Set(i%64, i/64, color.White)
		} else {
			m.Set(i%64, i/64, outside)
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return fileOf(t, "mask.png", b.Bytes())
}

func fileOf(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// recordForms makes the page keep the names of the parts of each form it builds, with the
// values of those that are not files.
func (b *tab) recordForms() {
	b.t.Helper()
	b.run(chromedp.Evaluate(`(() => {
		window.parts = [];
		const append = FormData.prototype.append;
		FormData.prototype.append = function (name, value, ...more) {
			parts.push(value instanceof Blob ? name : name + '=' + value);
			return append.call(this, name, value, ...more);
		};
	})()`, nil))
}

// bestTime is the estimate of a training at the last level.
const bestTime = "[...document.querySelectorAll('.level-time')].pop().innerText"

func TestTrainingForm_SendsAnOblongSizeAndARegion(t *testing.T) {
	type jobs struct{ Jobs []any }
	s := serve(t, "--data", t.TempDir())
	b := openTab(t)
	b.open(s.url, "")
	b.choose("input[data-files]", files(t, "train/good", 20)...)
	b.shows("20 images", 20*time.Second)
	b.fill("Name of the model", "oblong")
	b.click("Quick look")
	square := value[string](b, bestTime)
	b.click("More options")
	b.fill("Size of the images", "other")
	b.shows("A size of the images’ own shape finds most", 5*time.Second)

	for _, c := range []struct{ width, height, fault, field string }{
		{"100", "64", "Width: 100 is not a multiple of 16: 96 and 112 are", "Width"},
		{"2048", "64", "Width: 2048 is not from 16 to 1024", "Width"},
		{"128", "0", "Height: 0 is not from 16 to 1024", "Height"},
		{"128", kb.Backspace, "Height: enter a multiple of 16 from 16 to 1024", "Height"},
	} {
		b.fill("Width", c.width)
		b.fill("Height", c.height)
		b.shows(c.fault, 5*time.Second)
		if v := value[string](b, bestTime); v != "" {
			t.Errorf("%s×%s: the estimate is %q", c.width, c.height, v)
		}
		b.click("More options") // closed
		b.click("Start training")
		b.until("the focus on "+c.field, "document.activeElement.closest('label')?.innerText.trim() === '"+c.field+"' && document.activeElement.checkVisibility()", 5*time.Second)
		if list := get[jobs](t, s, "/jobs"); len(list.Jobs) != 0 {
			t.Fatalf("%s×%s: %d jobs", c.width, c.height, len(list.Jobs))
		}
	}
	b.accessible(t, "train, with a wrong size")
	b.fill("Width", "1024")
	b.fill("Height", "64") // as many pixels as 256×256
	b.until("the estimate of as many pixels", bestTime+" === '"+square+"'", 5*time.Second)
	b.fill("Width", "128")
	b.until("the estimate of fewer pixels", bestTime+" !== '' && "+bestTime+" !== '"+square+"'", 5*time.Second)

	b.choose("input[data-region]", fileOf(t, "mask.png", []byte("prose")))
	b.shows("It has the ending of an image, but not the content of one", 10*time.Second)
	b.click("Start training")
	b.until("the focus on the mask", "document.activeElement.matches('input[data-region]')", 5*time.Second)
	b.choose("input[data-region]", maskFile(t, 0, color.Black))
	b.shows("The mask is black everywhere", 10*time.Second)
	b.choose("input[data-region]", maskFile(t, 32, color.Transparent))
	b.shows("The service ignores transparency", 10*time.Second)
	b.choose("input[data-region]", maskFile(t, 16, color.Gray{Y: 90}))
	b.shows("About 25 % of each image is judged", 10*time.Second)
	b.accessible(t, "train, with a mask")
	pixels := value[[]int](b, `(() => {
		const [left, , , , right] = document.querySelector('.mask canvas').getContext('2d').getImageData(15, 8, 2, 1).data;
		return [left, right];
	})()`)
	if !slices.Equal(pixels, []int{255, 0}) {
		t.Errorf("the preview has the values %v at the edge of the mask", pixels)
	}

	b.recordForms()
	b.click("Start training")
	b.shows("The model is ready", 3*time.Minute)
	parts := value[[]string](b, "parts")
	if !slices.Contains(parts, "roiFile") || !slices.Contains(parts, "image_size=128x64") {
		t.Errorf("sent %q", parts)
	}
	p := get[struct {
		Metadata struct {
			Preprocessing struct {
				Width, Height int
				Region        *struct{ Runs string }
			}
		}
	}](t, s, "/models/oblong").Metadata.Preprocessing
	if p.Width != 128 || p.Height != 64 || p.Region == nil || !strings.HasPrefix(p.Region.Runs, "0 32 96 32 96 ") {
		t.Errorf("the model has %d×%d and the region %.40v", p.Width, p.Height, p.Region)
	}
	b.open(s.url, "#/models/oblong")
	b.until("the size and the region of the model", `(() => {
		const facts = Object.fromEntries([...document.querySelectorAll('.facts > div')].map(e => e.innerText.split('\n').map(t => t.trim()).filter(Boolean)));
		return facts['Image size'] === '128 × 64 px' && facts['Part that is judged'] === '25 %';
	})()`, 10*time.Second)
	b.open(s.url, "#/models")
	b.shows("128 × 64 px", 10*time.Second)
}

// Tiles take a region, and neither a size nor a fit. A mask that was removed is not sent.
func TestTrainingForm_SendsARegionWithTiles(t *testing.T) {
	s := serve(t, "--data", t.TempDir())
	for name, remove := range map[string]bool{"with a mask": false, "removed": true} {
		t.Run(name, func(t *testing.T) {
			b := openTab(t)
			b.open(s.url, "")
			b.choose("input[data-files]", files(t, "train/good", 20)...)
			b.shows("20 images", 20*time.Second)
			b.click("Quick look")
			b.click("More options")
			b.fill("Size of the images", "other")
			b.fill("Width", "100") // not sent, so that it does not matter
			b.fill("Large images", "at")
			b.until("a disabled size", "[...document.querySelectorAll('.pair input')].every(e => e.disabled)", 5*time.Second)
			b.choose("input[data-region]", maskFile(t, 32, color.Black))
			b.shows("About 50 % of each image is judged", 10*time.Second)
			if remove {
				b.click("Remove the mask")
				b.until("no mask", "!document.querySelector('.mask') && document.activeElement.matches('input[data-region]') && document.activeElement.files.length === 0", 5*time.Second)
			}
			b.recordForms()
			b.click("Start training")
			b.until("the view of the job", "location.hash.startsWith('#/jobs/')", 30*time.Second)
			parts := value[[]string](b, "parts")
			has := func(name string) bool {
				return slices.ContainsFunc(parts, func(p string) bool { return p == name || strings.HasPrefix(p, name+"=") })
			}
			if has("roiFile") == remove || !slices.Contains(parts, "tile=128") || has("image_size") || has("fit") {
				t.Errorf("sent %q", parts)
			}
			b.click("Cancel the training")
			b.clickIn("dialog", "Cancel the training")
			b.shows("This training was cancelled", 20*time.Second)
		})
	}
}
