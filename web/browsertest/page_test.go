//go:build browser

package browsertest

import (
	"archive/zip"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/disintegration/imaging"
)

// get returns the JSON of a GET request to the service.
func get[T any](t *testing.T, s *service, path string) T {
	t.Helper()
	res, err := http.Get(s.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var v T
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v", path, res.StatusCode, err)
	}
	return v
}

// train trains a model of the tiles through the page, with a name unless it is empty, and
// waits for its end.
func (b *tab) train(name string) {
	b.t.Helper()
	b.click("Quick look")
	b.click("More options")
	b.fill("Size of the images", "128")
	if name != "" {
		b.fill("Name of the model", name)
	}
	b.click("Start training")
	b.until("the view of the job", "location.hash.startsWith('#/jobs/')", 30*time.Second)
	b.shows("Cancel the training", 30*time.Second)
	b.shows("The model is ready", 3*time.Minute)
}

// judge judges images through the page and waits for the verdicts.
func (b *tab) judge(paths ...string) {
	b.t.Helper()
	b.shows("Drop images to judge", 10*time.Second)
	b.choose("input[data-files]", paths...)
	b.until("verdicts", "document.querySelectorAll('.tile.good, .tile.bad').length === "+strconv.Itoa(len(paths)), time.Minute)
	b.until("thumbnails", "document.querySelectorAll('.tile .picture > img:first-child').length === "+strconv.Itoa(len(paths)), 20*time.Second)
}

type entry struct {
	SHA256   string
	Metadata struct {
		Decision struct{ Threshold float64 }
	}
}

func TestPage_TrainsJudgesAndTendsAModel(t *testing.T) {
	s := serve(t, "--data", t.TempDir())
	b := openTab(t)
	b.open(s.url, "")
	b.shows("No trainings yet", 10*time.Second)
	b.accessible(t, "train, empty")
	b.choose("input[data-files]", files(t, "train/good", 60)...)
	b.until("thumbnails", "document.querySelectorAll('.thumbnails img').length === 49", 20*time.Second)
	b.accessible(t, "train")
	b.shot(t, "train")
	b.train("tiles")
	b.until("the learning curve", "document.querySelector('.chart .line')", 10*time.Second)
	b.accessible(t, "job, succeeded")

	b.click("Judge images")
	b.judge(append(files(t, "test/crack", 10), files(t, "test/good", 6)...)...)
	b.fill("Sort", "highest")
	b.run(chromedp.Blur("[data-filled]", chromedp.ByQuery))
	b.accessible(t, "judge")
	b.clickIn(".tiles li:nth-child(3)", "Anomalous")
	b.shot(t, "judge")
	b.clickIn(".tiles li:nth-child(1)", "Anomalous")
	found := value[int](b, "document.querySelectorAll('.tile.bad').length")
	if found < 5 {
		t.Errorf("%d of 16 images are anomalous, and 10 have a crack", found)
	}
	checkOverlay(t, b)
	checkTakenAway(t, b, found)
	b.clickIn(".feedback", "Anomalous")
	b.shows("Stored with the model", 10*time.Second)
	b.clickIn(".tiles li:nth-child("+strconv.Itoa(found)+")", "Anomalous") // the one closest to the threshold
	b.clickIn(".feedback", "Normal")
	b.shows("Stored with the model", 10*time.Second)

	b.click("Threshold, versions and downloads")
	b.shows("What would it find?", 10*time.Second)
	b.until("the image of the feedback", "document.querySelector('.feedback-list img')", 10*time.Second)
	b.shows("The images have changed", 10*time.Second) // most have a crack
	b.accessible(t, "model, with an alarm")
	b.click("Watch anew")
	b.until("the end of the alarm", "!document.querySelector('main').innerText.includes('The images have changed')", 10*time.Second)
	b.accessible(t, "model")
	b.shot(t, "model")
	checkSuggestion(t, s, b)
	checkThreshold(t, s, b)
	checkVersions(t, s, b)
	checkCalibration(t, s, b)
	checkDownloads(t, b)
	checkPrograms(t, b)

	for n := 2; n > 0; n-- {
		b.until("the list of feedback", "document.querySelectorAll('.feedback-list li').length === "+strconv.Itoa(n), 10*time.Second)
		b.click("Remove " + value[string](b, "document.querySelector('.feedback-list .path').innerText.split(',')[0]"))
	}
	b.shows("Nothing marked yet", 10*time.Second)
	b.open(s.url, "#/models")
	b.shows("60 images, level 1", 10*time.Second)
	b.accessible(t, "models")
	b.click("tiles")
	b.click("Delete this model")
	b.shows("This cannot be undone", 5*time.Second)
	b.accessible(t, "a question")
	b.click("Delete this model")
	b.shows("No models yet", 10*time.Second)
}

