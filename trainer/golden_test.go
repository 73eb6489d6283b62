package trainer

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// uniform returns n numbers in [0, 1), by the same hash as make_training.py.
func uniform(n, salt int) []float64 {
	out := make([]float64, n)
	for i := range out {
		h := uint32((uint64(i+1)*2654435761 + uint64(salt)*40503) % (1 << 32))
		h = uint32(uint64(h^h>>15) * 2246822519 % (1 << 32))
		h ^= h >> 13
		out[i] = float64(h) / (1 << 32)
	}
	return out
}

type goldenTraining struct {
	Torch string
	Cases []struct {
		Channels             []int
		Height, Width, Every int
		Batch, Images        int
		LearningRate         float64 `json:"learning_rate"`
		Losses               []float64
		Weights              map[string]string
	}
}

func hashedWeights(arch models.Architecture) models.StateDict {
	var sd models.StateDict
	bound := 0.0
	for salt, p := range arch.Parameters() {
		if len(p.Shape) == 4 {
			bound = 1 / math.Sqrt(float64(p.Shape[1]*9))
		}
		data := make([]float32, p.Size())
		for i, u := range uniform(p.Size(), salt) {
			data[i] = float32((2*u - 1) * bound)
		}
		sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	return sd
}

func hashedImage(i, size int) []byte {
	out := make([]byte, size)
	for j, u := range uniform(size, 1000+i) {
		out[j] = byte(u * 256)
	}
	return out
}

// Twenty steps from the same weights on the same batches, the last of each epoch
// smaller, result in PyTorch's losses and weights.
func TestStep_MatchesPyTorch(t *testing.T) {
	raw, err := os.ReadFile("../testdata/golden/training.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden goldenTraining
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	engine := orttest.Open(t)
	for _, c := range golden.Cases {
		arch := models.Architecture{Channels: c.Channels}
		t.Run(arch.String(), func(t *testing.T) {
			s, err := newStepper(engine, arch, hashedWeights(arch), imagefile.Layout{Size: models.Size{W: c.Width, H: c.Height}}, Options{Threads: engine.Threads()})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			images := make([][]byte, c.Images)
			for i := range images {
				images[i] = hashedImage(i, c.Height*c.Width*3)
			}
			start, worst := 0, 0.0
			for i, want := range c.Losses {
				got, err := s.Step(t.Context(), images[start:min(start+c.Batch, len(images))], c.LearningRate)
				if err != nil {
					t.Fatal(err)
				}
				if start += c.Batch; start >= len(images) {
					start = 0
				}
				worst = max(worst, math.Abs(got-want)/want)
				if math.Abs(got-want) > 1e-4*want {
					t.Errorf("step %d: loss %.8f, PyTorch has %.8f", i+1, got, want)
				}
			}
			t.Logf("largest relative difference of a loss: %.2g", worst)
			for _, w := range s.StateDict() {
				want, err := base64.StdEncoding.DecodeString(c.Weights[w.Name])
				if err != nil {
					t.Fatal(err)
				}
				difference, norm := 0.0, 0.0
				for i := 0; i < len(w.Data); i += c.Every {
					v := float64(math.Float32frombits(binary.LittleEndian.Uint32(want[4*(i/c.Every):])))
					difference += (float64(w.Data[i]) - v) * (float64(w.Data[i]) - v)
					norm += v * v
				}
				if relative := math.Sqrt(difference / norm); relative > 1e-4 {
					t.Errorf("%s differs from PyTorch's by %.2g, relative to the norm", w.Name, relative)
				} else {
					t.Logf("%s: %.2g", w.Name, relative)
				}
			}
		})
	}
}
