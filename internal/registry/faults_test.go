package registry

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/models"
)

// A version that was acknowledged is not lost while NATS servers are killed, stopped and cut off,
// and all nodes end with the same versions. MODEL_FAULT_TIME=1m runs it; see make model-faults.
func TestShared_LosesNoVersionWhileServersFail(t *testing.T) {
	text := os.Getenv("MODEL_FAULT_TIME")
	if text == "" {
		t.Skip("MODEL_FAULT_TIME is not set")
	}
	limit, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	servers := brokertest.Start(t, 3)
	join := func() *Shared {
		b, err := broker.Open(t.Context(), broker.Options{URL: servers.URL(), Replicas: 3, Name: t.Name()})
		if err != nil {
			t.Fatal(err)
		}
		o := SharedOptions{Options: Options{MaxModels: 10, MaxVersions: 1000, VersionBytes: 1 << 40}, CacheDir: t.TempDir(), CacheBytes: 1 << 20}
		r, err := OpenShared(t.Context(), b, models.DefaultLimits(), o, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := errors.Join(r.Close(), b.Close()); err != nil {
				t.Error(err)
			}
		})
		return r
	}
	nodes := []*Shared{join(), join(), join()}
	ctx, stop := context.WithTimeout(t.Context(), limit)
	defer stop()
	var (
		mu            sync.Mutex
		acknowledged  = map[string]bool{}
		refused, lost int
		longest       time.Duration
		group         sync.WaitGroup
	)
	threshold := 0.0
	next := func() float64 {
		mu.Lock()
		defer mu.Unlock()
		threshold++
		return threshold
	}
	for i, r := range nodes {
		group.Go(func() {
			for ctx.Err() == nil {
				m, data := withThreshold(t, next())
				change := Change{}
				if i == 0 { // a change of the version that it knows
					if e, err := r.Look(t.Context(), "m"); err == nil {
						change.Of = e.SHA256
					}
				}
				began := time.Now()
				e, _, err := r.Put(t.Context(), "m", m, data, change)
				mu.Lock()
				longest = max(longest, time.Since(began))
				switch {
				case err == nil:
					acknowledged[e.SHA256] = true
				case errors.Is(err, ErrChanged):
					refused++
				case errors.Is(err, broker.ErrUnavailable):
					lost++ // stored or not
				default:
					t.Errorf("node %d: %v", i, err)
				}
				mu.Unlock()
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	faults := 0
	for ctx.Err() == nil {
		i := rand.IntN(3)
		switch rand.IntN(2) {
		case 0:
			servers.Kill(i)
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
			servers.Restart(i)
		case 1:
			servers.Stop(i)
			time.Sleep(time.Duration(rand.IntN(8000)) * time.Millisecond)
			servers.Cont(i)
		}
		faults++
		time.Sleep(3 * time.Second)
	}
	group.Wait()
	fresh := join()
	var list []Version
	until(t, "the servers answer", func() bool {
		list, err = fresh.Versions(t.Context(), "m")
		return err == nil
	})
	found := map[string]bool{}
	for _, v := range list {
		found[v.SHA256] = true
		if _, data, err := fresh.VersionBytes(t.Context(), "m", v.SHA256); err != nil || models.Identity(data) != v.SHA256 {
			t.Errorf("version %.8s: %d bytes, %v", v.SHA256, len(data), err)
		}
	}
	for sum := range acknowledged {
		if !found[sum] {
			t.Errorf("version %.8s was acknowledged and is lost", sum)
		}
	}
	for _, r := range nodes {
		until(t, "all nodes have the same version", func() bool { return currentOf(t, r) == list[0].SHA256 })
	}
	t.Logf("%d faults; %d versions, %d acknowledged, %d rejected as changed, %d unanswered; the longest change took %s", faults, len(list), len(acknowledged), refused, lost, longest)
	if len(acknowledged) < 10 {
		t.Errorf("only %d versions were stored", len(acknowledged))
	}
}
