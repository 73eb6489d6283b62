package trainer

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/ort/orttest"
)

// niceThreads counts the threads of this process by niceness. It leaves out the main
// thread, which Go never ends.
func niceThreads(t *testing.T) map[int]int {
	t.Helper()
	list, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil || len(list) == 0 {
		t.Fatalf("no threads in /proc, %v", err)
	}
	out := map[int]int{}
	for _, path := range list {
		if strings.Contains(path, fmt.Sprintf("/%d/", os.Getpid())) {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		// The fields after the name, which may contain anything; niceness is field 19.
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		nice := 0
		if _, err := fmt.Sscan(fields[19-3], &nice); err != nil {
			t.Fatal(err)
		}
		out[nice]++
	}
	return out
}

func TestTrain_LowersThreadPriorityAndEndsThoseThreads(t *testing.T) {
	own := niceThreads(t)
	const nice = 13
	if own[nice] > 0 {
		t.Skip("the tests run at this niceness themselves")
	}
	// The threads that compute micro-batches end between steps, so count continuously.
	most, over, stopped := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
				most = max(most, niceThreads(t)[nice])
			}
		}
	}()
	m, err := Train(t.Context(), orttest.Open(t), aFewTiles(t), Options{Level: 1, ImageSize: 32, Niceness: nice})
	close(over)
	<-stopped
	if err != nil {
		t.Fatal(err)
	}
	// The training's own thread, and those that ONNX Runtime starts from it.
	if want := orttest.Open(t).Threads(); most < want {
		t.Errorf("%d threads of low priority, expected at least %d", most, want)
	}
	for deadline := time.Now().Add(time.Minute); niceThreads(t)[nice] > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("threads of low priority remain")
		}
	}
	plain, err := Train(t.Context(), orttest.Open(t), aFewTiles(t), Options{Level: 1, ImageSize: 32, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m.Weights, plain.Weights) {
		t.Error("the model depends on niceness or threads")
	}
}
