package evaluation

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

const tiles = "../../testdata/tiles"

func TestOpen_RejectsFolderWithoutDefectsOrNormalImages(t *testing.T) {
	for name, folders := range map[string][]string{
		"empty": nil, "no test": {"train/good"}, "no defects": {"test/good"}, "nothing normal": {"test/scratch"},
	} {
		dir := t.TempDir()
		for _, f := range folders {
			if err := os.MkdirAll(filepath.Join(dir, f), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, f, "a.png"), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(dir); !errors.Is(err, ErrDataset) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A model trained on real tiles detects defects far better than chance, and its metrics,
// verdicts and report are consistent.
func TestEvaluate_DetectsDefectsOfRealTiles(t *testing.T) {
	d := tilesDetector(t)
	set, err := Open(tiles)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Evaluate(t.Context(), d, set, 2)
	if err != nil {
		t.Fatal(err)
	}
	// The measured AUROC is 0.76; that of the mean squared error is 0.49.
	if r.Mean.AUROC < 0.65 || len(r.Defects) != 2 || r.Normal != 20 || r.Together.Images != 20 {
		t.Errorf("%+v", r)
	}
	hits := 0
	for _, j := range r.bad {
		if j.IsAnomaly != (j.Score > r.Threshold) {
			t.Errorf("%+v at a threshold of %v", j, r.Threshold)
		}
		if j.IsAnomaly {
			hits++
		}
	}
	if got := r.Together.Hits * 20; got != float64(hits) {
		t.Errorf("%v hits, %d were counted", got, hits)
	}

	highest, lowest, _ := r.Certain(3)
	if len(highest) != 3 || highest[0].Score < highest[1].Score || lowest[0].Score > lowest[1].Score || highest[2].Score < lowest[2].Score {
		t.Errorf("highest %v, lowest %v", highest, lowest)
	}
	data, err := os.ReadFile(highest[0].File)
	if err != nil {
		t.Fatal(err)
	}
	x, err := d.Explain(t.Context(), data, nil, imagefile.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	if x.ReconstructionError != highest[0].Score || len(x.Regions) == 0 || x.Regions[0].Score <= r.Threshold {
		t.Errorf("%+v for an image with a score of %v", x.Regions, highest[0].Score)
	}
	found, err := Detectability(t.Context(), d, set, 2)
	if err != nil {
		t.Fatal(err)
	}
	// Nearly all of the largest and strongest anomalies are detected, and the smallest
	// and faintest hardly more often than by chance.
	last, most := len(found.Contrasts)-1, len(found.Diameters)-1
	if err := found.Validate(); err != nil || found.NormalImages != 20 || found.FalseAlarms != r.FalseAlarms || found.Found[last][most] < 0.9 ||
		found.Found[0][0] > found.FalseAlarms+0.3 {
		t.Errorf("%+v, %v, and %v false alarms", found, err, r.FalseAlarms)
	}
	t.Log(detectability.Markdown(found))
	var page bytes.Buffer
	if err := WriteReport(&page, Report{Title: "<tiles>", Result: r, Metadata: d.Model().Metadata, Detectability: found,
		Galleries: []Gallery{{"some", []Picture{{highest[0], x.Heatmap}}}}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"&lt;tiles&gt;", "blowhole", "data:image/png;base64,", "<svg", "What would it find?", detectability.Caveat, ">128 grey levels<"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the report has no %s", want)
		}
	}
	if strings.Contains(page.String(), "http://") && strings.Contains(page.String(), "src=\"http") {
		t.Error("the report loads an external resource")
	}
}

// copied copies a file to dir/name.
func copied(t *testing.T, dir, name, from string, cut int) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, data[:len(data)-cut], 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestSetCheck_SkipsAndNamesUnreadableImages(t *testing.T) {
	good, err := filepath.Glob(tiles + "/test/good/*.jpg")
	if err != nil || len(good) < 2 {
		t.Fatal(good, err)
	}
	dir := t.TempDir()
	copied(t, dir, "test/good/a.jpg", good[0], 0)
	copied(t, dir, "test/good/._a.jpg", good[0], 0)
	copied(t, dir, "test/crack/b.jpg", good[1], 0)
	copied(t, dir, "test/crack/c.jpg", good[1], 5000)
	copied(t, dir, "test/crack/d.heic", "../dataset/testdata/photo.heic", 0)
	copied(t, dir, "test/scratch/e.jpg", good[1], 5000)
	copied(t, dir, "test/.hidden/f.jpg", good[1], 0)
	if err := syscall.Mkfifo(filepath.Join(dir, "test/crack/g.png"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{dir, link} {
		s, err := Open(folder)
		if err == nil {
			err = s.Check(t.Context(), models.StandardPreprocessing(), 2)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Good) != 1 || len(s.Defects) != 1 || len(s.Defects[0].Files) != 1 || len(s.Skipped) != 4 {
			t.Errorf("%+v", s)
		}
	}
	copied(t, dir, "test/good/a.jpg", good[0], 5000)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context(), models.StandardPreprocessing(), 2); !errors.Is(err, ErrDataset) || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("no normal image can be read: %v", err)
	}
}
