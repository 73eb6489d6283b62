package feedback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker/brokertest"
)

// openShared opens the feedback of a cluster that has the model k, as one more process has it.
func openShared(t *testing.T, url string, l Limits) *Shared {
	t.Helper()
	b := brokertest.Open(t, url, nil)
	models := func(context.Context) (map[string]bool, error) { return map[string]bool{"k": true}, nil }
	s, err := OpenShared(t.Context(), b, l, models, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func storedImages(t *testing.T, s *Shared) []string {
	t.Helper()
	names, err := s.files.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// storesImages waits until n images are stored.
func storesImages(t *testing.T, s *Shared, n int) {
	t.Helper()
	for range 1000 {
		if len(storedImages(t, s)) == n {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d images are stored, want %d", len(storedImages(t, s)), n)
}

func TestShared_ShowsFeedbackOfAnotherNode(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	limits := Limits{Images: 10, Bytes: 1000}
	a, b := openShared(t, url, limits), openShared(t, url, limits)
	ctx := t.Context()
	if list, err := b.List(ctx, "k"); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	first, err := a.Add(ctx, "k", Record{Label: Normal, Filename: "a.png", Score: score(1), Scores: "m"}, []byte("image a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Add(ctx, "k", Record{Label: Normal, Filename: "b.png", Score: score(2), Scores: "m"}, []byte("image b")); err != nil {
		t.Fatal(err)
	}
	again, err := b.Add(ctx, "k", Record{Label: Anomalous, Filename: "c.png", Score: score(1), Scores: "m"}, []byte("image a"))
	if err != nil || again.ID != first.ID {
		t.Errorf("%+v, %v", again, err)
	}
	storesImages(t, a, 2)
	list, err := a.List(ctx, "k")
	if err != nil || len(list) != 2 || list[0].Filename != "c.png" || list[0].Label != Anomalous || list[1].Filename != "b.png" {
		t.Errorf("%+v, %v", list, err)
	}
	if r, data, err := a.Image(ctx, "k", first.ID); err != nil || string(data) != "image a" || r.Label != Anomalous {
		t.Errorf("%+v, %q, %v", r, data, err)
	}
	if err := a.SetScores(ctx, "k", "n", map[string]*float64{first.ID: score(7), strings.Repeat("0", 64): score(1)}); err != nil {
		t.Fatal(err)
	}
	if list, _ = b.List(ctx, "k"); len(list) != 2 || *list[0].Score != 7 || list[0].Scores != "n" || list[1].Scores != "m" {
		t.Errorf("%+v", list)
	}
	if list, err := b.List(ctx, "other"); err != nil || len(list) != 0 {
		t.Errorf("another model: %v, %v", list, err)
	}
	for _, id := range []string{"", "..", strings.Repeat("0", 64), strings.ToUpper(first.ID), ">", "*"} {
		if err := b.Remove(ctx, "k", id); !errors.Is(err, ErrUnknown) {
			t.Errorf("Remove %q: %v", id, err)
		}
		if _, _, err := b.Image(ctx, "k", id); !errors.Is(err, ErrUnknown) {
			t.Errorf("Image %q: %v", id, err)
		}
	}
	if err := b.Remove(ctx, "k", first.ID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Image(ctx, "k", first.ID); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	storesImages(t, a, 1)
	if err := a.Delete(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if list, err := b.List(ctx, "k"); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	storesImages(t, a, 0)
}

func TestShared_LosesNoConcurrentFeedback(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	const each = 8
	limits := Limits{Images: 3*each - 2, Bytes: 1000}
	nodes := []*Shared{openShared(t, url, limits), openShared(t, url, limits), openShared(t, url, limits)}
	var group sync.WaitGroup
	var mu sync.Mutex
	full := 0
	for n, s := range nodes {
		group.Go(func() {
			for i := range each {
				_, err := s.Add(t.Context(), "k", Record{Label: Normal}, fmt.Appendf(nil, "%d %d", n, i))
				mu.Lock()
				if errors.Is(err, ErrFull) {
					full++
				} else if err != nil {
					t.Error(err)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	list, err := nodes[0].List(t.Context(), "k")
	if err != nil || len(list) != limits.Images || full != 2 {
		t.Errorf("%d images, %d rejected, %v", len(list), full, err)
	}
	storesImages(t, nodes[0], limits.Images)
}

func TestShared_KeepsItsLimits(t *testing.T) {
	s := openShared(t, brokertest.InProcess(t).URL(), Limits{Images: 3, Bytes: 12})
	add := func(image string) error {
		_, err := s.Add(t.Context(), "k", Record{Label: Normal}, []byte(image))
		return err
	}
	for _, c := range []struct {
		image string
		full  bool
	}{{"1234", false}, {"123456789", true}, {"5678", false}, {"12345", true}, {"1234", false}, {"12", false}, {"x", true}} {
		if err := add(c.image); errors.Is(err, ErrFull) != c.full || err != nil && !c.full {
			t.Errorf("%q: %v", c.image, err)
		}
	}
	// What could not be read again is not stored.
	name := strings.Repeat("<", 255)
	var many []sharedRecord
	for i := range 60_000 {
		many = append(many, sharedRecord{Record: Record{ID: strings.Repeat("0", 64), Filename: name, Bytes: int64(i % 2)}})
	}
	if _, err := encodeShared(many, maxSharedAdded); !errors.Is(err, ErrFull) {
		t.Errorf("a long list that is compressed well: %v", err)
	}
	var random []sharedRecord
	for i := range 10_000 {
		random = append(random, sharedRecord{Record: Record{ID: ID(fmt.Append(nil, i)), Scores: ID(fmt.Append(nil, -i))}, File: ID(fmt.Append(nil, i, i))})
	}
	if _, err := encodeShared(random, maxSharedAdded); !errors.Is(err, ErrFull) {
		t.Errorf("a long list: %v", err)
	}
}

func TestShared_TidiesWhatBelongsToNoModel(t *testing.T) {
	s := openShared(t, brokertest.InProcess(t).URL(), Limits{Images: 10, Bytes: 1000})
	for _, key := range []string{"k", "deleted"} {
		if _, err := s.Add(t.Context(), key, Record{Label: Normal}, []byte("image")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.files.Put(t.Context(), "k/left", bytes.NewReader([]byte("of a process that ended"))); err != nil {
		t.Fatal(err)
	}
	tidier := s.files.Tidier(0)
	for range 2 { // what is seen for the first time is kept
		if err := s.tidyOnce(t.Context(), tidier); err != nil {
			t.Fatal(err)
		}
	}
	for key, want := range map[string]int{"k": 1, "deleted": 0} {
		if list, err := s.List(t.Context(), key); err != nil || len(list) != want {
			t.Errorf("%s: %v, %v", key, list, err)
		}
	}
	names := storedImages(t, s)
	if len(names) != 1 || !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "k/"+ID([]byte("image"))) }) {
		t.Errorf("%v", names)
	}
}

func TestShared_LeavesTheMarkersOfDeletedModelsAsTheyAre(t *testing.T) {
	s := openShared(t, brokertest.InProcess(t).URL(), Limits{Images: 10, Bytes: 1000})
	if err := s.Delete(t.Context(), "deleted"); err != nil {
		t.Fatal(err)
	}
	last := func() uint64 {
		info, err := s.b.JetStream.Stream(t.Context(), "KV_"+bucket)
		if err != nil {
			t.Fatal(err)
		}
		return info.CachedInfo().State.LastSeq
	}
	before := last()
	if err := s.tidyOnce(t.Context(), s.files.Tidier(0)); err != nil {
		t.Fatal(err)
	}
	if after := last(); before != 1 || after != before {
		t.Errorf("the marker has the sequence %d, and %d after a tidying: it is never old enough to be removed", before, after)
	}
}
