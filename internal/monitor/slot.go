package monitor

import (
	"math"
	"slices"
	"time"

	"github.com/deepmed/anomaly/internal/drift"
)

// slot is the place of a monitor among those of a model in the nodes of a cluster. Each slot has
// a test of its own, of the verdicts of its node. A node that ends leaves its slot to the next
// one, which goes on with the test. The zero slot is that of a monitor without other nodes.
type slot struct {
	shared   bool
	taken    bool   // in the cluster
	number   int    // from 0
	revision uint64 // of its value
	// saved is the number of verdicts in the value.
	saved int64
	// epoch is the number of resets since the calibration.
	epoch int64
	// raised reports whether the other nodes know of the alarm of this test.
	raised bool
}

// share returns the share of drift.Level that a slot has. The shares of all slots sum up to 1,
// however many there are.
func (s slot) share() float64 {
	if !s.shared {
		return 1
	}
	n := float64(s.number)
	return 1 / ((n + 1) * (n + 2))
}

// seed returns the seed of the test of a slot: ties are broken in another way in each.
func (s slot) seed(model uint64) uint64 { return model + uint64(s.number)*0x9e3779b97f4a7c15 }

// test returns a new test for a monitor in the slot.
func (s slot) test(m *Monitor) *drift.Test {
	t := drift.New(m.reference, s.seed(m.seed))
	t.SetShare(s.share())
	return t
}

// resume returns the test of a slot in a state.
func (s slot) resume(m *Monitor, state drift.State) (*drift.Test, error) {
	t, err := drift.Resume(m.reference, s.seed(m.seed), state)
	if err == nil {
		t.SetShare(s.share())
	}
	return t, err
}

// slotState is the value of a slot in the cluster.
type slotState struct {
	State
	// By is different in each written value, so that a writer recognizes its own.
	By string `json:"by"`
	// Owner is the node that writes the slot; empty if it has left.
	Owner string `json:"owner"`
	Epoch int64  `json:"epoch"`
	// At has the times of Recent, in milliseconds since 1970.
	At []int64 `json:"at"`
}

// valid reports whether a state can be used.
func (s *slotState) valid() bool {
	return s.Count >= int64(len(s.Recent)) && len(s.Recent) <= recentScores && len(s.At) == len(s.Recent)
}

func (s *slotState) recent() []observed {
	list := make([]observed, len(s.Recent))
	for i, score := range s.Recent {
		list[i] = observed{score, s.At[i]}
	}
	return list
}

// slotState returns the value of the monitor's slot. The caller has the lock mu.
func (m *Monitor) slotState(owner, by string) slotState {
	s := slotState{State: m.state(), By: by, Owner: owner, Epoch: m.slot.epoch, At: []int64{}}
	for _, o := range m.last() {
		s.At = append(s.At, o.at)
	}
	s.AlarmSince = nil // see mark
	return s
}

// take puts the monitor into a slot, and goes on where the state that was found there stopped;
// nil for none. The caller has the lock mu. Verdicts from before are added.
func (m *Monitor) take(number int, revision uint64, found *slotState) {
	m.slot.taken, m.slot.number, m.slot.revision, m.slot.raised = true, number, revision, false
	if m.testable {
		m.test = nil
		if found != nil && found.Drift != nil && found.Epoch == m.slot.epoch {
			m.test, _ = m.slot.resume(m, *found.Drift) // else it begins anew
		}
		if m.test == nil {
			m.test = m.slot.test(m)
		}
		for _, score := range m.waiting {
			m.observe(score)
		}
		m.waiting = nil
	}
	if found != nil {
		m.count += found.Count
		m.recent = mergeRecent(found.recent(), m.last())
	}
}

// lose takes the monitor out of its slot, which another node has taken over with all that was
// saved. The caller has the lock mu.
func (m *Monitor) lose() {
	unsaved := m.count - m.slot.saved
	last := m.last()
	last = last[max(int64(len(last))-unsaved, 0):]
	m.count, m.recent = unsaved, slices.Clone(last)
	m.test, m.waiting = nil, scoresOf(last)
	m.slot.taken, m.slot.saved, m.slot.revision, m.slot.raised = false, 0, 0, false
}

// mergeRecent returns the last scores of several lists by their times. Within a list the order
// stays.
func mergeRecent(lists ...[]observed) []observed {
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b observed) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	})
	return all[max(len(all)-recentScores, 0):]
}

// mark is what the nodes of a cluster share about the test of a model.
type mark struct {
	// By is as in slotState.
	By string `json:"by"`
	// Since is that of the calibration that the mark is about. One about another is void.
	Since time.Time `json:"since"`
	// Epoch is the number of resets, and of changes of the calibration.
	Epoch int64 `json:"epoch"`
	// AlarmSince is when the alarm was raised in this epoch, by any node.
	AlarmSince *time.Time `json:"alarm_since,omitempty"`
}

// apply takes over a mark. The caller has the lock mu.
func (m *Monitor) apply(k mark) {
	if !k.Since.Equal(m.since) || k.Epoch < m.slot.epoch {
		return
	}
	if k.Epoch > m.slot.epoch {
		m.slot.epoch, m.slot.raised = k.Epoch, false
		m.restart()
	}
	if k.AlarmSince != nil && m.testable {
		m.alarmSince = *k.AlarmSince
	}
}

// combine adds the test of another slot. first reports whether it is the first test.
func (d *Drift) combine(other *drift.Test, first bool) {
	d.Images += other.Images()
	evidence := other.Log10Evidence()
	if !first {
		evidence = math.Max(d.Log10Evidence, evidence)
	}
	d.Log10Evidence = evidence
}
