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

// niceThreads counts the threads of this process by their niceness, all but the
// first one: Go does not end that, it only never uses it again.
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
		// The fields behind the name, which may hold anything; niceness is the 19th.
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		nice := 0
		if _, err := fmt.Sscan(fields[19-3], &nice); err != nil {
			t.Fatal(err)
		}
		out[nice]++
	}
	return out
}

func TestTrainingsThreadsStandBackAndNoThreadStaysSo(t *testing.T) {
	own := niceThreads(t)
	const nice = 13
	if own[nice] > 0 {
		t.Skip("the tests run at this niceness themselves")
	}
	// Between steps the threads that compute parts of a batch are gone, so they
	// are looked for all the time.
	seen, over, looked := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
				seen = max(seen, niceThreads(t)[nice])
			}
		}
	}()
	m, err := Train(t.Context(), orttest.Open(t), aFewTiles(t), Options{Level: 1, ImageSize: 32, Niceness: nice})
	close(over)
	<-looked
	if err != nil {
		t.Fatal(err)
	}
	// The one that trains, and what ONNX Runtime started from it for more threads
	// than one.
	if want := orttest.Open(t).Threads(); seen < want {
		t.Errorf("%d threads stood back, expected %d at least", seen, want)
	}
	for deadline := time.Now().Add(time.Minute); niceThreads(t)[nice] > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("threads stay behind")
		}
	}
	plain, err := Train(t.Context(), orttest.Open(t), aFewTiles(t), Options{Level: 1, ImageSize: 32, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m.Weights, plain.Weights) {
		t.Error("niceness and threads change the model")
	}
}
