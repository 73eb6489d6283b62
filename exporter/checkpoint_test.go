package exporter

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// checkpointModel returns a model with random weights and all fields of the metadata set.
func checkpointModel(a models.Architecture) *models.Model {
	r := rand.New(rand.NewPCG(1, 2))
	var sd models.StateDict
	for _, p := range a.Parameters() {
		t := models.Tensor{Name: p.Name, Shape: p.Shape, Data: make([]float32, p.Size())}
		for i := range t.Data {
			t.Data[i] = r.Float32() - 0.5
		}
		sd = append(sd, t)
	}
	return &models.Model{
		Architecture: a, Weights: sd, ImageSize: 384,
		Metadata: models.Metadata{
			ModelType: models.ModelType, ImageSize: 384, Threshold: 0.0123456789, MeanError: 0.01, StdError: 1e-9,
			TrainingLosses: []float64{0.5, 0.25}, ClassNames: []string{"normal", "Geschwür", "息肉"}, FormatVersion: models.FormatVersion,
			Decision: &models.Decision{Measure: models.MeasureMSE, Threshold: 0.015, FalseAlarmRate: 0.01}, Architecture: &a,
			Preprocessing: models.StandardPreprocessing(), Training: &models.TrainingSummary{Level: 3, Epochs: 30, Seed: 7, Images: 20},
		},
	}
}

func writeCheckpoint(t *testing.T, m *models.Model) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := WriteCheckpoint(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWriteCheckpoint_RoundTrips(t *testing.T) {
	for _, a := range []models.Architecture{models.DefaultArchitecture(), {Channels: []int{3, 1}}, {Channels: []int{3, 300, 2, 5}}} {
		m := checkpointModel(a)
		data := writeCheckpoint(t, m)
		got, err := models.Read(data, models.DefaultLimits())
		if err != nil {
			t.Fatal(a, err)
		}
		m.Format, m.SHA256 = models.FormatCheckpoint, models.Identity(data)
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%s: got %+v, want %+v", a, got.Metadata, m.Metadata)
		}
	}
}

func TestWriteCheckpoint_IsDeterministic(t *testing.T) {
	m := checkpointModel(models.DefaultArchitecture())
	first := writeCheckpoint(t, m)
	// The order of the weights must not matter.
	n := len(m.Weights)
	m.Weights[0], m.Weights[n-1] = m.Weights[n-1], m.Weights[0]
	if !bytes.Equal(first, writeCheckpoint(t, m)) {
		t.Error("the bytes differ")
	}
	// For a check with PyTorch by hand.
	if path := os.Getenv("ANOMALY_WRITE_CHECKPOINT"); path != "" {
		if err := os.WriteFile(path, first, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWriteCheckpoint_HasPyTorchsLayout(t *testing.T) {
	data := writeCheckpoint(t, checkpointModel(models.Architecture{Channels: []int{3, 2}}))
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"data.pkl", ".format_version", ".storage_alignment", "byteorder",
		"data/0", "data/1", "data/2", "data/3", "version", ".data/serialization_id"}
	if len(z.File) != len(want) {
		t.Fatalf("%d entries, want %d", len(z.File), len(want))
	}
	for i, f := range z.File {
		at, err := f.DataOffset()
		if f.Name != "autoencoder/"+want[i] || f.Method != zip.Store || err != nil || at%64 != 0 {
			t.Errorf("%s, method %d, at %d (%v), want %s uncompressed at a multiple of 64", f.Name, f.Method, at, err, want[i])
		}
	}
}

func TestWriteCheckpoint_RejectsUnreadableModel(t *testing.T) {
	for name, edit := range map[string]func(*models.Model){
		"weight is missing":                func(m *models.Model) { m.Weights = m.Weights[1:] },
		"a weight is too short":            func(m *models.Model) { m.Weights[0].Data = m.Weights[0].Data[1:] },
		"a weight is not finite":           func(m *models.Model) { m.Weights[3].Data[0] = float32(math.NaN()) },
		"the architecture is another":      func(m *models.Model) { m.Architecture = models.DefaultArchitecture() },
		"the metadata has another network": func(m *models.Model) { a := models.DefaultArchitecture(); m.Metadata.Architecture = &a },
		"the image size is no multiple":    func(m *models.Model) { m.ImageSize, m.Metadata.ImageSize = 385, 385 },
		"the image sizes differ":           func(m *models.Model) { m.ImageSize = 128 },
		"the threshold is not finite":      func(m *models.Model) { m.Metadata.Threshold = math.Inf(1) },
		"the mean error is not finite":     func(m *models.Model) { m.Metadata.MeanError = math.NaN() },
		"the model type is something else": func(m *models.Model) { m.Metadata.ModelType = "transformer" },
	} {
		m := checkpointModel(models.Architecture{Channels: []int{3, 2}})
		edit(m)
		var b bytes.Buffer
		if err := WriteCheckpoint(&b, m); !errors.Is(err, ErrUnwritable) || b.Len() != 0 {
			t.Errorf("%s: got %v and %d bytes, want %v and none", name, err, b.Len(), ErrUnwritable)
		}
	}
}

type failingWriter struct{ left int }

func (p *failingWriter) Write(b []byte) (int, error) {
	if p.left -= len(b); p.left < 0 {
		return 0, os.ErrClosed
	}
	return len(b), nil
}

func TestWriteCheckpoint_ReturnsWriterError(t *testing.T) {
	for _, left := range []int{0, 3000, 200_000} {
		if err := WriteCheckpoint(&failingWriter{left}, checkpointModel(models.DefaultArchitecture())); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after %d bytes: %v", left, err)
		}
	}
}

// pyTorch113Instructions are the pickle instructions that torch.load(weights_only=True) of
// PyTorch 1.13 accepts, from its _weights_only_unpickler.py. Later versions accept more.
const pyTorch113Instructions = "c\x81RbaesuU(t)\x85\x86\x87N\x88\x89]}\x8fJKMXQhjqr\x8a\x80."

func TestCheckpointPickle_HasOnlyPyTorch113Instructions(t *testing.T) {
	m := sample()
	md, err := checkpointMetadata(m)
	if err != nil {
		t.Fatal(err)
	}
	data, err := checkpointPickle(m, md, m.Weights)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[byte]bool{}
	for i := 0; i < len(data); {
		op := data[i]
		if !strings.Contains(pyTorch113Instructions, string([]byte{op})) {
			t.Fatalf("unsupported instruction %q at byte %d", op, i)
		}
		seen[op] = true
		i++
		switch op {
		case 0x80, 'K':
			i++
		case 'J':
			i += 4
		case 'X':
			i += 4 + int(binary.LittleEndian.Uint32(data[i:]))
		case 'c':
			for range 2 {
				i += bytes.IndexByte(data[i:], '\n') + 1
			}
		}
	}
	if !seen['Q'] || !seen['X'] || !seen['.'] {
		t.Errorf("got only the instructions %v", seen)
	}
}
