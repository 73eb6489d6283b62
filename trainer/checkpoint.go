package trainer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/decision"
	"github.com/deepmed/anomaly/internal/optimizer"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// DefaultCheckpointInterval is the default of Checkpoints.Interval.
const DefaultCheckpointInterval = 30 * time.Second

// Checkpoints stores the state of a training, so that another process can continue it
// after the end of this one. The model is the same as without the interruption, unless
// the training has a MaxTime, which then counts from the start of the process.
//
// The functions are called one at a time.
type Checkpoints struct {
	// Save stores data durably under a name, and replaces what was there. There are two
	// names: of what decides, once it is learned, and of the epochs so far.
	Save func(name string, data []byte) error
	// Load returns what Save stored. It returns fs.ErrNotExist, wrapped, if there is
	// nothing.
	Load func(name string) ([]byte, error)
	// Failed, if not nil, is called with each error of Save and Load, and for a checkpoint
	// that is damaged or of another training. The training goes on without it.
	Failed func(error)
	// Interval is the time between two checkpoints of the epochs; 0 means
	// DefaultCheckpointInterval.
	Interval time.Duration
}

// The names of the two checkpoints.
const (
	decisionCheckpoint = "decision"
	epochsCheckpoint   = "epochs"
)

// ErrCheckpoint is passed, wrapped, to Checkpoints.Failed for a checkpoint that cannot be
// used.
var ErrCheckpoint = errors.New("unusable checkpoint")

// checkpointer saves and restores the checkpoints of one training. A nil one does nothing.
type checkpointer struct {
	Checkpoints
	fingerprint string
	saved       time.Time // when the epochs were saved, or began
}

// newCheckpointer returns nil if the options have no Checkpoints.
func newCheckpointer(ctx context.Context, engine *ort.Engine, data *dataset.Dataset, o Options) (*checkpointer, error) {
	if o.Checkpoints == nil {
		return nil, nil
	}
	c := &checkpointer{Checkpoints: *o.Checkpoints}
	if c.Interval <= 0 {
		c.Interval = DefaultCheckpointInterval
	}
	var err error
	c.fingerprint, err = fingerprint(ctx, engine, data, o)
	return c, err
}

// checkpointVersion must change with the format and with each change of a training that
// does not change the program's version.
const checkpointVersion = 1

