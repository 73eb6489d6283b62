package registry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/models"
)

// withThreshold returns a small model, whose threshold distinguishes it from others, and
// its file.
func withThreshold(t *testing.T, threshold float64) (*models.Model, []byte) {
	t.Helper()
	data := hostile.Pack(
		hostile.Entry{Name: models.CheckpointFile, Data: hostile.Pack(hostile.CheckpointEntries(binary.LittleEndian, hostile.Config())...)},
		hostile.Entry{Name: models.MetadataFile, Data: fmt.Appendf(nil, `{"threshold": %g}`, threshold)})
	m, err := models.Read(data, models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	return m, data
}

// open opens a folder and reads its models.
func open(t *testing.T, dir string, o Options) *Folder {
	t.Helper()
	if o.MaxModels == 0 {
		o.MaxModels = 10
	}
	r, err := OpenFolder(dir, models.DefaultLimits(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	r.Load(t.Context(), nil)
	return r
}

// put stores the model with a threshold and returns its SHA-256.
func put(t *testing.T, r *Folder, threshold float64, change Change) string {
	t.Helper()
	m, data := withThreshold(t, threshold)
	e, _, err := r.Put(t.Context(), "m", m, data, change)
	if err != nil {
		t.Fatal(err)
	}
	return e.SHA256
}

// listed returns the thresholds of a model's versions, the newest first, and fails the
// test unless exactly the current one is marked.
func listed(t *testing.T, r *Folder) []float64 {
	t.Helper()
	list, err := r.Versions(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	e, err := r.Look(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	var out []float64
	for _, v := range list {
		if v.Current != (v.SHA256 == e.SHA256) {
			t.Errorf("%+v, the current file is %s", v, e.SHA256)
		}
		out = append(out, v.Threshold)
	}
	return out
}

func manyVersions() Options { return Options{MaxVersions: 10, VersionBytes: 1 << 30} }

func TestVersions_AreListedAndReadAfterARestart(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, manyVersions())
	first := put(t, r, 1, Change{Reason: "uploaded"})
	put(t, r, 2, Change{Reason: "threshold moved", SameScores: true})
	put(t, r, 3, Change{Reason: "uploaded"})
	put(t, r, 3, Change{Reason: "uploaded again"}) // the same bytes
	for range 2 {
		if got := listed(t, r); !slices.Equal(got, []float64{3, 2, 1}) {
			t.Errorf("versions %v", got)
		}
		list, _ := r.Versions(t.Context(), "m")
		if list[1].Scores != first || list[2].Scores != first || list[0].Scores != list[0].SHA256 || !list[1].Since.Equal(list[2].Since) || list[0].Since.Equal(list[1].Since) {
			t.Errorf("%+v", list)
		}
		if list[0].Reason != "uploaded" || list[1].Reason != "threshold moved" {
			t.Errorf("%+v", list)
		}
		for i, v := range list {
			_, want := withThreshold(t, float64(3-i))
			if _, data, err := r.VersionBytes(t.Context(), "m", v.SHA256); err != nil || !slices.Equal(data, want) {
				t.Errorf("version %d: %d bytes, %v", i, len(data), err)
			}
		}
		r.Close()
		r = open(t, dir, manyVersions())
	}
	// A restored version is listed once.
	put(t, r, 1, Change{Reason: "restored"})
	if got := listed(t, r); !slices.Equal(got, []float64{1, 3, 2}) {
		t.Errorf("versions %v", got)
	}
	if list, _ := r.Versions(t.Context(), "m"); list[0].Scores != first || list[0].Since.Equal(list[2].Since) {
		t.Errorf("%+v", list)
	}
}

func TestVersions_AreBounded(t *testing.T) {
	_, data := withThreshold(t, 1)
	size := int64(len(data))
	for _, c := range []struct {
		name string
		o    Options
		want []float64
	}{
		{"in number", Options{MaxVersions: 3, VersionBytes: 1 << 30}, []float64{5, 4, 3}},
		{"in bytes", Options{MaxVersions: 10, VersionBytes: 2*size + 1}, []float64{5, 4}},
		{"to the current one", Options{}, []float64{5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir, c.o)
			for threshold := 1.0; threshold <= 5; threshold++ {
				put(t, r, threshold, Change{})
			}
			if got := listed(t, r); !slices.Equal(got, c.want) {
				t.Errorf("versions %v, expected %v", got, c.want)
			}
			kept, _ := os.ReadDir(filepath.Join(r.Path("m"), versionsDir))
			if len(kept) != len(c.want)-1 {
				t.Errorf("%d files", len(kept))
			}
		})
	}
}

func TestPut_RejectsAChangeOfAnotherVersion(t *testing.T) {
	r := open(t, t.TempDir(), manyVersions())
	first := put(t, r, 1, Change{})
	second := put(t, r, 2, Change{Of: first})
	m, data := withThreshold(t, 3)
	if _, _, err := r.Put(t.Context(), "m", m, data, Change{Of: first}); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	if e, err := r.Look(t.Context(), "m"); err != nil || e.SHA256 != second {
		t.Errorf("%+v, %v", e, err)
	}
}

// The states that a process leaves which ends at each step of a Put and of a Delete.
func TestOpen_ReadsTheModelAfterACrash(t *testing.T) {
	unlisted := strings.Repeat("0", 64)
	for _, c := range []struct {
		name  string
		crash func(t *testing.T, dir, folder string)
		want  []float64
	}{
		{"after the current file was kept", func(t *testing.T, dir, folder string) {
			e := filepath.Join(folder, versionsDir, unlisted)
			if err := os.Link(filepath.Join(dir, "m.model"), e); err != nil {
				t.Fatal(err)
			}
		}, []float64{2, 1}},
		{"while a file was written", func(t *testing.T, dir, folder string) {
			for _, at := range []string{folder, filepath.Join(folder, versionsDir), dir} {
				if err := os.WriteFile(filepath.Join(at, ".anomaly-123"), []byte("half"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}, []float64{2, 1}},
		{"after the versions were written", func(t *testing.T, dir, folder string) {
			path := filepath.Join(folder, versionsFile)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(data), `"versions": [`, `"versions": [{"sha256": "`+unlisted+`", "threshold": 7},`, 1)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []float64{2, 1}},
		{"before the history was written", func(t *testing.T, dir, folder string) {
			if err := os.RemoveAll(folder); err != nil {
				t.Fatal(err)
			}
		}, []float64{2}},
		{"that damaged the history", func(t *testing.T, dir, folder string) {
			if err := os.WriteFile(filepath.Join(folder, versionsFile), []byte(`{"versions": [{`), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []float64{2, 1}},
		{"in a deletion", func(t *testing.T, dir, folder string) {
			if err := os.Rename(folder, filepath.Join(filepath.Dir(folder), deletedPrefix+"m")); err != nil {
				t.Fatal(err)
			}
		}, []float64{2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			r := open(t, dir, manyVersions())
			put(t, r, 1, Change{})
			put(t, r, 2, Change{})
			r.Close()
			c.crash(t, dir, r.Path("m"))
			r = open(t, dir, manyVersions())
			if got := listed(t, r); !slices.Equal(got, c.want) {
				t.Errorf("versions %v, expected %v", got, c.want)
			}
			put(t, r, 3, Change{})
			if got := listed(t, r); !slices.Equal(got, append([]float64{3}, c.want...)) {
				t.Errorf("after another version: %v", got)
			}
			err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
				if base := filepath.Base(path); strings.HasPrefix(base, ".anomaly-") || strings.HasPrefix(base, deletedPrefix) || base == unlisted {
					t.Errorf("%s is left", path)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// An error of the disk must not be taken for an empty history, whose files are removed.
func TestPut_KeepsTheVersionsWhenTheirListCannotBeRead(t *testing.T) {
	r := open(t, t.TempDir(), manyVersions())
	put(t, r, 1, Change{})
	put(t, r, 2, Change{})
	path := filepath.Join(r.Path("m"), versionsFile)
	if err := os.Rename(path, path+".aside"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(versionsFile, path); err != nil { // a loop
		t.Fatal(err)
	}
	m, data := withThreshold(t, 3)
	if _, _, err := r.Put(t.Context(), "m", m, data, Change{}); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("Put returned %v", err)
	}
	if err := os.Rename(path+".aside", path); err != nil {
		t.Fatal(err)
	}
	if got := listed(t, r); !slices.Equal(got, []float64{2, 1}) {
		t.Errorf("versions %v", got)
	}
}

func TestPut_KeepsAListOfVersionsThatCanBeReadAgain(t *testing.T) {
	r := open(t, t.TempDir(), manyVersions())
	for threshold := 1.0; threshold <= 5; threshold++ {
		put(t, r, threshold, Change{Reason: strings.Repeat("x", maxVersionsFile*3/10)})
	}
	if got := listed(t, r); !slices.Equal(got, []float64{5, 4, 3}) {
		t.Errorf("versions %v", got)
	}
}

func TestVersions_HaveTheFileThatAUserCopied(t *testing.T) {
	dir := t.TempDir()
	_, data := withThreshold(t, 1)
	if err := os.WriteFile(filepath.Join(dir, "m.zip"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir, manyVersions())
	if list, err := r.Versions(t.Context(), "m"); err != nil || len(list) != 1 || list[0].Reason != copiedReason || !list[0].Current || list[0].Threshold != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	put(t, r, 2, Change{})
	if got := listed(t, r); !slices.Equal(got, []float64{2, 1}) {
		t.Errorf("versions %v", got)
	}
	if _, got, err := r.VersionBytes(t.Context(), "m", models.Identity(data)); err != nil || !slices.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestVersionBytes_RejectsWhatIsNoVersion(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, manyVersions())
	first := put(t, r, 1, Change{})
	put(t, r, 2, Change{})
	for _, id := range []string{"", "..", "../versions.json", strings.Repeat("0", 64), strings.ToUpper(first), first + "/"} {
		if _, _, err := r.VersionBytes(t.Context(), "m", id); !errors.Is(err, ErrNoVersion) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if err := os.WriteFile(r.versionPath("m", first), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.VersionBytes(t.Context(), "m", first); !errors.Is(err, ErrNoVersion) {
		t.Errorf("a changed file: %v", err)
	}
}

func TestDelete_RemovesAllOfAModel(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, manyVersions())
	put(t, r, 1, Change{})
	put(t, r, 2, Change{})
	if err := os.WriteFile(filepath.Join(r.Path("m"), "feedback.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 || list[0].Name() != lockFile {
		t.Errorf("%v, %v", list, err)
	}
	put(t, r, 3, Change{})
	if got := listed(t, r); !slices.Equal(got, []float64{3}) {
		t.Errorf("versions %v", got)
	}
}