// checkOverlay checks that the heatmap fits the image, and its slider.
func checkOverlay(t *testing.T, b *tab) {
	t.Helper()
	const heat = "document.querySelector('.detail .heat')"
	b.until("the heatmap", heat+"?.complete && document.querySelector('.detail .box')", 10*time.Second)
	same := `(() => {
		const [a, b] = [...document.querySelectorAll('.detail .picture > img')].map(e => e.getBoundingClientRect());
		return Math.abs(a.x - b.x) + Math.abs(a.y - b.y) + Math.abs(a.width - b.width) + Math.abs(a.height - b.height) < 1;
	})()`
	if !value[bool](b, same) {
		t.Error("the heatmap does not cover the image")
	}
	b.run(chromedp.Focus(".detail input[type=range]", chromedp.ByQuery), chromedp.KeyEvent(kb.Home))
	if v := value[string](b, heat+".style.opacity"); v != "0" {
		t.Errorf("opacity %q at the left end of the slider", v)
	}
	b.run(chromedp.KeyEvent(kb.End))
	if v := value[string](b, heat+".style.opacity"); v != "1" {
		t.Errorf("opacity %q at the right end of the slider", v)
	}
}

// checkTakenAway checks the filter, and the verdicts as CSV, JSON and report.
func checkTakenAway(t *testing.T, b *tab, found int) {
	t.Helper()
	b.clickIn(".toolbar", "CSV")
	rows, err := csv.NewReader(bytes.NewReader(b.downloaded("verdicts-tiles.csv"))).ReadAll()
	if err != nil || len(rows) != 17 || rows[0][2] != "anomaly_score" || rows[1][1] != "anomalous" {
		t.Errorf("%v: CSV %q", err, rows)
	}
	for i := 2; i < len(rows); i++ {
		before, _ := strconv.ParseFloat(rows[i-1][2], 64)
		if v, err := strconv.ParseFloat(rows[i][2], 64); err != nil || v > before {
			t.Errorf("row %d of the CSV is not in the order of the list: %q after %q", i, rows[i][2], rows[i-1][2])
		}
	}
	b.clickIn(".toolbar", "Anomalous")
	b.clickIn(".toolbar", "JSON")
	var verdicts []struct {
		File      string
		IsAnomaly bool `json:"is_anomaly"`
	}
	if err := json.Unmarshal(b.downloaded("verdicts-tiles.json"), &verdicts); err != nil || len(verdicts) != found || !verdicts[0].IsAnomaly {
		t.Errorf("%v: JSON of %d verdicts, want the %d anomalous ones", err, len(verdicts), found)
	}
	b.clickIn(".toolbar", "Report")
	report := string(b.downloaded("verdicts-tiles.html"))
	if n := strings.Count(report, `src="data:image/jpeg;base64,`); n != found || strings.Contains(report, "http") {
		t.Errorf("the report has %d pictures, want %d, or it refers to another file", n, found)
	}
	b.clickIn(".toolbar", "All")
}

// checkSuggestion follows the threshold that the feedback suggests: above the normal image
// that is reported wrongly, and below the anomalous one.
func checkSuggestion(t *testing.T, s *service, b *tab) {
	t.Helper()
	before := get[entry](t, s, "/models/tiles").Metadata.Decision.Threshold
	b.shows("1 normal image (1 reported wrongly), 1 anomalous image (0 missed)", 10*time.Second)
	b.clickIn("[aria-labelledby=feedback-title]", value[string](b, "document.querySelector('[aria-labelledby=feedback-title] .notice button').innerText"))
	b.shows("1 normal image (0 reported wrongly), 1 anomalous image (0 missed)", 20*time.Second)
	if after := get[entry](t, s, "/models/tiles").Metadata.Decision.Threshold; after <= before {
		t.Errorf("the threshold is %v after the suggestion, it was %v", after, before)
	}
}