// fingerprint returns a hash of all that the model depends on, in hexadecimal: program,
// options and images.
func fingerprint(ctx context.Context, engine *ort.Engine, data *dataset.Dataset, o Options) (string, error) {
	base := ""
	if o.Base != nil {
		base = o.Base.SHA256
	}
	revision := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	_, library := engine.Library()
	h := sha256.New()
	err := json.NewEncoder(h).Encode([]any{
		checkpointVersion, revision, runtime.GOARCH, library, inference.Operators(engine), models.EmbeddedBackbone(),
		o.Level, o.Input, o.preprocessing(true), o.Seed, o.FalseAlarmRate, o.Without.Name, o.MaxTime > 0, base, o.Tiles,
		data.Len(), data.Layout, data.Upright, data.MaxValue, data.Window, data.ClassNames, data.Skipped, data.Warnings,
	})
	if err != nil {
		return "", err
	}
	var buffer []byte
	for i := range data.Len() {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		image, err := data.Image(i, &buffer)
		if err != nil {
			return "", err
		}
		h.Write(image)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// header is the JSON of a checkpoint. The data of the tensors follows it, in their order.
type header struct {
	Fingerprint string         `json:"fingerprint"`
	Tensors     []tensorHeader `json:"tensors"`
	Learned     *learnedHeader `json:"learned,omitempty"`
	Epochs      *epochsHeader  `json:"epochs,omitempty"`
}

type tensorHeader struct {
	Name  string `json:"name"`
	Shape []int  `json:"shape"`
}

type learnedHeader struct {
	Decision      *models.Decision      `json:"decision"`
	Detectability *models.Detectability `json:"detectability"`
	HeadSteps     int                   `json:"head_steps"`
	Tiles         *models.Tiles         `json:"tiles,omitempty"`
	Warnings      []string              `json:"warnings"` // of learning
}

type epochsHeader struct {
	Steps  int       `json:"steps"`
	Sum    float64   `json:"sum"` // of the losses of the current epoch
	Losses []float64 `json:"losses"`
}

// checkpointMagic is the beginning of a checkpoint. The length of the header follows, in
// four bytes, then the header, the data of the tensors, and the SHA-256 of all that.
const checkpointMagic = "anomaly checkpoint\n"

// encode returns a checkpoint.
func (c *checkpointer) encode(h header, tensors models.StateDict) ([]byte, error) {
	h.Fingerprint = c.fingerprint
	size := 0
	for _, t := range tensors {
		h.Tensors = append(h.Tensors, tensorHeader{t.Name, t.Shape})
		size += 4 * len(t.Data)
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	data := make([]byte, 0, len(checkpointMagic)+4+len(text)+size+sha256.Size)
	data = append(data, checkpointMagic...)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(text)))
	data = append(data, text...)
	for _, t := range tensors {
		for _, v := range t.Data {
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
	}
	sum := sha256.Sum256(data)
	return append(data, sum[:]...), nil
}

// decode returns the parts of a checkpoint of this training.
func (c *checkpointer) decode(data []byte) (h header, tensors models.StateDict, err error) {
	bad := func(reason string) (header, models.StateDict, error) {
		return header{}, nil, fmt.Errorf("%w: %s", ErrCheckpoint, reason)
	}
	if len(data) < len(checkpointMagic)+4+sha256.Size || !bytes.HasPrefix(data, []byte(checkpointMagic)) {
		return bad("it is not a checkpoint")
	}
	data, want := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], want) {
		return bad("it is damaged")
	}
	data = data[len(checkpointMagic):]
	length := int64(binary.LittleEndian.Uint32(data))
	if data = data[4:]; length > int64(len(data)) {
		return bad("its header is cut off")
	}
	text, data := data[:length], data[length:]
	if err := json.Unmarshal(text, &h); err != nil {
		return bad(err.Error())
	}
	if h.Fingerprint != c.fingerprint {
		return bad("it is of another training or of another version of the program")
	}
	for _, t := range h.Tensors {
		n := 1
		for _, d := range t.Shape {
			if d < 1 || n > len(data)/4/d {
				return bad("a tensor is cut off")
			}
			n *= d
		}
		values := make([]float32, n)
		for i := range values {
			values[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
		}
		data = data[4*n:]
		if !models.Finite(values...) {
			return bad(t.Name + " has elements that are not finite numbers")
		}
		tensors = append(tensors, models.Tensor{Name: t.Name, Shape: t.Shape, Data: values})
	}
	if len(data) > 0 {
		return bad("it is too long")
	}
	return h, tensors, nil
}

// report passes an error on. Nothing is wrong with a training without checkpoints.
func (c *checkpointer) report(err error) {
	if c.Failed != nil && err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.Failed(err)
	}
}

// save saves a checkpoint.
func (c *checkpointer) save(name string, h header, tensors models.StateDict) {
	data, err := c.encode(h, tensors)
	if err == nil {
		err = c.Save(name, data)
	}
	if err != nil {
		c.report(fmt.Errorf("the checkpoint of the %s was not saved: %w", name, err))
	}
}

// load returns a checkpoint, and whether there is a usable one.
func (c *checkpointer) load(name string) (h header, tensors models.StateDict, ok bool) {
	data, err := c.Load(name)
	if err == nil {
		h, tensors, err = c.decode(data)
	}
	if err != nil {
		c.report(fmt.Errorf("the checkpoint of the %s was not used: %w", name, err))
	}
	return h, tensors, err == nil
}

