package trainer

import (
	"bytes"
	"testing"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/ort/orttest"
)

func TestTrain_IsIdenticalFromDiskAndMemory(t *testing.T) {
	e := orttest.OpenThreads(t, 2)
	o := Options{Level: 1, ImageSize: 16, Seed: 3, Limits: dataset.DefaultLimits()}
	want := bundle(t, e, aFewTiles(t), o)
	o.Limits.MemoryBytes, o.TempDir = 7*16*16*3, t.TempDir()
	if !bytes.Equal(bundle(t, e, aFewTiles(t), o), want) {
		t.Error("the models differ")
	}
}
