package trainer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// memory stores checkpoints in memory, after each step.
type memory struct {
	stored map[string][]byte
	failed []error
	broken error // of Save
}

func (m *memory) checkpoints() *Checkpoints {
	return &Checkpoints{
		Interval: time.Nanosecond,
		Save: func(name string, data []byte) error {
			if m.broken == nil {
				m.stored[name] = data
			}
			return m.broken
		},
		Load: func(name string) ([]byte, error) {
			if data, ok := m.stored[name]; ok {
				return data, nil
			}
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		},
		Failed: func(err error) { m.failed = append(m.failed, err) },
	}
}

// steps records the steps of a training, and cancels it in the step after one.
type steps struct {
	first, last, planned int
	losses               []float64
	stages               []Stage
}

func (s *steps) observe(o *Options, last int, cancel func()) {
	o.Stage = func(stage Stage) { s.stages = append(s.stages, stage) }
	o.Progress = func(p Progress) {
		if s.first == 0 {
			s.first = p.Step
		}
		s.last, s.planned, s.losses = p.Step, p.Steps, slices.Clone(p.Losses)
		if p.Step == last {
			cancel()
		}
	}
}

// interrupt runs a training that is cancelled after a step, as by the end of a process.
func interrupt(t *testing.T, e *ort.Engine, src *dataset.Source, o Options, last int) steps {
	t.Helper()
	killed := errors.New("killed")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var s steps
	s.observe(&o, last, func() { cancel(killed) })
	if _, err := Train(ctx, e, src, o); !errors.Is(err, killed) {
		t.Fatalf("the training was not interrupted after step %d: %v", last, err)
	}
	return s
}

func TestTrain_ContinuesFromItsLastCheckpoint(t *testing.T) {
	e := orttest.OpenThreads(t, 2)
	for name, o := range map[string]Options{
		"without heads": {Level: 1, ImageSize: 32, Seed: 11},
		"with heads":    {Level: 2, ImageSize: 32, Seed: 12},
	} {
		t.Run(name, func(t *testing.T) {
			want := bundle(t, e, aFewTiles(t), o) // 18 tiles: two steps in an epoch
			m := memory{stored: map[string][]byte{}}
			o.Checkpoints = m.checkpoints()
			before := 0
			for _, last := range []int{1, 2, 5, 9} {
				s := interrupt(t, e, aFewTiles(t), o, last)
				if s.first != before+1 || s.last != last || len(s.losses) != (last+1)/2 {
					t.Errorf("it took the steps %d to %d with losses %v, expected %d to %d", s.first, s.last, s.losses, before+1, last)
				}
				if learns := slices.Contains(s.stages, StageExtractingFeatures); learns != (before == 0) {
					t.Errorf("after step %d, the stages are %v", before, s.stages)
				}
				before = last
			}
			var s steps
			s.observe(&o, -1, nil)
			if got := bundle(t, e, aFewTiles(t), o); !bytes.Equal(got, want) {
				t.Error("the model differs from that of a training without interruptions")
			}
			if s.first != before+1 || s.last != s.planned {
				t.Errorf("it took the steps %d to %d of %d", s.first, s.last, s.planned)
			}
			// The process may also end after the last step.
			if got := bundle(t, e, aFewTiles(t), o); !bytes.Equal(got, want) {
				t.Error("the model differs if all steps are in the checkpoint")
			}
			if len(m.failed) > 0 {
				t.Errorf("%v", m.failed)
			}
		})
	}
}

func TestTrain_GoesOnWithoutCheckpointsThatCannotBeStored(t *testing.T) {
	e := orttest.OpenThreads(t, 2)
	o := Options{Level: 1, ImageSize: 16, Seed: 11}
	want := bundle(t, e, aFewTiles(t), o)
	m := memory{broken: errors.New("the disk is full")}
	o.Checkpoints = m.checkpoints()
	if got := bundle(t, e, aFewTiles(t), o); !bytes.Equal(got, want) {
		t.Error("the model differs")
	}
	if len(m.failed) < 2 || !errors.Is(m.failed[0], m.broken) {
		t.Errorf("%v", m.failed)
	}
}

// rewritten returns a checkpoint whose header was changed, with the right hash.
func rewritten(t *testing.T, data []byte, change func(*header)) []byte {
	t.Helper()
	at := len(checkpointMagic)
	n := int(binary.LittleEndian.Uint32(data[at:]))
	var h header
	if err := json.Unmarshal(data[at+4:at+4+n], &h); err != nil {
		t.Fatal(err)
	}
	change(&h)
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out := binary.LittleEndian.AppendUint32([]byte(checkpointMagic), uint32(len(text)))
	out = slices.Concat(out, text, data[at+4+n:len(data)-sha256.Size])
	return hashed(out)
}

// hashed returns the data with its SHA-256.
func hashed(data []byte) []byte {
	sum := sha256.Sum256(data)
	return append(slices.Clone(data), sum[:]...)
}

