//go:build browser

package browsertest

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/deepmed/anomaly/internal/testkit"
)

func TestPage_ShowsAJobAgainAfterAReloadAndAKilledService(t *testing.T) {
	s := serve(t, "--data", t.TempDir())
	b := openTab(t)
	b.open(s.url, "")
	b.choose("input[data-files]", files(t, "train/good", 60)...)
	b.click("Best")
	b.click("More options")
	b.fill("Size of the images", "128")
	b.fill("Name of the model", "tiles")
	b.click("Start training")
	b.until("the view of the job", "location.hash.startsWith('#/jobs/')", 30*time.Second)
	b.until("the learning curve", "document.querySelector('.chart .line')?.getAttribute('points').split(' ').length > 4", 5*time.Minute)
	b.accessible(t, "job")
	b.shot(t, "job")
	hash := value[string](b, "location.hash")
	b.run(chromedp.Reload(), chromedp.WaitVisible(".big-number", chromedp.ByQuery))
	if at := value[string](b, "location.hash"); at != hash {
		t.Errorf("at %s after the reload, want %s", at, hash)
	}
	s.kill()
	b.shows("The connection to the service was lost", 20*time.Second)
	s.start()
	b.shows("attempt 2", 40*time.Second)
	if value[bool](b, "document.querySelector('main').innerText.includes('connection to the service was lost')") {
		t.Error("the page still shows that the connection is lost")
	}
	b.forgive("net::ERR") // Chromium logs requests without an answer
	b.click("All trainings")
	b.until("the job in the list", "document.querySelector('.job-list .badge.running')", 10*time.Second)
	b.accessible(t, "train, with a job")
	b.run(chromedp.Click(".job-list a", chromedp.ByQuery))
	b.click("Cancel the training")
	b.shows("What it has learned so far is lost", 5*time.Second)
	b.click("Cancel the training")
	b.shows("This training was cancelled", 5*time.Second)
	b.click("Remove this training")
	b.clickIn("dialog", "Remove this training")
	b.shows("No trainings yet", 10*time.Second)
	if list := get[struct{ Jobs []any }](t, s, "/jobs"); len(list.Jobs) != 0 {
		t.Errorf("%d jobs are left", len(list.Jobs))
	}
}

// A program trains by /train; the page shows its training while it runs.
func TestPage_ShowsATrainingOfAProgram(t *testing.T) {
	s := serve(t, "--data", t.TempDir())
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	part, err := w.CreateFormFile("zipFile", "tiles.zip")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write(testkit.Zip(t, testkit.Tiles(t, 40))) // bytes.Buffer does not fail
	_ = w.WriteField("level", "2")
	_ = w.WriteField("image_size", "64")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, s.url+"/train", &form)
	if err != nil {
		t.Fatal(err)
	}
	const id = "training-of-a-program"
	req.Header.Set("Content-Type", w.FormDataContentType())
	req.Header.Set("X-Job-Id", id)
	answered := make(chan error, 1)
	go func() {
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d", res.StatusCode)
			}
		}
		answered <- err
	}()
	b := openTab(t)
	b.open(s.url, "")
	b.until("the training in the list", "document.querySelector('.job-list .badge.running')", 20*time.Second)
	b.run(chromedp.Click(".job-list a", chromedp.ByQuery))
	b.shows("Cancel the training", 10*time.Second)
	if at := value[string](b, "location.hash"); at != "#/jobs/"+id {
		t.Errorf("at %s", at)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	b.shows("went to the program that asked for it", 20*time.Second)
}
