package api

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/drift"
	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

const (
	// verdictsFile is the file of a monitor in the model's folder.
	verdictsFile = "verdicts.json"
	// maxVerdictsFile is the maximum size of that file, in bytes.
	maxVerdictsFile = 1 << 20
	// recentScores is the number of scores that a monitor keeps.
	recentScores = 1000
	// saveInterval is the interval at which changed monitors are written.
	saveInterval = 2 * time.Second
)

// namedModels is what the service keeps about stored models besides their files: their
// verdicts and their feedback.
type namedModels struct {
	registry *registry.Registry
	feedback *feedback.Store
	log      *slog.Logger
	// folders is locked for reading while files are written into a model's folder and while
	// a monitor is added, and for writing while a model is deleted with its folder. It is
	// locked after opening and before the registry's locks, mu and those of monitors.
	folders  sync.RWMutex
	opening  sync.Mutex // held while a monitor is opened
	mu       sync.RWMutex
	monitors map[string]*monitor // by the model's name
	stop     chan struct{}
	stopped  sync.Once
	saver    sync.WaitGroup
}

func newNamedModels(r *registry.Registry, l feedback.Limits, log *slog.Logger) *namedModels {
	m := &namedModels{registry: r, feedback: feedback.NewStore(l), log: log, monitors: map[string]*monitor{}, stop: make(chan struct{})}
	m.saver.Go(func() {
		tick := time.NewTicker(saveInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				m.save()
			case <-m.stop:
				return
			}
		}
	})
	return m
}

// close writes all monitors. No verdict may be observed afterwards. It may be called more
// than once.
func (l *namedModels) close() {
	if l == nil {
		return
	}
	l.stopped.Do(func() { close(l.stop) })
	l.saver.Wait()
	l.save()
}

// monitor watches the verdicts of a model since its last calibration.
type monitor struct {
	name  string
	since time.Time // as registry.Version.Since

	mu         sync.Mutex
	sha256     string // of the current version
	test       *drift.Test
	reference  drift.Reference
	seed       uint64
	alarmSince time.Time // zero without an alarm
	count      int64
	recent     []float64 // the last recentScores scores; a ring once it is full
	changed    bool
	warned     bool // that the file cannot be written, since it last could
}

// monitorState is a monitor in its file.
type monitorState struct {
	Since      time.Time    `json:"since"`
	Count      int64        `json:"count"`
	Recent     []float64    `json:"recent"`
	AlarmSince *time.Time   `json:"alarm_since,omitempty"`
	Drift      *drift.State `json:"drift,omitempty"`
}

// of returns the monitor of a model's version, or nil if that is not the current version
// any more. It opens the monitor if necessary; the service does so before the first
// verdict, except while it still reads its models.
func (l *namedModels) of(name, sha256 string) *monitor {
	l.mu.RLock()
	m := l.monitors[name]
	l.mu.RUnlock()
	if m != nil && m.is(sha256) {
		return m
	}
	return l.open(name, sha256)
}

func (m *monitor) is(sha256 string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sha256 == sha256
}

// open opens the monitor of a model's current version. A version that only has another
// threshold continues the monitor of the version before. It returns nil if the current
// version is not that with the SHA-256.
func (l *namedModels) open(name, sha256 string) *monitor {
	l.opening.Lock()
	defer l.opening.Unlock()
	l.folders.RLock() // so that no monitor of a deleted model is added
	defer l.folders.RUnlock()
	e, err := l.registry.Look(name)
	if err != nil || e.SHA256 != sha256 || e.State != registry.Ready {
		return nil
	}
	v, err := l.registry.Current(name)
	if err != nil || v.SHA256 != sha256 {
		return nil
	}
	l.mu.RLock()
	m := l.monitors[name]
	l.mu.RUnlock()
	if m != nil && m.since.Equal(v.Since) {
		m.mu.Lock()
		m.sha256 = sha256
		m.mu.Unlock()
		return m
	}
	m = newMonitor(name, v, e.Metadata)
	l.restore(m)
	l.mu.Lock()
	l.monitors[name] = m
	l.mu.Unlock()
	return m
}

func newMonitor(name string, v registry.Version, md *models.Metadata) *monitor {
	m := &monitor{name: name, since: v.Since, sha256: v.SHA256}
	ranks, ok := calibration.RanksOf(md.Decision)
	if !ok {
		return m
	}
	if m.reference, ok = drift.NewReference(ranks.Scores(), ranks.Count()); ok {
		// The seed is that of the version whose scores these are, so that it does not
		// change when the threshold is moved.
		if digits, err := hex.DecodeString(v.Scores); err == nil && len(digits) >= 8 {
			m.seed = binary.LittleEndian.Uint64(digits)
		}
		m.test = drift.New(m.reference, m.seed)
	}
	return m
}

