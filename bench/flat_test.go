package main

import (
	"fmt"
	"math"
	"strings"
	"testing"
)

// sample is the service's memory at a point in time.
type sample struct{ seconds, resident float64 } // resident in MB

// flat fails the test if memory grows over the last half of the samples: if the slope
// of the regression line exceeds twice its standard error.
func flat(t *testing.T, samples []sample) {
	t.Helper()
	half := samples[len(samples)/2:]
	if len(half) < 10 {
		t.Logf("%d samples are too few to detect growth", len(samples))
		return
	}
	slope, deviation := trend(half)
	var series strings.Builder
	for i, s := range samples {
		if i%15 == 0 {
			fmt.Fprintf(&series, " %.0f", s.resident)
		}
	}
	t.Logf("resident memory, MB, every %v:%s", 15*soakSample, series.String())
	t.Logf("over the last half: %.3f MB/min, standard error %.3f", 60*slope, 60*deviation)
	if slope > 2*deviation {
		t.Errorf("memory grows by %.3f MB/min, standard error %.3f", 60*slope, 60*deviation)
	}
}

// trend returns the slope of the least-squares line and its standard error, in MB per
// second. The error is corrected for the lag-1 autocorrelation of the samples.
func trend(samples []sample) (slope, deviation float64) {
	n := float64(len(samples))
	var meanX, meanY float64
	for _, s := range samples {
		meanX += s.seconds / n
		meanY += s.resident / n
	}
	var xx, xy float64
	for _, s := range samples {
		xx += (s.seconds - meanX) * (s.seconds - meanX)
		xy += (s.seconds - meanX) * (s.resident - meanY)
	}
	slope = xy / xx
	var squares, lagged, last float64
	for i, s := range samples {
		rest := s.resident - meanY - slope*(s.seconds-meanX)
		squares += rest * rest
		if i > 0 {
			lagged += rest * last
		}
		last = rest
	}
	deviation = math.Sqrt(squares / (n - 2) / xx)
	if squares > 0 {
		correlation := min(max(lagged/squares, 0), 0.99)
		deviation *= math.Sqrt((1 + correlation) / (1 - correlation))
	}
	return slope, deviation
}

func TestTrend_DistinguishesALeakFromNoise(t *testing.T) {
	var level, leak []sample
	for i := range 150 {
		noise := 5 * math.Sin(float64(i)) * math.Cos(0.37*float64(i))
		level = append(level, sample{2 * float64(i), 200 + noise})
		leak = append(leak, sample{2 * float64(i), 200 + noise + 0.05*float64(i)})
	}
	if slope, deviation := trend(level); math.Abs(slope) > 2*deviation {
		t.Errorf("noise has a slope of %v ± %v", slope, deviation)
	}
	if slope, deviation := trend(leak); slope < 2*deviation || math.Abs(slope-0.025) > 2*deviation {
		t.Errorf("a leak of 0.025 has a slope of %v ± %v", slope, deviation)
	}
}