// A training starts over from a checkpoint that it cannot use.
func TestTrain_StartsOverFromAnUnusableCheckpoint(t *testing.T) {
	e := orttest.OpenThreads(t, 2)
	o := Options{Level: 1, ImageSize: 16, Seed: 11}
	m := memory{stored: map[string][]byte{}}
	o.Checkpoints = m.checkpoints()
	interrupt(t, e, aFewTiles(t), o, 3)
	good := maps.Clone(m.stored)
	other := memory{stored: map[string][]byte{}}
	seeded := o
	seeded.Seed, seeded.Checkpoints = 12, other.checkpoints()
	interrupt(t, e, aFewTiles(t), seeded, 3)

	epochs, decision := good[epochsCheckpoint], good[decisionCheckpoint]
	damaged := func(data []byte, at int) []byte {
		data = slices.Clone(data)
		data[at] ^= 1
		return data
	}
	infinite := slices.Clone(epochs[:len(epochs)-sha256.Size])
	binary.LittleEndian.PutUint32(infinite[len(infinite)-4:], 0x7f800000)
	body := epochs[len(checkpointMagic)+4 : len(epochs)-sha256.Size]
	for name, c := range map[string]struct {
		checkpoint string
		data       []byte
	}{
		"an empty file":            {epochsCheckpoint, nil},
		"prose":                    {epochsCheckpoint, bytes.Repeat([]byte("prose "), 1000)},
		"a changed header":         {epochsCheckpoint, damaged(epochs, len(checkpointMagic)+10)},
		"a changed weight":         {epochsCheckpoint, damaged(epochs, len(epochs)-sha256.Size-1)},
		"a changed hash":           {epochsCheckpoint, damaged(epochs, len(epochs)-1)},
		"half of it":               {epochsCheckpoint, epochs[:len(epochs)/2]},
		"one of another training":  {epochsCheckpoint, other.stored[epochsCheckpoint]},
		"a header beyond the end":  {epochsCheckpoint, hashed(slices.Concat([]byte(checkpointMagic), []byte{255, 255, 255, 255}, body))},
		"a header that is not":     {epochsCheckpoint, hashed(slices.Concat([]byte(checkpointMagic), []byte{4, 0, 0, 0}, body))},
		"more than its tensors":    {epochsCheckpoint, hashed(append(slices.Clone(epochs[:len(epochs)-sha256.Size]), 0, 0, 0, 0))},
		"a number that is not":     {epochsCheckpoint, hashed(infinite)},
		"no steps":                 {epochsCheckpoint, rewritten(t, epochs, func(h *header) { h.Epochs.Steps = 0 })},
		"too many steps":           {epochsCheckpoint, rewritten(t, epochs, func(h *header) { h.Epochs.Steps = 1 << 40 })},
		"losses of other epochs":   {epochsCheckpoint, rewritten(t, epochs, func(h *header) { h.Epochs.Losses = nil })},
		"no epochs":                {epochsCheckpoint, rewritten(t, epochs, func(h *header) { h.Epochs = nil })},
		"a tensor of another name": {epochsCheckpoint, rewritten(t, epochs, func(h *header) { h.Tensors[1].Name = "x" })},
		"a tensor of no elements":  {epochsCheckpoint, rewritten(t, epochs, func(h *header) { h.Tensors[1].Shape = []int{0} })},
		"an enormous tensor":       {epochsCheckpoint, rewritten(t, epochs, func(h *header) { h.Tensors[1].Shape = []int{1 << 40, 1 << 40} })},
		"a tensor of another shape": {epochsCheckpoint, rewritten(t, epochs, func(h *header) {
			slices.Reverse(h.Tensors[0].Shape)
		})},
		"the decision":           {epochsCheckpoint, decision},
		"the epochs":             {decisionCheckpoint, epochs},
		"a damaged decision":     {decisionCheckpoint, damaged(decision, len(decision)/2)},
		"an unknown statistic":   {decisionCheckpoint, rewritten(t, decision, func(h *header) { h.Tensors[0].Name = "x" })},
		"a decision without one": {decisionCheckpoint, rewritten(t, decision, func(h *header) { h.Learned.Decision = nil })},
		"heads of no level":      {decisionCheckpoint, rewritten(t, decision, func(h *header) { h.Learned.HeadSteps = 1 << 30 })},
	} {
		t.Run(name, func(t *testing.T) {
			m.stored, m.failed = maps.Clone(good), nil
			m.stored[c.checkpoint] = c.data
			first := 4
			if c.checkpoint == epochsCheckpoint {
				first = 1
			}
			s := interrupt(t, e, aFewTiles(t), o, first)
			if len(m.failed) != 1 || !errors.Is(m.failed[0], ErrCheckpoint) {
				t.Errorf("%v, expected one %v", m.failed, ErrCheckpoint)
			}
			if s.first != first {
				t.Errorf("the first step is %d, expected %d", s.first, first)
			}
			if over := slices.Contains(s.stages, StageExtractingFeatures); over != (c.checkpoint == decisionCheckpoint) {
				t.Errorf("the stages are %v", s.stages)
			}
		})
	}
}

func FuzzDecodeCheckpoint(f *testing.F) {
	c := &checkpointer{fingerprint: "f"}
	good, err := c.encode(header{Epochs: &epochsHeader{Steps: 1, Losses: []float64{1}}}, hashedWeights(models.Architecture{Channels: []int{3, 4, 5}}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good[:len(good)-sha256.Size])
	f.Add([]byte(checkpointMagic + "\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, tensors, err := c.decode(hashed(data))
		if err != nil {
			return
		}
		again, err := c.encode(header{Learned: h.Learned, Epochs: h.Epochs}, tensors)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.decode(again); err != nil {
			t.Errorf("what was decoded is encoded to an unusable checkpoint: %v", err)
		}
	})
}
