package trainer

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/streams"
	"github.com/deepmed/anomaly/models"
)

// BenchmarkStep measures one training step of the default network. `make bench` runs it
// next to PyTorch's. ANOMALY_BENCH_PROVIDER selects an execution provider other than
// the CPU.
func BenchmarkStep(b *testing.B) {
	for _, c := range []struct{ side, batch int }{{128, 16}, {256, 16}, {384, 16}, {128, 8}, {256, 8}, {384, 8}} {
		b.Run(fmt.Sprintf("side=%d/batch=%d", c.side, c.batch), func(b *testing.B) {
			arch := models.DefaultArchitecture()
			engine := orttest.Open(b)
			if p := os.Getenv("ANOMALY_BENCH_PROVIDER"); p != "" {
				var err error
				if engine, err = ort.Open(ort.Options{Provider: ort.Provider(p)}); err != nil {
					b.Fatal(err)
				}
			}
			s, err := newStepper(engine, arch, network.InitialWeights(arch.Parameters(), streams.New(0, streams.Weights)), imagefile.Layout{Size: models.Square(c.side)}, Options{Threads: engine.Threads()})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			images := make([][]byte, c.batch)
			for i := range images {
				images[i] = hashedImage(i, c.side*c.side*models.InputChannels)
			}
			step := func() {
				if _, err := s.Step(b.Context(), images, 1e-3); err != nil {
					b.Fatal(err)
				}
			}
			for range 2 {
				step() // the first creates the sessions
			}
			// The median: other work on the machine makes some steps much longer.
			var times []time.Duration
			for b.Loop() {
				began := time.Now()
				step()
				times = append(times, time.Since(began))
			}
			slices.Sort(times)
			b.ReportMetric(float64(c.batch)/times[len(times)/2].Seconds(), "images/s")
		})
	}
}
