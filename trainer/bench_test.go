package trainer

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// BenchmarkStep times one training step of the default network. `make bench`
// runs it beside PyTorch's.
func BenchmarkStep(b *testing.B) {
	for _, c := range []struct{ side, batch int }{{128, 16}, {256, 16}, {384, 16}, {128, 8}, {256, 8}, {384, 8}} {
		b.Run(fmt.Sprintf("side=%d/batch=%d", c.side, c.batch), func(b *testing.B) {
			arch := models.DefaultArchitecture()
			s, err := newStepper(orttest.Open(b), arch, InitialWeights(arch, 0), c.side, c.side, Options{Threads: orttest.Open(b).Threads()})
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
			step() // makes the sessions
			var before, after syscall.Rusage
			syscall.Getrusage(0, &before)
			for b.Loop() {
				step()
			}
			syscall.Getrusage(0, &after)
			cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N*c.batch), "cpu-ms/image")
			b.ReportMetric(float64(c.batch)*float64(b.N)/b.Elapsed().Seconds(), "images/s")
		})
	}
}