// checkThreshold moves the threshold by pointer and by keyboard, and stores it.
func checkThreshold(t *testing.T, s *service, b *tab) {
	t.Helper()
	const shown = "Number(document.querySelector('[role=slider]').getAttribute('aria-valuenow'))"
	stored := get[entry](t, s, "/models/tiles").Metadata.Decision.Threshold
	b.until("the line at the threshold", shown+" === "+strconv.FormatFloat(stored, 'g', -1, 64), 5*time.Second)
	before := stored
	b.run(chromedp.Evaluate("document.querySelector('.histogram').scrollIntoView({block: 'center'})", nil))
	box := value[[]float64](b, "(() => { const r = document.querySelector('.handle .grip').getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()")
	mouse := func(kind input.MouseType, x float64) chromedp.Action {
		return input.DispatchMouseEvent(kind, x, box[1]).WithButton(input.Left).WithButtons(1).WithClickCount(1)
	}
	b.run(mouse(input.MousePressed, box[0]), mouse(input.MouseMoved, box[0]+80), mouse(input.MouseMoved, box[0]+160), mouse(input.MouseReleased, box[0]+160))
	dragged := value[float64](b, shown)
	if dragged <= before*1.1 {
		t.Errorf("dragging the line moved the threshold from %v to %v", before, dragged)
	}
	b.run(chromedp.Evaluate("document.querySelector('[role=slider]').focus()", nil), chromedp.KeyEvent(kb.ArrowLeft), chromedp.KeyEvent(kb.PageDown))
	moved := value[float64](b, shown)
	if moved >= dragged {
		t.Errorf("the keys moved the threshold from %v to %v", dragged, moved)
	}
	b.click("Use this threshold")
	b.until("the new version", "document.querySelectorAll('.versions li').length === 3", 20*time.Second)
	if stored := get[entry](t, s, "/models/tiles").Metadata.Decision.Threshold; stored != moved {
		t.Errorf("the threshold is %v, want %v", stored, moved)
	}
}

// checkVersions restores the first version.
func checkVersions(t *testing.T, s *service, b *tab) {
	t.Helper()
	now := get[entry](t, s, "/models/tiles").SHA256
	b.clickIn(".versions li:last-child", value[string](b, "document.querySelector('.versions li:last-child button').getAttribute('aria-label')"))
	b.until("the restored version", "document.querySelector('.versions li.current')?.innerText.includes('estored')", 20*time.Second)
	if e := get[entry](t, s, "/models/tiles"); e.SHA256 == now {
		t.Error("the model has not changed")
	}
}

// checkCalibration calibrates on other normal tiles.
func checkCalibration(t *testing.T, s *service, b *tab) {
	t.Helper()
	before := get[entry](t, s, "/models/tiles").SHA256
	b.choose("section[aria-labelledby=calibrate-title] input[data-files]", files(t, "test/good", 5)...)
	b.shows("only 5 of these can be read", 10*time.Second)
	b.choose("section[aria-labelledby=calibrate-title] input[data-files]", files(t, "test/good", 20)...)
	b.shows("Calibrated on 20 images", time.Minute)
	if e := get[entry](t, s, "/models/tiles"); e.SHA256 == before {
		t.Error("the model has not changed")
	}
}

// checkDownloads checks the files of a model.
func checkDownloads(t *testing.T, b *tab) {
	t.Helper()
	for name, inside := range map[string]string{"tiles.zip": "metadata.json", "tiles_triton.zip": "config.pbtxt"} {
		label := map[string]string{"tiles.zip": "Everything", "tiles_triton.zip": "Triton"}[name]
		b.clickIn(".downloads", label)
		content := b.downloaded(name)
		z, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ok := false
		for _, f := range z.File {
			ok = ok || strings.HasSuffix(f.Name, inside)
		}
		if !ok {
			t.Errorf("%s has no %s", name, inside)
		}
	}
	b.clickIn(".downloads", "PyTorch")
	if content := b.downloaded("tiles.pt"); !bytes.HasPrefix(content, []byte("PK")) {
		t.Errorf("tiles.pt begins with %q", content[:4])
	}
}

// checkPrograms runs the programs of the page as they are, in a folder with an image.jpg.
func checkPrograms(t *testing.T, b *tab) {
	t.Helper()
	dir := t.TempDir()
	const clear = "exp2_num_32153.jpg" // the crack with the highest score
	content, err := os.ReadFile(filepath.Join(filepath.Dir(files(t, "test/crack", 1)[0]), clear))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "image.jpg"), content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		language, file string
		command        []string
		want           string
	}{
		{"curl", "judge.sh", []string{"sh"}, `"is_anomaly":true`},
		{"Python", "judge.py", []string{"python3"}, "True"},
		{"JavaScript", "judge.mjs", []string{"node"}, "true"},
	} {
		b.clickIn("section[aria-labelledby=snippet-title]", p.language)
		text := value[string](b, "document.querySelector('#snippet').textContent")
		if err := os.WriteFile(filepath.Join(dir, p.file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(p.command[0], append(p.command[1:], p.file)...)
		cmd.Dir = dir
		var errors bytes.Buffer
		cmd.Stderr = &errors
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), p.want) {
			t.Errorf("%s: %v, output %q, errors %s", p.language, err, out, errors.String())
		}
	}
}

