package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/broker/brokertest"
	"github.com/deepmed/anomaly/models"
)

// openShared opens the models of a cluster as one more process has them.
func openShared(t *testing.T, url string, change func(*SharedOptions)) *Shared {
	t.Helper()
	b := brokertest.Open(t, url, nil)
	o := SharedOptions{Options: manyVersions(), CacheDir: t.TempDir(), CacheBytes: 1 << 30}
	if o.MaxModels == 0 {
		o.MaxModels = 10
	}
	if change != nil {
		change(&o)
	}
	r, err := OpenShared(t.Context(), b, models.DefaultLimits(), o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	r.Load(t.Context(), nil)
	return r
}

// until waits until a condition holds, and returns how long that took.
func until(t *testing.T, what string, holds func() bool) time.Duration {
	t.Helper()
	for began := time.Now(); time.Since(began) < 60*time.Second; time.Sleep(2 * time.Millisecond) {
		if holds() {
			return time.Since(began)
		}
	}
	t.Fatalf("condition not reached: %s", what)
	return 0
}

// currentOf returns the SHA-256 of a model's current version, or "".
func currentOf(t *testing.T, r Registry) string {
	t.Helper()
	e, err := r.Look(t.Context(), "m")
	if err != nil && !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
	return e.SHA256
}

// putOf stores the model with a threshold in any registry.
func putOf(t *testing.T, r Registry, threshold float64, change Change) (string, error) {
	t.Helper()
	m, data := withThreshold(t, threshold)
	e, _, err := r.Put(t.Context(), "m", m, data, change)
	return e.SHA256, err
}

// thresholds returns those of a model's versions, the newest first.
func thresholds(t *testing.T, r Registry) []float64 {
	t.Helper()
	list, err := r.Versions(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	var out []float64
	for _, v := range list {
		out = append(out, v.Threshold)
	}
	return out
}

// storedFiles returns the names of the files in the object store.
func storedFiles(t *testing.T, r *Shared) []string {
	t.Helper()
	names, err := r.files.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestShared_ServesAModelOfAnotherNode(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	a, b := openShared(t, url, nil), openShared(t, url, nil)
	first, err := putOf(t, a, 1, Change{Reason: "uploaded"})
	if err != nil {
		t.Fatal(err)
	}
	// An unknown name is looked up in the cluster, so that a new model is there at once.
	e, err := b.Get(t.Context(), "m")
	if err != nil || e.SHA256 != first || e.State != Ready || e.Metadata.Threshold != 1 || e.Key == "" {
		t.Fatalf("%+v, %v", e, err)
	}
	if data, err := b.Bytes(t.Context(), e); err != nil || models.Identity(data) != first {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	second, err := putOf(t, a, 2, Change{Reason: "threshold moved", SameScores: true, Of: first})
	if err != nil {
		t.Fatal(err)
	}
	took := until(t, "the new version is there", func() bool { return currentOf(t, b) == second })
	t.Logf("a new version was known on the other node after %s", took)
	if got := thresholds(t, b); !slices.Equal(got, []float64{2, 1}) {
		t.Errorf("versions %v", got)
	}
	v, err := b.Current(t.Context(), "m")
	if err != nil || !v.Current || v.Scores != first || v.Reason != "threshold moved" {
		t.Errorf("%+v, %v", v, err)
	}
	old, data, err := b.VersionBytes(t.Context(), "m", first)
	if err != nil || models.Identity(data) != first || old.Current || !old.Since.Equal(v.Since) {
		t.Errorf("%+v, %d bytes, %v", old, len(data), err)
	}
	if list := b.List(); len(list) != 1 || list[0].Name != "m" {
		t.Errorf("%+v", list)
	}
	if err := b.Delete(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	until(t, "the model is gone", func() bool { return len(a.List()) == 0 })
	if _, err := a.Get(t.Context(), "m"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
	until(t, "the files are gone", func() bool { return len(storedFiles(t, a)) == 0 })
}

func TestShared_ReportsChangesOnce(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	var mu sync.Mutex
	var seen []string
	a := openShared(t, url, nil)
	b := openShared(t, url, func(o *SharedOptions) {
		o.Changed = func(before, now Entry) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, fmt.Sprintf("%.4s>%.4s", before.SHA256, now.SHA256))
		}
	})
	first, _ := putOf(t, a, 1, Change{})
	second, _ := putOf(t, b, 2, Change{})
	if err := b.Delete(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	third, _ := putOf(t, a, 3, Change{})
	want := []string{fmt.Sprintf(">%.4s", first), fmt.Sprintf("%.4s>%.4s", first, second), fmt.Sprintf("%.4s>", second), fmt.Sprintf(">%.4s", third)}
	until(t, "all changes are reported", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(seen) >= len(want)
	})
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(seen, want) {
		t.Errorf("%v, want %v", seen, want)
	}
}

// Of two changes of the same version one is rejected. Two uploads are two versions.
func TestShared_LosesNoVersionOfConcurrentChanges(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	nodes := []*Shared{openShared(t, url, nil), openShared(t, url, nil), openShared(t, url, nil)}
	current, err := putOf(t, nodes[0], 1, Change{})
	if err != nil {
		t.Fatal(err)
	}
	want := []float64{1}
	next := 2.0
	for round := range 4 {
		change := Change{Of: current}
		if round%2 == 1 {
			change = Change{}
		}
		errs, sums := make([]error, len(nodes)), make([]string, len(nodes))
		var group sync.WaitGroup
		for i, r := range nodes {
			m, data := withThreshold(t, next+float64(i))
			group.Go(func() {
				e, _, err := r.Put(t.Context(), "m", m, data, change)
				sums[i], errs[i] = e.SHA256, err
			})
		}
		group.Wait()
		stored := 0
		for i, err := range errs {
			switch {
			case err == nil:
				stored++
				want = append(want, next+float64(i))
			case !errors.Is(err, ErrChanged):
				t.Errorf("node %d: %v", i, err)
			}
		}
		if change.Of != "" && stored != 1 || change.Of == "" && stored != len(nodes) {
			t.Errorf("%d of %d changes of %.4q were stored", stored, len(nodes), change.Of)
		}
		next += float64(len(nodes))
		for _, r := range nodes {
			until(t, "all versions are known", func() bool { return len(thresholds(t, r)) == len(want) })
		}
		got := thresholds(t, nodes[0])
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("versions %v, want %v", got, want)
		}
		current = currentOf(t, nodes[0])
	}
	list, err := nodes[1].Versions(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		if _, data, err := nodes[2].VersionBytes(t.Context(), "m", v.SHA256); err != nil || models.Identity(data) != v.SHA256 {
			t.Errorf("version %.8s: %d bytes, %v", v.SHA256, len(data), err)
		}
	}
	until(t, "each version has one file", func() bool { return len(storedFiles(t, nodes[0])) == len(list) })
}

func TestShared_CatchesUpAfterItWasCutOff(t *testing.T) {
	s := brokertest.InProcess(t)
	proxy := brokertest.NewProxy(t, strings.TrimPrefix(s.URL(), "nats://"))
	a, b := openShared(t, s.URL(), nil), openShared(t, "nats://"+proxy.Address(), nil)
	first, err := putOf(t, a, 1, Change{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the model is known", func() bool { return currentOf(t, b) == first })
	e, err := b.Get(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Bytes(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	proxy.Cut()
	second, err := putOf(t, a, 2, Change{})
	if err != nil {
		t.Fatal(err)
	}
	// What is known and cached is served without the cluster.
	if e, err := b.Get(t.Context(), "m"); err != nil || e.SHA256 != first {
		t.Errorf("cut off: %+v, %v", e, err)
	}
	if data, err := b.Bytes(t.Context(), e); err != nil || models.Identity(data) != first {
		t.Errorf("cut off: %d bytes, %v", len(data), err)
	}
	began := time.Now()
	if _, err := b.Look(t.Context(), "unknown"); !errors.Is(err, broker.ErrUnavailable) || time.Since(began) > 2*lookTimeout {
		t.Errorf("an unknown model: %v after %s", err, time.Since(began))
	}
	proxy.Drop()
	proxy.Mend()
	took := until(t, "the node has caught up", func() bool { return b.peek("m").entry.SHA256 == second })
	t.Logf("it caught up after %s", took)
}

func TestShared_FetchesWhatItsCacheLacks(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	a := openShared(t, url, nil)
	sum, err := putOf(t, a, 1, Change{})
	if err != nil {
		t.Fatal(err)
	}
	b := openShared(t, url, nil)
	e, err := b.Get(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string) {
		t.Helper()
		if data, err := b.Bytes(t.Context(), e); err != nil || models.Identity(data) != sum {
			t.Errorf("%s: %d bytes, %v", name, len(data), err)
		}
		if data, err := os.ReadFile(b.cache.path(sum)); err != nil || models.Identity(data) != sum {
			t.Errorf("%s: in the cache: %d bytes, %v", name, len(data), err)
		}
	}
	check("new")
	path := b.cache.path(sum)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"changed": func() error { return os.WriteFile(path, append([]byte("x"), whole[1:]...), 0o600) },
		"cut off": func() error { return os.WriteFile(path, whole[:len(whole)/2], 0o600) },
		"longer":  func() error { return os.WriteFile(path, append(slices.Clone(whole), 0), 0o600) },
		"removed": func() error { return os.Remove(path) },
		"folder":  func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		check(name)
	}
}

func TestShared_OldEntriesFailAsChanged(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	r := openShared(t, url, func(o *SharedOptions) { o.MaxVersions, o.CacheBytes = 1, 0 })
	if _, err := putOf(t, r, 1, Change{}); err != nil {
		t.Fatal(err)
	}
	e, err := r.Get(t.Context(), "m")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := putOf(t, r, 2, Change{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the first version's file is gone", func() bool { return len(storedFiles(t, r)) == 1 })
	if _, err := r.Bytes(t.Context(), e); !errors.Is(err, ErrChanged) {
		t.Errorf("%v", err)
	}
	if _, _, err := r.VersionBytes(t.Context(), "m", e.SHA256); !errors.Is(err, ErrNoVersion) {
		t.Errorf("%v", err)
	}
}

func TestShared_RejectsAsTheFolderDoes(t *testing.T) {
	r := openShared(t, brokertest.InProcess(t).URL(), func(o *SharedOptions) { o.MaxModels = 1 })
	sum, err := putOf(t, r, 1, Change{})
	if err != nil {
		t.Fatal(err)
	}
	m, data := withThreshold(t, 2)
	large := *m
	large.Metadata.ClassNames = slices.Repeat([]string{strings.Repeat("x", 1000)}, 1000)
	put := func(name string, m *models.Model, c Change) error {
		_, _, err := r.Put(t.Context(), name, m, data, c)
		return err
	}
	for what, c := range map[string]struct {
		err  error
		want error
	}{
		"another model":     {put("n", m, Change{}), ErrFull},
		"an invalid name":   {put("../m", m, Change{}), ErrName},
		"another version":   {put("m", m, Change{Of: models.Identity(nil)}), ErrChanged},
		"a missing model":   {put("n", m, Change{Of: sum}), ErrChanged},
		"much metadata":     {put("m", &large, Change{}), ErrTooLarge},
		"a name to delete":  {r.Delete(t.Context(), "n"), ErrUnknown},
		"a name to look up": {func() error { _, err := r.Look(t.Context(), "a*b"); return err }(), ErrName},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	if again, err := putOf(t, r, 1, Change{}); err != nil || again != sum || len(thresholds(t, r)) != 1 {
		t.Errorf("the same bytes: %s, %v", again, err)
	}
	until(t, "no file is left of what was rejected", func() bool { return len(storedFiles(t, r)) == 1 })
}

func TestShared_ReplacesADamagedRecord(t *testing.T) {
	r := openShared(t, brokertest.InProcess(t).URL(), nil)
	for _, value := range []string{"", "{", `{"key":"k"}`, `{"versions":[{}]}`, `[]`} {
		if _, err := r.kv.Put(t.Context(), "m", []byte(value)); err != nil {
			t.Fatal(err)
		}
		until(t, "the record is read", func() bool { k := r.peek("m"); return k != nil && k.entry.State == Broken })
		if _, err := r.Get(t.Context(), "m"); !errors.Is(err, ErrBroken) {
			t.Errorf("%q: %v", value, err)
		}
		sum, err := putOf(t, r, 1, Change{})
		if err != nil || currentOf(t, r) != sum {
			t.Errorf("%q: replaced: %v", value, err)
		}
	}
}

func TestShared_TidiesOnlyFilesWithoutARecord(t *testing.T) {
	r := openShared(t, brokertest.InProcess(t).URL(), nil)
	for i := range 3 {
		if _, err := putOf(t, r, float64(i+1), Change{}); err != nil {
			t.Fatal(err)
		}
	}
	before := storedFiles(t, r)
	if _, _, err := r.files.Put(t.Context(), "left", bytes.NewReader([]byte("of a process that ended"))); err != nil {
		t.Fatal(err)
	}
	tidier := r.files.Tidier(0)
	for range 2 { // what is seen for the first time is kept
		if err := r.tidyOnce(t.Context(), tidier); err != nil {
			t.Fatal(err)
		}
	}
	after := storedFiles(t, r)
	slices.Sort(before)
	slices.Sort(after)
	if len(before) != 3 || !slices.Equal(before, after) {
		t.Errorf("%v, want %v", after, before)
	}
	if keys, err := r.Keys(t.Context()); err != nil || len(keys) != 1 {
		t.Errorf("%v, %v", keys, err)
	}
}

func TestFileCache_NeverExceedsItsBytes(t *testing.T) {
	dir := t.TempDir()
	const limit = 1000
	c, err := openFileCache(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	inFolder := func() (total int64) {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			info, err := f.Info()
			if err == nil {
				total += info.Size()
			}
		}
		return total
	}
	file := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 300) }
	stop, most := make(chan struct{}), make(chan int64)
	go func() {
		var top int64
		for {
			select {
			case <-stop:
				most <- top
				return
			default:
				top = max(top, inFolder())
			}
		}
	}()
	for i := range 50 {
		data := file(i % 7)
		if err := c.put(models.Identity(data), data); err != nil {
			t.Fatal(err)
		}
		if got := c.get(models.Identity(data)); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes", len(got))
		}
	}
	close(stop)
	if top := <-most; top > limit || top < 900 {
		t.Errorf("%d bytes in the folder", top)
	}
	large := make([]byte, limit+1)
	if err := c.put(models.Identity(large), large); err != nil || c.get(models.Identity(large)) != nil || inFolder() != 900 {
		t.Errorf("a file above the limit: %v, %d bytes", err, inFolder())
	}
	// The one that was used last stays.
	kept := file(0)
	_ = c.put(models.Identity(kept), kept)
	for i := 10; i < 16; i++ {
		c.get(models.Identity(kept))
		_ = c.put(models.Identity(file(i)), file(i))
	}
	if c.get(models.Identity(kept)) == nil {
		t.Error("the file that was used last was removed")
	}
	if _, err := openFileCache(dir, limit); !errors.Is(err, ErrInUse) {
		t.Errorf("a folder in use: %v", err)
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := openFileCache(dir, 500)
	if err != nil {
		t.Fatal(err)
	}
	defer again.close()
	if again.bytes != 300 || again.get(again.used[0].sha256) == nil {
		t.Errorf("opened again: %d bytes", again.bytes)
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); err != nil {
		t.Errorf("a file that is not the cache's: %v", err)
	}
}

// A version that is being read is read to its end although others replace it.
func TestShared_ReadsWhatIsReplacedMeanwhile(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	a := openShared(t, url, func(o *SharedOptions) { o.MaxVersions = 2 })
	b := openShared(t, url, func(o *SharedOptions) { o.MaxVersions, o.CacheBytes = 2, 0 })
	if _, err := putOf(t, a, 1, Change{}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for i := 2; ctx.Err() == nil; i++ {
			if _, err := putOf(t, a, float64(i), Change{}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 60 {
		for try := 0; ; try++ { // as the service does
			e, err := b.Get(t.Context(), "m")
			if err != nil {
				t.Fatal(err)
			}
			data, err := b.Bytes(t.Context(), e)
			if errors.Is(err, ErrChanged) && try < 10 {
				continue
			}
			if err != nil || models.Identity(data) != e.SHA256 {
				t.Fatalf("%v after %d tries", err, try)
			}
			break
		}
	}
	stop()
	group.Wait()
}

// A node may read a record, and hear of its deletion before it has taken the record over.
func TestShared_DoesNotBringADeletedModelBack(t *testing.T) {
	url := brokertest.InProcess(t).URL()
	a, b := openShared(t, url, nil), openShared(t, url, nil)
	if _, err := putOf(t, a, 1, Change{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the model is there", func() bool { return len(b.List()) == 1 })
	read, err := b.b.Get(t.Context(), b.kv, "m")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Delete(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	until(t, "the model is gone", func() bool { return len(b.List()) == 0 })
	b.learn("m", read.Value(), read.Revision())
	if list := b.List(); len(list) != 0 {
		t.Errorf("the deleted model is there again: %+v", list)
	}
	again, err := putOf(t, a, 2, Change{})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "a new model of the name is there", func() bool { return currentOf(t, b) == again })
	for i := range maxRemoved + 10 { // the deleted names do not grow without limit
		b.forget("n"+strconv.Itoa(i), 1)
	}
	if n := len(b.known); n > maxRemoved+1 {
		t.Errorf("%d names are kept", n)
	}
	if currentOf(t, b) != again {
		t.Error("the model is forgotten with the deleted names")
	}
}

func TestShared_EndsAlthoughItsServersAreAway(t *testing.T) {
	s := brokertest.InProcess(t)
	r := openShared(t, s.URL(), nil)
	s.Stop()
	r.remove("a", "b", "c", "d", "e", "f")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Close()
	}()
	select {
	case <-ended:
	case <-time.After(40 * time.Second): // two of the six would take as long
		t.Error("Close waits for each file")
	}
}
