package clusterfaults

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/testkit"
)

// load keeps a cluster busy and records what it promised.
type load struct {
	t      testing.TB
	client *client
	forms  []*form
	images *form // judged by a job; nil for none

	mu        sync.Mutex
	accepted  map[string]bool
	ended     map[string]jobs.Job // as they were seen first after their ends
	cancelled map[string]bool     // that the load cancelled
	deaths    int                 // attempts beyond the first
	judged    int                 // images of jobs that judge
	removed   int                 // jobs that have ended and were removed
	trains    int                 // answered with a model
	broken    int                 // trainings whose connection was lost
	last      time.Time           // when a job ended last
	ends      []time.Time         // when the jobs ended
	longest   time.Duration       // without an end of a job
	when      time.Time           // of the end of that time
}

// trainingForms returns the forms of the load.
func trainingForms(t testing.TB) []*form {
	t.Helper()
	var forms []*form
	for _, o := range []struct{ images, side int }{{3, 32}, {6, 32}, {8, 64}, {5, 48}} {
		f, err := newForm(testkit.Zip(t, testkit.Tiles(t, o.images)), map[string]string{"level": "1", "image_size": strconv.Itoa(o.side)})
		if err != nil {
			t.Fatal(err)
		}
		forms = append(forms, f)
	}
	return forms
}

// measure trains each form in a service that nobody disturbs.
func (l *load) measure(ctx context.Context, c *client) {
	l.t.Helper()
	for i, f := range l.forms {
		began := time.Now()
		a, err := c.once(ctx, "POST", "/train", f.kind, nil, f.body)
		if err != nil || a.status != http.StatusOK {
			l.t.Fatalf("an undisturbed training: status %d, %v: %.300s", a.status, err, a.body)
		}
		sum := sha256.Sum256(a.body)
		f.sum = hex.EncodeToString(sum[:])
		l.t.Logf("form %d: %d bytes, %s undisturbed", i, len(f.body), time.Since(began).Round(10*time.Millisecond))
	}
}

// judgedImages is the number of images of a job that judges, apart from one that cannot be read.
const judgedImages = 60

// prepareImages stores a model and computes the verdicts of a job's images by the command line.
func (l *load) prepareImages(ctx context.Context, binary string) {
	t := l.t
	t.Helper()
	train, err := newForm(testkit.Zip(t, testkit.Tiles(t, 12)), map[string]string{"level": "1", "image_size": "64", "name": "tiles"})
	if err != nil {
		t.Fatal(err)
	}
	j, err := l.client.submit(ctx, train)
	if err == nil {
		j, err = l.client.end(ctx, j.ID)
	}
	if err != nil || j.State != jobs.Succeeded {
		t.Fatalf("%+v, %v", j, err)
	}
	a, err := l.client.retried(ctx, "GET", "/jobs/"+j.ID+"/model", "", nil, nil)
	if err != nil || a.status != http.StatusOK {
		t.Fatalf("status %d, %v", a.status, err)
	}
	dir := t.TempDir()
	files := testkit.Tiles(t, judgedImages)
	files["broken.png"] = []byte("prose")
	for name, data := range files {
		if err := os.MkdirAll(filepath.Join(dir, "images"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "images", name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "model.zip"), a.body, 0o600); err != nil {
		t.Fatal(err)
	}
	detect := exec.Command(binary, "detect", "--csv", "--model", "model.zip", "images")
	detect.Dir = dir
	out, _ := detect.Output() // exits with 2 because of the broken image
	if n := strings.Count(string(out), "\n"); n != len(files)+1 {
		t.Fatalf("anomaly detect prints %d lines, want %d", n, len(files)+1)
	}
	if l.images, err = newForm(testkit.Zip(t, files), map[string]string{"kind": "detect", "model": "tiles"}); err != nil {
		t.Fatal(err)
	}
	l.images.body = bytes.Replace(l.images.body, []byte(`name="zipFile"`), []byte(`name="images"`), 1)
	l.images.verdicts = []byte(strings.ReplaceAll(string(out), "\nimages/", "\n"))
	l.accepted[j.ID], l.ended[j.ID] = true, j
}

// submitter submits jobs one after the other until accepting ends, and checks the end of each
// until ctx ends.
func (l *load) submitter(accepting, ctx context.Context, seed uint64, forms []*form) {
	random := rand.New(rand.NewPCG(seed, 1))
	for accepting.Err() == nil {
		f := forms[random.IntN(len(forms))]
		j, err := l.client.submit(ctx, f)
		if err != nil {
			l.wrong("a submission: %v", err)
			return
		}
		cancel := random.IntN(10) == 0
		l.mu.Lock()
		if l.accepted[j.ID] {
			l.t.Errorf("two submissions are the job %s", j.ID)
		}
		l.accepted[j.ID], l.cancelled[j.ID] = true, cancel
		l.mu.Unlock()
		if cancel {
			time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond)
			// Not repeated: a second one would remove the job.
			_, _ = l.client.once(ctx, "DELETE", "/jobs/"+j.ID, "", nil, nil)
		}
		if err := l.check(ctx, j.ID, f); err != nil {
			if cancel && l.gone(ctx, j.ID) {
				continue // it had ended, so that it was removed
			}
			l.wrong("job %s: %v", j.ID, err)
			continue
		}
		if !cancel && random.IntN(4) > 0 {
			// A model has 24 MB, on each of three servers.
			if err := l.remove(ctx, j.ID); err != nil {
				l.wrong("the removal of the job %s: %v", j.ID, err)
			}
		}
	}
}

