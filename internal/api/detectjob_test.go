package api

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/bulk"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// named is a file of a zip.
type named struct {
	name string
	data []byte
}

// zipInOrder returns a zip of files in their order.
func zipInOrder(t testing.TB, list ...named) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range list {
		w, err := z.Create(f.name)
		if err == nil {
			_, err = w.Write(f.data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// judgedImages returns tiles, an image that is damaged and one of a format that is not
// read, and n copies of a tile.
func judgedImages(t testing.TB, n int) []named {
	t.Helper()
	var list []named
	for _, folder := range []string{testCrack, testGood} {
		for i, f := range tileFiles(t, folder, 3) {
			list = append(list, named{folder + "/" + filepath.Base(f), read(t, f)})
			if i == 1 {
				list = append(list, named{folder + "/damaged.jpg", read(t, f)[:500]}, named{"photo.heic", []byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")})
			}
		}
	}
	for i := range n {
		list = append(list, named{fmt.Sprintf("more/%d.jpg", i), list[0].data})
	}
	return list
}

// submitDetection submits a job that judges images by a stored model.
func (s *service) submitDetection(t testing.TB, model string, images []named, more ...part) jobs.Job {
	t.Helper()
	a := s.post(t, "/jobs", append([]part{text("kind", "detect"), text("model", model), file("images", "i.zip", zipInOrder(t, images...))}, more...)...)
	if a.status != http.StatusAccepted {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	j := as[jobs.Job](t, a)
	if a.header.Get("Location") != "/jobs/"+j.ID || j.Kind != "detect" || j.Name != model {
		t.Errorf("Location %q: %s", a.header.Get("Location"), a.body)
	}
	return j
}

// results returns the lines of a job's results.
func (s *service) results(t testing.TB, id string) (list []bulk.Line) {
	t.Helper()
	a := s.request(t, "GET", "/jobs/"+id+"/results", nil)
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/jsonl" {
		t.Fatalf("status %d, %s: %s", a.status, a.header.Get("Content-Type"), a.body)
	}
	for lines := bufio.NewScanner(bytes.NewReader(a.body)); lines.Scan(); {
		var l bulk.Line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatal(err)
		}
		list = append(list, l)
	}
	return list
}

// storedPieces returns the subjects of the pieces and results that are stored.
func (s *service) storedPieces(t testing.TB) (list []string) {
	t.Helper()
	for _, name := range []string{"pieces", "pieces-files"} {
		stream, err := s.jobs.broker.JetStream.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		subjects, _, err := s.jobs.broker.Subjects(t.Context(), stream, ">")
		if err != nil {
			t.Fatal(err)
		}
		for subject := range subjects {
			list = append(list, subject)
		}
	}
	return list
}

func TestJobs_JudgeImagesAsSingleDetections(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "tiles", trained(t)[models.CheckpointFile])
	images := judgedImages(t, 200)
	single := map[string]bulk.Line{} // by content
	for _, threshold := range []string{"", "0.25"} {
		var more []part
		if threshold != "" {
			more = append(more, text("threshold", threshold))
			clear(single)
		}
		j := s.submitDetection(t, "tiles", images, more...)
		j = s.becomes(t, j.ID, jobs.Succeeded)
		list := s.results(t, j.ID)
		if len(list) != len(images) {
			t.Fatalf("%d lines for %d images", len(list), len(images))
		}
		anomalous := 0
		for i, l := range list {
			want, ok := single[string(images[i].data)]
			if !ok {
				a := s.byName(t, "tiles", images[i].data)
				if a.status == http.StatusOK {
					want = as[bulk.Line](t, a)
					if threshold != "" {
						want.Threshold, want.IsAnomaly = 0.25, want.AnomalyScore > 0.25
					}
				} else {
					want.Error = "the image cannot be read: " // see below
				}
				single[string(images[i].data)] = want
			}
			want.File = images[i].name
			if want.Error != "" {
				if l.Verdict != nil || l.Error == "" || l.File != want.File {
					t.Errorf("line %d is %+v", i, l)
				}
				continue
			}
			if !reflect.DeepEqual(l, want) {
				t.Errorf("line %d is %+v\n%+v, want %+v\n%+v", i, l, l.Verdict, want, want.Verdict)
			}
			if l.IsAnomaly {
				anomalous++
			}
		}
		if got, want := *j.Progress.Images, (jobs.ImageProgress{All: len(images), Judged: len(images) - 4, Anomalous: anomalous, Unreadable: 4}); got != want {
			t.Errorf("progress %+v, want %+v", got, want)
		}
		rows, err := csv.NewReader(bytes.NewReader(s.request(t, "GET", "/jobs/"+j.ID+"/results?format=csv", nil).body)).ReadAll()
		if err != nil || len(rows) != len(images)+1 || rows[1][0] != images[0].name || rows[3][0] != images[2].name || rows[3][6] != list[2].Error {
			t.Errorf("%d rows of CSV, %v", len(rows), err)
		}
	}
	eventually(t, "no pieces are left", func() bool { return len(s.storedPieces(t)) == 0 })
	s.keepsNoUpload(t)
}

func TestJobs_RefuseImagesThatCannotBeJudged(t *testing.T) {
	s, _ := startWithModels(t, func(o *Options) { o.Dataset.Entries = 20 })
	s.mustPut(t, "tiles", trained(t)[models.CheckpointFile])
	plain := start(t, nil)
	kind, model := text("kind", "detect"), text("model", "tiles")
	images := file("images", "i.zip", zipInOrder(t, judgedImages(t, 0)...))
	training := func(data []byte) string { return s.post(t, "/jobs", file("zipFile", "a.zip", data)).message(t) }
	many := zipInOrder(t, judgedImages(t, 30)...)
	for _, c := range []struct {
		name    string
		service *service
		parts   []part
		status  int
		message string
	}{
		{"no images", s, []part{kind, model}, 400, "No images uploaded: send a zip of them as the part images"},
		{"no model", s, []part{kind, images}, 400, "No model named: send the name of a stored model as the field model"},
		{"an unknown model", s, []part{kind, text("model", "other"), images}, 404, ""},
		{"a service without models", plain, []part{kind, model, images}, 404, errNoRegistry.message},
		{"an unknown kind", s, []part{text("kind", "judge"), model, images}, 400, `The field kind is "judge", expected train or detect`},
		{"a negative threshold", s, []part{kind, model, images, text("threshold", "-1")}, 400, `Unusable threshold: "-1", expected a number of 0 or more`},
		{"a threshold in words", s, []part{kind, model, images, text("threshold", "low")}, 400, `Unusable threshold: "low", expected a number of 0 or more`},
		{"no zip", s, []part{kind, model, file("images", "i.zip", []byte("prose"))}, 422, training([]byte("prose"))},
		{"too many files", s, []part{kind, model, file("images", "i.zip", many)}, 413, training(many)},
		{"a zip without images", s, []part{kind, model, file("images", "i.zip", testkit.Zip(t, map[string][]byte{"a.txt": nil}))}, 400, dataset.ErrNoImages.Error()},
	} {
		a := c.service.post(t, "/jobs", c.parts...)
		if a.status != c.status || c.message != "" && a.message(t) != c.message {
			t.Errorf("%s: status %d: %s, want %d: %s", c.name, a.status, a.body, c.status, c.message)
		}
		c.service.keepsNoUpload(t)
	}
}

func TestJobResults_RefusesJobsWithoutResults(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "tiles", trained(t)[models.CheckpointFile])
	training := s.submit(t, longTraining(t)...)
	done := s.submitDetection(t, "tiles", judgedImages(t, 0))
	s.becomes(t, done.ID, jobs.Succeeded)
	for path, want := range map[string]int{
		"/jobs/" + training.ID + "/results": 409, "/jobs/unknown/results": 404, "/jobs/" + done.ID + "/results?format=xml": 400, "/jobs/" + done.ID + "/model": 409,
	} {
		if a := s.request(t, "GET", path, nil); a.status != want {
			t.Errorf("%s: status %d: %s, want %d", path, a.status, a.body, want)
		}
	}
}

func TestJobs_JudgeAllImagesByTheVersionOfTheSubmission(t *testing.T) {
	s, _ := startWithModels(t, nil)
	first := trained(t)[models.CheckpointFile]
	s.mustPut(t, "tiles", first)
	images := judgedImages(t, 600)
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"replaced", func() {
			// Its file is another one, although its weights are the same.
			if a := s.put(t, "tiles", trained(t)["anomaly_detection_model.zip"]); a.status != http.StatusOK {
				t.Errorf("status %d: %s", a.status, a.body)
			}
		}},
		{"deleted", func() {
			if a := s.request(t, "DELETE", "/models/tiles", nil); a.status != http.StatusNoContent {
				t.Errorf("status %d: %s", a.status, a.body)
			}
		}},
	} {
		want := as[struct{ SHA256 string }](t, s.request(t, "GET", "/models/tiles", nil)).SHA256
		j := s.submitDetection(t, "tiles", images)
		eventually(t, "the job runs", func() bool { return s.job(t, j.ID).State != jobs.Queued })
		c.change()
		s.becomes(t, j.ID, jobs.Succeeded)
		list := s.results(t, j.ID)
		for _, l := range list {
			if l.Verdict != nil && l.ModelSHA256 != want {
				t.Fatalf("%s: %s was judged by %s, want %s", c.name, l.File, l.ModelSHA256, want)
			}
		}
		if len(list) != len(images) {
			t.Errorf("%s: %d lines", c.name, len(list))
		}
	}
}