// learn returns what was learned before, or the result of learn, which it saves. The
// warnings of learning are added to the data set in both cases.
func (c *checkpointer) learn(data *dataset.Dataset, o Options, level Level, learn func() (decision.Learned, error)) (decision.Learned, error) {
	if c == nil {
		return learn()
	}
	if h, tensors, ok := c.load(decisionCheckpoint); ok {
		learned, err := h.learned(tensors, o, level)
		if err == nil {
			data.Warnings = append(data.Warnings, h.Learned.Warnings...)
			return learned, nil
		}
		c.report(err)
	}
	before := len(data.Warnings)
	learned, err := learn()
	if err == nil && !workers.Closed(o.Stop) {
		c.save(decisionCheckpoint, header{Learned: &learnedHeader{learned.Decision, learned.Detectability, learned.HeadSteps, learned.Tiles, data.Warnings[before:]}}, learned.Tensors)
	}
	return learned, err
}

// learned returns the result of learning that a checkpoint has.
func (h *header) learned(tensors models.StateDict, o Options, level Level) (l decision.Learned, err error) {
	x := h.Learned
	if x == nil || x.HeadSteps < 0 || x.HeadSteps > level.HeadSteps {
		return l, fmt.Errorf("%w: it has no decision", ErrCheckpoint)
	}
	p := o.preprocessing(true)
	p.Tiles = x.Tiles
	m := models.Model{ImageSize: o.ImageSize, Reference: tensors, Metadata: models.Metadata{Decision: x.Decision, Preprocessing: p}}
	if err := m.CheckReference(); err != nil {
		return l, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	return decision.Learned{Tensors: tensors, Decision: x.Decision, Detectability: x.Detectability, HeadSteps: x.HeadSteps, Tiles: x.Tiles}, nil
}

// The prefixes of the names of the tensors of the epochs.
var momentPrefixes = []string{"", "first.", "second."}

// saveEpochs saves the epochs so far.
func (c *checkpointer) saveEpochs(s *stepper, f fitted, sum float64) {
	if c == nil || f.steps == 0 {
		return
	}
	c.saved = time.Now()
	state := s.State()
	var tensors models.StateDict
	for i, sd := range [][]models.Tensor{state.Weights, state.First, state.Second} {
		for _, t := range sd {
			t.Name = momentPrefixes[i] + t.Name
			tensors = append(tensors, t)
		}
	}
	c.save(epochsCheckpoint, header{Epochs: &epochsHeader{f.steps, sum, f.losses}}, tensors)
}

// due reports whether the epochs must be saved.
func (c *checkpointer) due() bool { return c != nil && time.Since(c.saved) >= c.Interval }

// restoreEpochs restores epochs of steps steps each. It changes nothing and returns false
// if there is no usable checkpoint.
func (c *checkpointer) restoreEpochs(s *stepper, f *fitted, sum *float64, steps int) bool {
	if c == nil {
		return false
	}
	c.saved = time.Now()
	h, tensors, ok := c.load(epochsCheckpoint)
	if !ok {
		return false
	}
	x, ps := h.Epochs, s.arch.Parameters()
	if x == nil || x.Steps < 1 || x.Steps > f.planned || len(x.Losses) != (x.Steps+steps-1)/steps ||
		len(tensors) != len(momentPrefixes)*len(ps) {
		c.report(fmt.Errorf("%w: it has other epochs", ErrCheckpoint))
		return false
	}
	for i := range tensors {
		p := ps[i%len(ps)]
		if tensors[i].Name != momentPrefixes[i/len(ps)]+p.Name || !slices.Equal(tensors[i].Shape, p.Shape) {
			c.report(fmt.Errorf("%w: it has a tensor %.100s of shape %v, expected %s of %v", ErrCheckpoint, tensors[i].Name, tensors[i].Shape, p.Name, p.Shape))
			return false
		}
		tensors[i].Name = p.Name
	}
	s.Restore(optimizer.State{Steps: x.Steps, Weights: tensors[:len(ps)], First: tensors[len(ps) : 2*len(ps)], Second: tensors[2*len(ps):]})
	f.steps, f.losses, *sum = x.Steps, x.Losses, x.Sum
	return true
}
