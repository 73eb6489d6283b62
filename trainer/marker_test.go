package trainer

import (
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// marksOf describes all normal tiles and trains markers on them for a few steps, as
// a training does beside its epochs.
func marksOf(t *testing.T, e *ort.Engine, o Options) (models.StateDict, models.Decision, int) {
	t.Helper()
	o, level, err := o.Settle()
	if err != nil {
		t.Fatal(err)
	}
	level.MarkerSteps = 12
	data, err := Load(t.Context(), folder(t), 2, o)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	sd, decision, steps, err := normality(t.Context(), e, data, stream(o.Seed, streamNormals).Perm(data.Len()), level, o, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return sd, *decision, steps
}

func TestMarkersAreTheSameOnAnyNumberOfThreads(t *testing.T) {
	engine := orttest.Open(t)
	o := Options{Level: 2, ImageSize: 32, Seed: 4, Threads: 1}
	one, decided, steps := marksOf(t, engine, o)
	if steps != 12 || !models.HasMarkers(one) {
		t.Errorf("markers of %d steps", steps)
	}
	o.Threads = 2
	two, decidedByTwo, _ := marksOf(t, engine, o)
	for i, a := range one {
		if !slices.Equal(a.Data, two[i].Data) {
			t.Errorf("%s differs", a.Name)
		}
	}
	if !reflect.DeepEqual(decided, decidedByTwo) {
		t.Errorf("%+v and %+v", decided, decidedByTwo)
	}
	without := slices.IndexFunc(Ablations(), func(a Ablation) bool { return a.Name == "no markers" })
	if left, _, steps := marksOf(t, engine, Ablations()[without].Of(o)); models.HasMarkers(left) || steps != 0 {
		t.Error("markers that are left out are there")
	}
}

// What a marker is trained on is what the network's graph shows it later.
func TestMarkersSeeInTrainingWhatTheySeeInTheModel(t *testing.T) {
	const side = 32
	engine := orttest.Open(t)
	src := folder(t)
	m := withMarkers(t, engine)
	if got := m.Metadata.Training.MarkerSteps; got != 300 || !models.HasMarkers(m.Normality) {
		t.Fatalf("markers of %d steps", got)
	}
	o, _, err := Options{Level: 2, ImageSize: side, Threads: 1}.Settle()
	if err != nil {
		t.Fatal(err)
	}
	data, err := Load(t.Context(), src, 1, o)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	e, err := newEnergies(engine, side)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	observer, err := e.observer()
	if err != nil {
		t.Fatal(err)
	}
	defer observer.Close()
	var buffer []byte
	image, err := data.Image(0, &buffer)
	if err != nil {
		t.Fatal(err)
	}
	scales := models.MarkerScales(side)
	seen, err := observer.see(t.Context(), image, len(scales))
	if err != nil {
		t.Fatal(err)
	}
	var known []place
	for _, s := range scales {
		ps := s.Parameters()
		mean, _ := m.Normality.Get(ps[0].Name)
		precision, _ := m.Normality.Get(ps[1].Name)
		known = append(known, place{mean: mean.Data, precision: precision.Data})
	}
	p := scales[0].Places
	inputs, err := seenTensors(scales, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(inputs)
	show(inputs, 0, seen, known)

	// The sum of both markers' logits of that is what the exported graph has: its
	// score without the distances.
	marks := make([]float32, p*p)
	for k := range models.Markers {
		for i, v := range logitsOf(t, engine, m, k, inputs) {
			marks[i] += v
		}
	}
	ps := models.MarkersParameters(side)
	offset, _ := m.Normality.Get(ps[len(ps)-2].Name)
	slope, _ := m.Normality.Get(ps[len(ps)-1].Name)
	want := (slices.Max(marks) - offset.Data[0]) * slope.Data[0]

	// Distances that never count leave the score to the markers.
	for _, s := range models.NormalityScales(side) {
		ps := s.Parameters()
		far, _ := m.Normality.Get(ps[3].Name)
		far.Data[0] += 1000 / first(m.Normality, ps[4].Name)
	}
	d, err := inference.NewDetector(engine, m, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got, err := d.Measure(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	if score := float64(2 * network.SmoothMaximum(want/2, 0)); math.Abs(got-score) > 1e-3*score {
		t.Errorf("the graph gives %v, the training's view %v", got, score)
	}
}

func first(sd models.StateDict, name string) float32 {
	t, _ := sd.Get(name)
	return t.Data[0]
}

// logitsOf are marker k's of what it sees of one image.
func logitsOf(t *testing.T, engine *ort.Engine, m *models.Model, k int, seen []*ort.Tensor) []float32 {
	t.Helper()
	model, err := exporter.MarkerModel(m.ImageSize, k, exporter.Processor)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSession(engine, model, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := models.MarkerScales(m.ImageSize)[0].Places
	in := slices.Clone(seen)
	for _, q := range models.MarkerParameters(m.ImageSize, k) {
		w, _ := m.Normality.Get(q.Name)
		in = append(in, orttest.Tensor(t, w.Data, w.Shape...))
	}
	out := orttest.Tensor(t, nil, 1, 1, p, p)
	if err := s.Run(t.Context(), in, []*ort.Tensor{out}); err != nil {
		t.Fatal(err)
	}
	return slices.Clone(out.Data())
}

// Painting takes minutes of a large training, and who asks for an end waits for it.
func TestMarkersPaintNothingOnceTheCallerAskedForAnEnd(t *testing.T) {
	const side = 32
	stop := make(chan struct{})
	o, _, err := Options{Level: 2, ImageSize: side, Threads: 1, Stop: stop}.Settle()
	if err != nil {
		t.Fatal(err)
	}
	data, err := Load(t.Context(), aFewTiles(t), 1, o)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	e, err := newEnergies(orttest.Open(t), side)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	order := make([]int, data.Len())
	for i := range order {
		order[i] = i
	}
	paint := func() int {
		m := &markerTraining{energies: e, data: data, marking: marking{order: order}, options: o, scales: models.MarkerScales(side)}
		if err := m.paint(t.Context(), 8, time.Now(), time.Time{}); err != nil {
			t.Fatal(err)
		}
		return len(m.samples)
	}
	if n := paint(); n != 8 {
		t.Errorf("%d samples, expected 8", n)
	}
	close(stop)
	if n := paint(); n != 0 {
		t.Errorf("%d samples after the caller asked for an end", n)
	}
}