func TestPage_AsksForTheTokenOnceAndKeepsItForTheTab(t *testing.T) {
	const token = "a-token-for-this-test"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, "--data", t.TempDir(), "--token-file", file)
	b := openTab(t)
	b.run(chromedp.Navigate(s.url + "/"))
	b.shows("This service requires a token", 10*time.Second)
	b.accessible(t, "token")
	b.fill("Token", "not-the-right-token")
	b.click("Continue")
	b.shows("The service did not accept that token", 10*time.Second)
	b.fill("Token", token)
	b.click("Continue")
	b.shows("No trainings yet", 10*time.Second)
	b.forgive("401") // Chromium logs each answer of this status
	b.run(chromedp.Reload())
	b.shows("No trainings yet", 10*time.Second)
	b.choose("input[data-files]", files(t, "train/good", 20)...)
	b.train("")
}

func TestPage_ServesPeopleWithoutAFolderForModels(t *testing.T) {
	s := serve(t)
	b := openTab(t)
	b.open(s.url, "#/models")
	b.shows("anomaly serve --models DIR", 10*time.Second)
	b.accessible(t, "models, without a folder")
	b.forgive("404") // the question whether there is a folder
	b.open(s.url, "#/train")
	b.choose("input[data-files]", files(t, "train/good", 30)...)
	b.shows("This service keeps no named models", 10*time.Second)
	b.train("")
	b.click("Judge images")
	b.judge(append(files(t, "test/crack", 1), files(t, "test/good", 1)...)...)
	b.click("Camera")
	b.until("the camera", "document.querySelector('dialog video')?.videoWidth > 0", 20*time.Second)
	b.click("Take a picture")
	b.shows("1 taken", 10*time.Second)
	b.click("Done")
	b.until("the verdict on the picture", "document.querySelectorAll('.tile.good, .tile.bad').length === 3", time.Minute)

	// A browser shows no TIFF: the page shows what the model was given.
	tiff := filepath.Join(t.TempDir(), "tile.tif")
	img, err := imaging.Open(files(t, "test/crack", 1)[0])
	if err == nil {
		err = imaging.Save(img, tiff)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.choose("input[data-files]", tiff)
	b.until("the verdict on the TIFF", "document.querySelectorAll('.tile.good, .tile.bad').length === 4", time.Minute)
	b.run(chromedp.Evaluate("document.querySelector('.tiles li:last-child button').click()", nil))
	b.shows("This browser cannot show files of this kind", 10*time.Second)
	b.until("its picture", "document.querySelector('.detail .picture img')?.naturalWidth === 128", 10*time.Second)
	b.click("Remove")

	// The model in a file of one's own.
	job := get[struct{ Jobs []struct{ ID string } }](t, s, "/jobs").Jobs[0].ID
	res, err := http.Get(s.url + "/jobs/" + job + "/model")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	model, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "my model.zip")
	if err := os.WriteFile(file, model, 0o644); err != nil {
		t.Fatal(err)
	}
	b.run(chromedp.SetUploadFiles("input[data-model]", []string{file}, chromedp.ByQuery))
	b.until("the verdicts of the file", "document.querySelector('main select').value === 'file' && document.querySelectorAll('.tile.good, .tile.bad').length === 3", time.Minute)
}

func TestPage_ShowsARefusalOfTheServiceInItsWords(t *testing.T) {
	contents := map[string][]byte{}
	for name, content := range testkit.Tiles(t, 12) {
		contents["good/"+name] = content
		contents["crack/"+name] = content
	}
	file := filepath.Join(t.TempDir(), "tiles.zip")
	if err := os.WriteFile(file, testkit.Zip(t, contents), 0o644); err != nil {
		t.Fatal(err)
	}
	s := serve(t, "--data", t.TempDir())
	b := openTab(t)
	b.open(s.url, "")
	b.choose("input[data-files]", file)
	b.shows("24 images", 20*time.Second)
	b.fill("Name of the model", "no such name")
	b.shows("Use a to z, digits, dots, dashes and underscores", 5*time.Second)
	b.fill("Name of the model", "tiles")
	b.click("Start training")
	b.shows("beside the folder good there is crack", 20*time.Second)
	b.accessible(t, "train, refused")
	b.forgive("400")
}
