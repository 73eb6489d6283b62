package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/files"
)

// state is what a service must return to after a load.
type state struct {
	goroutines, openFiles float64
	uploads               int // files in the upload folder
	panics                float64
}

// state returns the state of the service. It closes idle connections first.
func (s *soak) state(t *testing.T, uploads string) state {
	t.Helper()
	s.http.CloseIdleConnections()
	g, err := s.service.gauges()
	if err != nil {
		t.Fatal(err)
	}
	return state{g["go_goroutines"], g["process_open_fds"], len(listing(t, uploads)), g["anomaly_panics_total"]}
}

// returnsTo fails the test if goroutines, open files or uploads of the load are left.
func (s *soak) returnsTo(t *testing.T, before state, uploads string) {
	t.Helper()
	var after state
	for deadline := time.Now().Add(soakEnd); ; time.Sleep(soakSample) {
		after = s.state(t, uploads)
		back := after.goroutines <= before.goroutines && after.openFiles <= before.openFiles && after.uploads == before.uploads
		if back || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("at the start and at the end: goroutines %.0f, %.0f; open files %.0f, %.0f; files in the upload folder %d, %d",
		before.goroutines, after.goroutines, before.openFiles, after.openFiles, before.uploads, after.uploads)
	if after.goroutines > before.goroutines || after.openFiles > before.openFiles {
		t.Errorf("%.0f goroutines and %.0f open files are left, %.0f and %.0f at the start", after.goroutines, after.openFiles, before.goroutines, before.openFiles)
	}
	if after.uploads != before.uploads {
		t.Errorf("left in the upload folder: %v", listing(t, uploads))
	}
	if after.panics > 0 {
		t.Errorf("%.0f panics", after.panics)
	}
}

// boundedStores fails the test if the load has left more jobs, versions or feedback than
// the service's limits, or files of anything that was removed. It removes the jobs and the
// models that the load has made.
func (s *soak) boundedStores(t *testing.T, data, named string) {
	t.Helper()
	if n := s.counted.of("ended: succeeded"); n == 0 {
		t.Error("no job has succeeded")
	}
	if n := s.removeJobs(t.Context()); n > soakJobs {
		t.Errorf("%d jobs, expected at most %d", n, soakJobs)
	}
	g, err := s.service.gauges()
	if err != nil {
		t.Fatal(err)
	}
	if g["anomaly_jobs_bytes"] != 0 {
		t.Errorf("%.0f bytes of removed jobs", g["anomaly_jobs_bytes"])
	}
	store := filepath.Join(data, "jobs")
	var left int64
	for deadline := time.Now().Add(soakEnd); time.Now().Before(deadline); time.Sleep(soakSample) {
		if left = size(t, store); left < soakStore {
			break
		}
	}
	t.Logf("the store without jobs: %d KiB", left>>10)
	if left >= soakStore {
		t.Errorf("the store without jobs has %d bytes: %v", left, listing(t, store))
	}

	names := s.namesOf(t.Context())
	for _, folder := range entries(t, filepath.Join(named, ".history")) {
		if !slices.Contains(names, folder) {
			t.Errorf("a folder of a model that was removed: %s", folder)
		}
		// The current version is beside the history.
		if list := entries(t, filepath.Join(named, ".history", folder, "versions")); len(list) >= soakVersions {
			t.Errorf("%s has the earlier versions %v, expected fewer than %d", folder, list, soakVersions)
		}
	}
	for _, path := range listing(t, named) {
		if strings.HasPrefix(filepath.Base(path), files.TemporaryPrefix) {
			t.Errorf("a temporary file is left: %s", path)
		}
	}
	for _, name := range names {
		if strings.HasPrefix(name, "kept") || strings.HasPrefix(name, "trained") {
			s.ask(t.Context(), "DELETE", "model removed", "/models/"+name, form{}, 204)
		}
	}
	for _, path := range listing(t, named) {
		if strings.Contains(path, "kept") || strings.Contains(path, "trained") {
			t.Errorf("a file of a model that was removed: %s", path)
		}
	}
}

// entries returns the names in a folder, which need not exist.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// size returns the size of all files below a folder.
func size(t *testing.T, dir string) (total int64) {
	t.Helper()
	for _, path := range listing(t, dir) {
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
	}
	return total
}

// listing returns all files and folders below a folder.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		found = append(found, p)
		return err
	})
	if err != nil && !os.IsNotExist(err) { // an upload may be removed concurrently
		t.Error(err)
	}
	return found
}
