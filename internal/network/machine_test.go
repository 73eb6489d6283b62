package network

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// drawn returns n random numbers from low to low+span.
func drawn(r *rand.Rand, n int, low, span float64) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(low + span*r.Float64())
	}
	return out
}

func weightsFor(r *rand.Rand, arch models.Architecture) models.StateDict {
	var sd models.StateDict
	for _, p := range arch.Parameters() {
		sd = append(sd, models.Tensor{Name: p.Name, Shape: p.Shape, Data: drawn(r, p.Size(), -0.5, 1)})
	}
	return sd
}

func TestMachine_RunIsIndependentOfEarlierRuns(t *testing.T) {
	arch := models.Architecture{Channels: []int{3, 4, 5}}
	const n, h, w = 2, 8, 12
	r := rand.New(rand.NewPCG(1, 2))
	weights := weightsFor(r, arch)
	machine := func() *Machine {
		f, err := Autoencoder(arch, n, h, w)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Machine(weights)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		})
		return m
	}
	reused := machine()
	var before []float32
	for i := range 3 {
		images := drawn(r, n*3*h*w, 0, 1)
		given := slices.Clone(images)
		rebuilt, errs, err := reused.Run(images)
		if err != nil {
			t.Fatal(err)
		}
		wantRebuilt, wantErrs, err := machine().Run(images)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(rebuilt, wantRebuilt) || !slices.Equal(errs, wantErrs) || len(rebuilt) != len(images) || len(errs) != n {
			t.Errorf("run %d: errors %v, on a new machine %v", i, errs, wantErrs)
		}
		if slices.Equal(errs, before) {
			t.Errorf("run %d repeats the result of the run before", i)
		}
		if !slices.Equal(images, given) {
			t.Errorf("run %d changed the images", i)
		}
		for j, e := range errs {
			sum, size := 0.0, 3*h*w
			for k := range size {
				d := float64(rebuilt[j*size+k]) - float64(images[j*size+k])
				sum += d * d
			}
			if want := sum / float64(size); float64(e) < 0.99999*want || float64(e) > 1.00001*want {
				t.Errorf("run %d, image %d: error %v, expected %v from the reconstruction", i, j, e, want)
			}
		}
		before = errs
	}
}

func TestMachine_RejectsMismatchedWeightsAndImages(t *testing.T) {
	arch := models.Architecture{Channels: []int{3, 2}}
	weights := weightsFor(rand.New(rand.NewPCG(3, 4)), arch)
	cut := slices.Clone(weights)
	cut[1].Data = cut[1].Data[1:]
	for name, sd := range map[string]models.StateDict{"no weights": nil, "a missing weight": weights[1:], "a truncated weight": cut} {
		f, err := Autoencoder(arch, 1, 4, 4)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Machine(sd); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	f, err := Autoencoder(arch, 1, 4, 4)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Machine(weights)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, _, err := m.Run(make([]float32, 47)); err == nil {
		t.Error("47 numbers for an image of 48: no error")
	}
}
