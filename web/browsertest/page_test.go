//go:build browser

package browsertest

import (
	"testing"
	"time"
)

func TestPage_TrainsJudgesAndTendsAModel(t *testing.T) {
	s := serve(t, "--data", t.TempDir())
	b := openTab(t)
	b.open(s.url, "")
	b.shows("No trainings yet", 10*time.Second)
	b.choose("input[data-files]", files(t, "train/good", 60)...)
	b.shows("60 images", 20*time.Second)
	b.until("thumbnails", "document.querySelectorAll('.thumbnails img').length === 49", 20*time.Second)
	b.shot(t, "train")
	b.click("Quick look")
	b.click("More options")
	b.fill("Size of the images", "128")
	b.fill("Name of the model", "tiles")
	b.click("Start training")
	b.until("the view of the job", "location.hash.startsWith('#/jobs/')", 30*time.Second)
	b.shows("Training", 30*time.Second)
	b.shows("The model is ready", 3*time.Minute)
	b.shot(t, "job")
	b.click("Judge images")
	b.shows("Drop images to judge", 10*time.Second)
	b.choose("input[data-files]", append(files(t, "test/crack", 10), files(t, "test/good", 6)...)...)
	b.until("verdicts", "document.querySelectorAll('.tile.good, .tile.bad').length === 16", time.Minute)
	b.fill("Sort", "highest")
	b.shot(t, "judge")
	if n := value[int](b, "document.querySelectorAll('.tile.bad').length"); n < 5 {
		t.Errorf("%d of 10 cracks found", n)
	}
	b.clickIn(".feedback", "Anomalous")
	b.shows("Stored with the model", 10*time.Second)
	b.click("Threshold, versions and downloads")
	b.shows("What would it find?", 10*time.Second)
	b.shot(t, "model")
}
