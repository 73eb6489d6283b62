package api

import (
	"encoding/json"
	"math"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

// A model file may have any number of calibration images.
func TestMonitor_StaysFiniteForHostileMetadata(t *testing.T) {
	for _, n := range []int{math.MinInt, -1, 0, 1 << 53, math.MaxInt - 1, math.MaxInt} {
		md := models.Metadata{Decision: &models.Decision{Scores: []float64{0, 1, 1, 2}, CalibrationImages: n}}
		m := newMonitor("m", registry.Version{}, &md)
		for i := range 100 {
			m.observe("", float64(i%4))
		}
		if _, err := json.Marshal(m.drift()); err != nil {
			t.Errorf("%d images: the answer: %v", n, err)
		}
		if _, err := json.Marshal(m.test.State()); err != nil {
			t.Errorf("%d images: the file: %v", n, err)
		}
	}
}

func TestMonitor_IsNotOpenedOfADeletedModel(t *testing.T) {
	s, _ := startWithModels(t, nil)
	s.mustPut(t, "m", trained(t)[models.CheckpointFile])
	e, err := s.registry.Look("m")
	if err != nil {
		t.Fatal(err)
	}
	s.named.mu.Lock()
	delete(s.named.monitors, "m")
	s.named.mu.Unlock()
	s.named.folders.Lock() // as while the model is deleted
	opened := make(chan *monitor)
	go func() { opened <- s.named.of("m", e.SHA256) }()
	select {
	case m := <-opened:
		m.observe(e.SHA256, 1)
		go func() { opened <- m }()
	case <-time.After(100 * time.Millisecond):
	}
	err = s.registry.Delete("m")
	s.named.folders.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if m := <-opened; m != nil {
		t.Error("a monitor was opened")
	}
	s.named.save()
	if _, err := os.Stat(s.registry.Folder("m")); !os.IsNotExist(err) {
		t.Errorf("the folder of the deleted model is there again: %v", err)
	}
	if a := s.request(t, http.MethodGet, "/models/m/scores", nil); a.status != 404 {
		t.Errorf("status %d", a.status)
	}
}
