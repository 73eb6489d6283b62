package monitor

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/deepmed/anomaly/internal/files"
)

const (
	// verdictsFile is the file of a monitor in the model's folder.
	verdictsFile = "verdicts.json"
	// maxVerdictsFile is the maximum size of that file, in bytes.
	maxVerdictsFile = 1 << 20
)

// folderStore keeps monitors in the folders of their models.
type folderStore struct {
	path func(key string) string
	log  *slog.Logger
}

// NewFolder returns a store that keeps the monitor of a model in the folder that path
// returns.
func NewFolder(path func(key string) string, log *slog.Logger) Store { return folderStore{path, log} }

func (f folderStore) file(m *Monitor) string { return filepath.Join(f.path(m.key), verdictsFile) }

// open reads the state of a monitor from its file. A file of another calibration is
// ignored; so is a damaged one, which is logged.
func (f folderStore) open(m *Monitor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.testable {
		m.test = m.slot.test(m)
	}
	path := f.file(m)
	data, err := files.ReadAtMost(path, maxVerdictsFile)
	if err != nil || len(data) > maxVerdictsFile {
		return
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		f.log.Warn("cannot read the verdicts of a model", slog.String("file", path), slog.Any("error", err))
		return
	}
	if !s.Since.Equal(m.since) || s.Count < int64(len(s.Recent)) || len(s.Recent) > recentScores {
		return
	}
	if m.testable && s.Drift != nil {
		test, err := m.slot.resume(m, *s.Drift)
		if err != nil {
			f.log.Warn("cannot read the verdicts of a model", slog.String("file", path), slog.Any("error", err))
			return
		}
		m.test = test
	}
	if s.AlarmSince != nil && m.test != nil && m.test.Alarm() {
		m.alarmSince = *s.AlarmSince
	}
	m.count = s.Count
	for _, score := range s.Recent {
		m.add(observed{score: score})
	}
}

func (f folderStore) save(_ context.Context, m *Monitor) error {
	m.mu.Lock()
	if !m.changed {
		m.mu.Unlock()
		return nil
	}
	m.changed = false
	s := m.state()
	m.mu.Unlock()
	data, err := json.Marshal(s)
	if err == nil {
		err = files.WriteAtomic(f.file(m), func(w io.Writer) error {
			_, err := w.Write(data)
			return err
		})
	}
	if err != nil {
		m.mu.Lock()
		m.changed = true
		m.mu.Unlock()
	}
	return err
}

func (f folderStore) summary(_ context.Context, m *Monitor) (Summary, error) {
	return m.summary(), nil
}

func (f folderStore) reset(ctx context.Context, m *Monitor) error {
	m.mu.Lock()
	m.restart()
	m.mu.Unlock()
	return f.save(ctx, m)
}

func (folderStore) leave(context.Context, *Monitor) error { return nil }

// remove does nothing: the file is deleted with the model's folder.
func (folderStore) remove(context.Context, string) error { return nil }

func (folderStore) close() {}