// restore reads the state of a monitor from its file. A file of another calibration is
// ignored; so is a damaged one, which is logged.
func (l *namedModels) restore(m *monitor) {
	path := filepath.Join(l.registry.Folder(m.name), verdictsFile)
	data, err := files.ReadAtMost(path, maxVerdictsFile)
	if err != nil || len(data) > maxVerdictsFile {
		return
	}
	var s monitorState
	if err := json.Unmarshal(data, &s); err != nil {
		l.log.Warn("cannot read the verdicts of a model", slog.String("file", path), slog.Any("error", err))
		return
	}
	if !s.Since.Equal(m.since) || s.Count < int64(len(s.Recent)) || len(s.Recent) > recentScores {
		return
	}
	if m.test != nil && s.Drift != nil {
		test, err := drift.Resume(m.reference, m.seed, *s.Drift)
		if err != nil {
			l.log.Warn("cannot read the verdicts of a model", slog.String("file", path), slog.Any("error", err))
			return
		}
		m.test = test
	}
	if s.AlarmSince != nil {
		m.alarmSince = *s.AlarmSince
	}
	// The ring begins at count modulo its length.
	m.count = s.Count
	m.recent = append(make([]float64, 0, len(s.Recent)), s.Recent...)
	if n := len(m.recent); n == recentScores {
		at := int(m.count % recentScores)
		copy(m.recent[at:], s.Recent[:n-at])
		copy(m.recent[:at], s.Recent[n-at:])
	}
}

// observe adds the score of a verdict by the version with the SHA-256. It does nothing if
// that is not the current one any more. alarm reports whether the alarm is on.
func (m *monitor) observe(sha256 string, score float64) (alarm bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sha256 != sha256 {
		return false
	}
	if len(m.recent) < recentScores {
		m.recent = append(m.recent, score)
	} else {
		m.recent[m.count%recentScores] = score
	}
	m.count++
	m.changed = true
	if m.test == nil {
		return false
	}
	if m.test.Observe(score); m.test.Alarm() && m.alarmSince.IsZero() {
		m.alarmSince = time.Now().UTC()
	}
	return m.test.Alarm()
}

// reset begins the test for a drift anew.
func (m *monitor) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.alarmSince, m.changed = time.Time{}, true
	if m.test != nil {
		m.test = drift.New(m.reference, m.seed)
	}
}

// scores returns the number of verdicts and the last scores, the oldest first. The caller
// has the lock mu.
func (m *monitor) scores() (int64, []float64) {
	out := make([]float64, 0, len(m.recent))
	at := 0
	if len(m.recent) == recentScores {
		at = int(m.count % recentScores)
	}
	return m.count, append(append(out, m.recent[at:]...), m.recent[:at]...)
}

// save writes the monitors that have changed since the last time. A file that cannot be
// written is tried again.
func (l *namedModels) save() {
	l.mu.RLock()
	var all []*monitor
	for _, m := range l.monitors {
		all = append(all, m)
	}
	l.mu.RUnlock()
	for _, m := range all {
		err := l.saveMonitor(m)
		m.mu.Lock()
		first := !m.warned
		m.warned = err != nil
		m.mu.Unlock()
		if err != nil && first {
			l.log.Warn("cannot write the verdicts of a model", slog.String("name", m.name), slog.Any("error", err))
		}
	}
}

func (l *namedModels) saveMonitor(m *monitor) error {
	l.folders.RLock() // so that a deleted model's folder does not come back
	defer l.folders.RUnlock()
	l.mu.RLock()
	current := l.monitors[m.name] == m
	l.mu.RUnlock()
	m.mu.Lock()
	if !m.changed || !current {
		m.mu.Unlock()
		return nil
	}
	m.changed = false
	s := monitorState{Since: m.since}
	s.Count, s.Recent = m.scores()
	if m.test != nil {
		state := m.test.State()
		s.Drift = &state
	}
	if at := m.alarmSince; !at.IsZero() {
		s.AlarmSince = &at
	}
	m.mu.Unlock()
	data, err := json.Marshal(s)
	if err == nil {
		err = files.WriteAtomic(filepath.Join(l.registry.Folder(m.name), verdictsFile), func(w io.Writer) error {
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

// delete removes a model and all that is kept about it. It returns the registry's errors.
func (l *namedModels) delete(name string) error {
	l.folders.Lock()
	defer l.folders.Unlock()
	if err := l.registry.Delete(name); err != nil {
		return err
	}
	l.mu.Lock()
	delete(l.monitors, name)
	l.mu.Unlock()
	return nil
}

// checkDisk returns errNoSpace if n bytes more would take the space that the store of jobs
// needs: it stops when its disk is full, and stored models and uploads may be on the same
// disk.
func (s *Server) checkDisk(n int) error {
	if s.options.DataDir == "" {
		return nil
	}
	free, err := files.FreeSpace(s.options.DataDir)
	if err == nil && free < int64(n)+jobs.SpareDisk {
		err = errNoSpace
	}
	return err
}

// openAll opens the monitors of all models that have been read.
func (l *namedModels) openAll() {
	for _, e := range l.registry.List() {
		if e.State == registry.Ready {
			l.of(e.Name, e.SHA256)
		}
	}
}
