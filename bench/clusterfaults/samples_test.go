package clusterfaults

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

// samples is what processes use in the course of time.
type samples struct {
	cluster   *brokertest.Cluster
	processes []*process

	mu   sync.Mutex
	used map[string][]usage
	pids map[string]int
}

func newSamples(c *brokertest.Cluster, processes []*process) *samples {
	return &samples{cluster: c, processes: processes, used: map[string][]usage{}, pids: map[string]int{}}
}

func (s *samples) run(ctx context.Context) {
	for ctx.Err() == nil {
		for _, p := range s.processes {
			if running := p.last(); running != nil {
				s.add(p.name, running.PID())
			}
		}
		wait(ctx, sampleEvery)
	}
}

// add adds a sample. A new process begins anew.
func (s *samples) add(name string, pid int) {
	u, err := use(pid)
	if err != nil || u.rss == 0 { // it was killed
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pids[name] != pid {
		s.used[name], s.pids[name] = nil, pid
	}
	s.used[name] = append(s.used[name], u)
}

const (
	// A process must not use more in the last third of its life than in the second, apart from
	// this share and size: both are medians.
	maxGrowth      = 1.25
	maxMoreBytes   = 48 << 20
	maxMoreFiles   = 15
	minFlatSamples = 36 // 3 minutes
)

// flat compares what the surviving processes use.
func (s *samples) flat(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.processes {
		list := s.used[p.name]
		if len(list) < minFlatSamples {
			t.Logf("%s lived for %d samples at the end, too few to compare", p.name, len(list))
			continue
		}
		second, last := list[len(list)/3:2*len(list)/3], list[2*len(list)/3:]
		rss := func(u usage) int64 { return u.rss }
		files := func(u usage) int64 { return int64(u.files) }
		t.Logf("%s for %s: memory %d MB, then %d MB, at most %d MB; %d open files, then %d, at most %d", p.name, list[len(list)-1].at.Sub(list[0].at).Round(time.Second),
			median(second, rss)>>20, median(last, rss)>>20, most(list, rss)>>20, median(second, files), median(last, files), most(list, files))
		if a, b := median(second, rss), median(last, rss); float64(b) > maxGrowth*float64(a)+maxMoreBytes {
			t.Errorf("the memory of %s grows from %d to %d bytes", p.name, a, b)
		}
		if a, b := median(second, files), median(last, files); b > a+maxMoreFiles {
			t.Errorf("the open files of %s grow from %d to %d", p.name, a, b)
		}
	}
}

func median(list []usage, of func(usage) int64) int64 {
	values := make([]int64, len(list))
	for i, u := range list {
		values[i] = of(u)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func most(list []usage, of func(usage) int64) (m int64) {
	for _, u := range list {
		m = max(m, of(u))
	}
	return m
}
