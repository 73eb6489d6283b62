package sim

import (
	"math"
	"math/rand/v2"
	"sort"
)

// draws are the random choices of a simulation.
type draws struct {
	*rand.Rand
	spread  []float64
	popular []float64 // cumulative use of the models
}

func newDraws(c *Config) *draws {
	d := &draws{Rand: rand.New(rand.NewPCG(uint64(c.Seed), 0x9e3779b97f4a7c15)), spread: c.Costs.Spread}
	total := 0.0
	for k := range max(c.Models, 1) {
		total += math.Pow(float64(k+1), -c.Zipf)
		d.popular = append(d.popular, total)
	}
	return d
}

// model returns a model by its use.
func (d *draws) model() int {
	return sort.SearchFloat64s(d.popular, d.Float64()*d.popular[len(d.popular)-1])
}

// factor returns a factor of work.
func (d *draws) factor() float64 {
	if len(d.spread) == 0 {
		return 1
	}
	return d.spread[d.IntN(len(d.spread))]
}

// profile is the rate of detections over a day: a power of a sine, lowest at the start,
// whose mean and peak are as configured. It rises from nothing during the ramp.
type profile struct{ rate, peak, day, power, ramp float64 }

func newProfile(c *Config) profile {
	p := profile{c.Rate, c.Peak, c.Day, 0, c.Ramp}
	if p.peak <= 1 || p.day <= 0 {
		return profile{rate: c.Rate, peak: 1, ramp: c.Ramp}
	}
	// The mean of sin^2k is Γ(k+1/2) / (√π Γ(k+1)), which falls with k.
	low, high := 0.0, 1e4
	for range 100 {
		p.power = (low + high) / 2
		a, _ := math.Lgamma(p.power + 0.5)
		b, _ := math.Lgamma(p.power + 1)
		if math.Exp(a-b)/math.Sqrt(math.Pi) > 1/p.peak {
			low = p.power
		} else {
			high = p.power
		}
	}
	return p
}

// at returns the rate at a time.
func (p profile) at(t float64) float64 {
	if t < p.ramp {
		p.rate *= t / p.ramp
	}
	if p.day <= 0 {
		return p.rate
	}
	return p.rate * p.peak * math.Pow(0.5-0.5*math.Cos(2*math.Pi*t/p.day), p.power)
}

// most returns the highest rate.
func (p profile) most() float64 { return p.rate * max(p.peak, 1) }
