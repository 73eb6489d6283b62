package monitor

import (
	"encoding/binary"
	"encoding/hex"
	"sync"
	"time"

	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/drift"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

const (
	// recentScores is the number of scores that are kept.
	recentScores = 1000
	// maxWaiting bounds the scores that a monitor keeps for a test that is not open yet. Later
	// ones are not tested.
	maxWaiting = 10_000
)

// Monitor watches the verdicts of a model since its last calibration. It may be used
// concurrently.
type Monitor struct {
	name  string
	key   string    // as registry.Entry.Key
	since time.Time // as registry.Version.Since
	// reference and seed are those of the test; testable reports whether the model has the
	// scores of its calibration.
	reference drift.Reference
	seed      uint64
	testable  bool

	saving sync.Mutex // held while the monitor is written or reset

	mu         sync.Mutex
	sha256     string      // of the current version
	test       *drift.Test // nil until it is open
	waiting    []float64   // scores for a test that is not open yet
	alarmSince time.Time   // zero without an alarm
	count      int64
	recent     []observed // the last recentScores scores, after older ones
	changed    bool
	warned     bool // that the monitor cannot be written, since it last could
	slot       slot // used by the store of a cluster
}

// observed is the score of a verdict and the time of the verdict, in milliseconds since
// 1970; 0 if it is not known.
type observed struct {
	score float64
	at    int64
}

// State is what is kept about a monitor.
type State struct {
	Since      time.Time    `json:"since"`
	Count      int64        `json:"count"`
	Recent     []float64    `json:"recent"`
	AlarmSince *time.Time   `json:"alarm_since,omitempty"`
	Drift      *drift.State `json:"drift,omitempty"`
}

// Drift is the state of the test for higher scores.
type Drift struct {
	// Available is false for a model without the scores of its calibration. The other values
	// are zero then.
	Available bool
	// Alarm reports whether the alarm is on, and Since since when.
	Alarm bool
	Since time.Time
	// Images is the number of tested verdicts.
	Images        int64
	Log10Evidence float64
}

// Summary describes the verdicts of a model since its last calibration.
type Summary struct {
	Count  int64
	Recent []float64 // the last recentScores scores, the oldest first
	Drift  Drift
}

func newMonitor(key, name string, v registry.Version, md *models.Metadata) *Monitor {
	m := &Monitor{name: name, key: key, since: v.Since, sha256: v.SHA256}
	ranks, ok := calibration.RanksOf(md.Decision)
	if !ok {
		return m
	}
	if m.reference, ok = drift.NewReference(ranks.Scores(), ranks.Count()); ok {
		m.testable = true
		// The seed is that of the version whose scores these are, so that it does not
		// change when the threshold is moved.
		if digits, err := hex.DecodeString(v.Scores); err == nil && len(digits) >= 8 {
			m.seed = binary.LittleEndian.Uint64(digits)
		}
	}
	return m
}

// Name returns the name of the model.
func (m *Monitor) Name() string { return m.name }

func (m *Monitor) is(sha256 string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sha256 == sha256
}

// Observe adds the score of a verdict by the version with the SHA-256. It does nothing if
// that is not the current one any more. alarm reports whether the alarm is on.
func (m *Monitor) Observe(sha256 string, score float64) (alarm bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sha256 != sha256 {
		return false
	}
	m.add(observed{score, time.Now().UnixMilli()})
	m.count++
	m.changed = true
	switch {
	case !m.testable:
	case m.test != nil:
		m.observe(score)
	case len(m.waiting) < maxWaiting:
		m.waiting = append(m.waiting, score)
	}
	return !m.alarmSince.IsZero()
}

// add adds a score to the recent ones.
func (m *Monitor) add(o observed) {
	if len(m.recent) == 2*recentScores {
		m.recent = append(m.recent[:0], m.recent[recentScores:]...)
	}
	m.recent = append(m.recent, o)
}

// observe adds a score to the test, which is open. The caller has the lock mu.
func (m *Monitor) observe(score float64) {
	if m.test.Observe(score); m.test.Alarm() && m.alarmSince.IsZero() {
		m.alarmSince = time.Now().UTC()
	}
}

// last returns the last recentScores scores, the oldest first. The caller has the lock mu.
func (m *Monitor) last() []observed { return m.recent[max(len(m.recent)-recentScores, 0):] }

// state returns what is kept about the monitor. The caller has the lock mu.
func (m *Monitor) state() State {
	s := State{Since: m.since, Count: m.count, Recent: scoresOf(m.last())}
	if m.test != nil {
		state := m.test.State()
		s.Drift = &state
	}
	if at := m.alarmSince; !at.IsZero() {
		s.AlarmSince = &at
	}
	return s
}

func scoresOf(list []observed) []float64 {
	out := make([]float64, len(list))
	for i, o := range list {
		out[i] = o.score
	}
	return out
}

// summary returns the summary of the verdicts of this monitor alone.
func (m *Monitor) summary() Summary {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Summary{Count: m.count, Recent: scoresOf(m.last()), Drift: m.drift()}
}

// drift returns the state of the test. The caller has the lock mu.
func (m *Monitor) drift() Drift {
	d := Drift{Available: m.testable, Alarm: !m.alarmSince.IsZero(), Since: m.alarmSince}
	if m.test != nil {
		d.Images, d.Log10Evidence = m.test.Images(), m.test.Log10Evidence()
	}
	return d
}

// restart begins the test anew. The caller has the lock mu.
func (m *Monitor) restart() {
	m.alarmSince, m.changed, m.waiting = time.Time{}, true, nil
	if m.test != nil {
		m.test = m.slot.test(m)
	}
}