// remove removes a job that has ended. If an answer is lost, the job may be gone already.
func (l *load) remove(ctx context.Context, id string) error {
	a, err := l.client.retried(ctx, "DELETE", "/jobs/"+id, "", nil, nil)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK && a.status != http.StatusNotFound {
		return fmt.Errorf("status %d: %.300s", a.status, a.body)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.accepted, id)
	delete(l.ended, id)
	l.removed++
	return nil
}

// gone reports whether a job is removed, and forgets it then.
func (l *load) gone(ctx context.Context, id string) bool {
	a, err := l.client.retried(ctx, "GET", "/jobs/"+id, "", nil, nil)
	if err != nil || a.status != http.StatusNotFound {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.accepted, id)
	delete(l.ended, id)
	return true
}

func (l *load) wrong(format string, v ...any) {
	l.t.Errorf("%s: %s", time.Now().UTC().Format(time.TimeOnly), fmt.Sprintf(format, v...))
}

// check waits for the end of a job and compares its result.
func (l *load) check(ctx context.Context, id string, f *form) error {
	j, err := l.client.end(ctx, id)
	if err != nil {
		return err
	}
	l.jobEnded()
	l.mu.Lock()
	l.ended[id] = j
	l.deaths += max(0, j.Attempts-1)
	cancelled := l.cancelled[id]
	l.mu.Unlock()
	switch {
	case j.State == jobs.Cancelled && cancelled:
		return nil
	case j.State != jobs.Succeeded:
		reason := ""
		if j.Error != nil {
			reason = *j.Error
		}
		return fmt.Errorf("its state is %s: %s", j.State, reason)
	case f.verdicts != nil:
		a, err := l.client.retried(ctx, "GET", "/jobs/"+id+"/results?format=csv", "", nil, nil)
		if err == nil && (a.status != http.StatusOK || !bytes.Equal(a.body, f.verdicts)) {
			err = fmt.Errorf("its verdicts are not those of anomaly detect, after %d attempts: status %d: %.300s", j.Attempts, a.status, a.body)
		}
		l.mu.Lock()
		l.judged += j.Progress.Images.All
		l.mu.Unlock()
		return err
	case *j.ModelSHA256 != f.sum:
		return fmt.Errorf("its model is another than in an undisturbed run, after %d attempts", j.Attempts)
	}
	sum, err := l.client.modelSum(ctx, id)
	if err == nil && sum != f.sum {
		err = fmt.Errorf("its model was sent with other bytes")
	}
	return err
}

// jobEnded records the end of a job.
func (l *load) jobEnded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if gap := now.Sub(l.last); gap > l.longest {
		l.longest, l.when = gap, now
	}
	l.last, l.ends = now, append(l.ends, now)
}

// firstEndAfter returns how long after a time the first job ended, or 0 if none has.
func (l *load) firstEndAfter(start time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, end := range l.ends {
		if end.After(start) {
			return end.Sub(start)
		}
	}
	return 0
}

// trainer sends trainings that it waits for. A connection that is lost loses the training.
func (l *load) trainer(accepting, ctx context.Context) {
	random := rand.New(rand.NewPCG(99, 1))
	for accepting.Err() == nil {
		f := l.forms[random.IntN(len(l.forms))]
		a, err := l.client.once(ctx, "POST", "/train", f.kind, nil, f.body)
		l.mu.Lock()
		switch sum := sha256.Sum256(a.body); {
		case err != nil || a.status == http.StatusServiceUnavailable:
			l.broken++
		case a.status != http.StatusOK:
			l.t.Errorf("POST /train: status %d: %.300s", a.status, a.body)
		case hex.EncodeToString(sum[:]) != f.sum:
			l.t.Error("POST /train: the model is another than in an undisturbed run")
		default:
			l.trains++
		}
		l.mu.Unlock()
		time.Sleep(time.Second)
	}
}

// settled compares all jobs with what was promised.
func (l *load) settled(ctx context.Context) {
	l.t.Helper()
	var list []jobs.Job
	for range 60 {
		var err error
		if list, err = l.client.list(ctx); err != nil {
			l.t.Fatal(err)
		}
		// Jobs of /train disappear with their requests, and a service follows the others.
		if !slices.ContainsFunc(list, func(j jobs.Job) bool { return j.Attached }) && len(list) == len(l.accepted) {
			break
		}
		time.Sleep(time.Second)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := map[string]bool{}
	for _, j := range list {
		seen[j.ID] = true
		was, ended := l.ended[j.ID]
		switch {
		case !l.accepted[j.ID]:
			l.t.Errorf("the job %s was accepted by no answer: %+v", j.ID, j)
		case !ended || !j.State.Final():
			l.t.Errorf("the job %s has not ended: %s", j.ID, j.State)
		case was.State != j.State || !was.EndedAt.Equal(*j.EndedAt) || was.Attempts != j.Attempts:
			l.t.Errorf("the job %s has ended twice: %+v, then %+v", j.ID, was, j)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.accepted)) {
		if !seen[id] {
			a, err := l.client.retried(ctx, "GET", "/jobs/"+id, "", nil, nil)
			l.t.Errorf("the job %s is lost: it is not in the list, and asked for, it is answered %d, %v: %.300s", id, a.status, err, a.body)
		}
	}
}