func TestDeleteJob_StopsADetectionSoonAndRemovesAllOfIt(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "tiles", trained(t)[models.CheckpointFile])
	j := s.submitDetection(t, "tiles", judgedImages(t, 3000))
	eventually(t, "images are judged", func() bool {
		p := s.job(t, j.ID).Progress.Images
		return p != nil && p.Judged > 0
	})
	began := time.Now()
	if a := s.request(t, "DELETE", "/jobs/"+j.ID, nil); a.status != http.StatusOK || !strings.Contains(string(a.body), `"cancelled"`) {
		t.Fatalf("status %d: %s", a.status, a.body)
	}
	eventually(t, "no pieces and files are left", func() bool {
		names, err := s.jobFiles(t)
		return err == nil && len(names) == 0 && len(s.storedPieces(t)) == 0 && s.uploads(t) == 0
	})
	if took := time.Since(began); took > 10*time.Second { // a second or two on a quiet machine
		t.Errorf("it took %v", took)
	}
	next := s.submitDetection(t, "tiles", judgedImages(t, 0))
	s.becomes(t, next.ID, jobs.Succeeded)
}

// jobFiles returns the names of the files of all jobs.
func (s *service) jobFiles(t testing.TB) ([]string, error) {
	f, err := s.jobs.broker.Files(t.Context(), "jobs")
	if err != nil {
		return nil, err
	}
	return f.List(t.Context(), "")
}
