package models

import (
	"runtime"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
)

// Short names for package hostile's builders of pickles, zips and ONNX files.
type entry = hostile.Entry

const stop = hostile.Stop

var (
	asm, str, num, name   = hostile.Asm, hostile.Str, hostile.Num, hostile.Name
	dict, nums, storageID = hostile.Dict, hostile.Nums, hostile.Storage
	zipOf, tinyEntries    = hostile.Pack, hostile.CheckpointEntries
	tinyONNX, prop        = hostile.Network, hostile.Property
	tinyConfig            = hostile.Config()
)

// tiny is the smallest network, 3-1, with 58 parameters.
var tiny = Architecture{Channels: []int{3, 1}}

// bounded runs f and fails the test when f allocates more than limit bytes.
func bounded(t *testing.T, limit uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > limit {
		t.Errorf("%d bytes were allocated, want at most %d", n, limit)
	}
}
