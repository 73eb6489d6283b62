//go:build browser

package browsertest

import (
	"strings"
	"testing"
	"time"
)

func TestPage_TrainsAndJudges(t *testing.T) {
	s := serve(t, "--data", t.TempDir())
	b := openTab(t)
	b.open(s.url, "")
	b.shows("No trainings yet", 10*time.Second)
	b.choose("input[data-files]", files(t, "train/good", 60)...)
	b.shows("60 images", 20*time.Second)
	b.shot(t, "train")
	b.click("Quick look")
	b.click("More options")
	b.fill("Size of the images", "128")
	b.fill("Name of the model", "tiles")
	b.click("Start training")
	b.until("the view of the job", "location.hash.startsWith('#/jobs/')", 30*time.Second)
	b.shows("Training", 30*time.Second)
	b.shot(t, "job")
	b.shows("The model is ready", 3*time.Minute)
	b.shot(t, "ready")
	b.click("Judge images")
	b.shows("Drop images to judge", 10*time.Second)
	b.choose("input[data-files]", append(files(t, "test/crack", 3), files(t, "test/good", 3)...)...)
	b.until("six verdicts", "document.querySelectorAll('.tile.good, .tile.bad').length === 6", time.Minute)
	b.shot(t, "judge")
	if n := value[int](b, "document.querySelectorAll('.tile.bad').length"); n < 2 {
		t.Errorf("%d of 3 cracks found", n)
	}
	if !strings.Contains(value[string](b, "document.querySelector('.detail').innerText"), "threshold") {
		t.Error("the detail has no threshold")
	}
}
