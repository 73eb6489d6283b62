package jobs

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Submit accepts a job. The job and its files are durable when Submit returns. It
// returns ErrFull, ErrNoSpace and ErrTooMany, and on any error nothing is kept, except for
// broker.ErrUnavailable: then the job may have been accepted. With Request.Key the same
// submission may be made again: Submit returns the job of the first, or ErrKeyReused if that
// was another request.
func (q *Queue) Submit(ctx context.Context, r Request) (Job, error) {
	job, _, err := q.SubmitOnce(ctx, r)
	return job, err
}

// SubmitOnce is Submit, and reports whether the job was accepted before.
func (q *Queue) SubmitOnce(ctx context.Context, r Request) (job Job, before bool, err error) {
	if r.Key != "" {
		done, err := q.lockKey(ctx, idOfKey(r))
		if err != nil {
			return Job{}, false, err
		}
		defer done()
		if job, found, err := q.submitted(r); found || err != nil {
			return job, found, err
		}
	}
	ctx, span := telemetry.BeginProducer(ctx, "job submit")
	defer func() { span.End(err) }()
	total := int64(0)
	for _, f := range r.Files {
		total += f.Bytes
	}
	q.sweep(ctx)
	if err := q.reserve(ctx, total); err != nil {
		return Job{}, false, err
	}
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.reservedBytes -= total + modelReserve
		q.reservedJobs--
	}()
	rec := record{Job: Job{ID: newID(), Kind: r.Kind, Name: r.Name, Attached: r.Attached, State: Queued, CreatedAt: wallTime(time.Time{}), Losses: []float64{}, Warnings: []string{}},
		Fields: r.Fields, Callback: r.Callback, Turn: turnOf(r.Caller), Number: q.nextNumber()}
	if r.Attached {
		rec.Owner = q.node
	}
	if !q.b.Embedded() && (r.Key != "" || r.ID != "") {
		rec.Uploads = rec.ID // another node may store files for the same id at the same time
	}
	if r.Key != "" {
		rec.ID = idOfKey(r)
	}
	if r.ID != "" {
		rec.ID = r.ID
	}
	rec.Trace = telemetry.Stored(ctx)
	span.String("job.id", rec.ID)
	unknown, err := q.store(ctx, &rec, r)
	if err != nil && !unknown {
		uploads := rec.uploads()
		q.cleaning.Go(func() {
			clean, cancel := withTimeout(q.clean)
			defer cancel()
			_ = q.removeFiles(clean, uploads) // else Open or Keep removes them
		})
	}
	if r.Key != "" && errors.Is(err, jetstream.ErrKeyExists) {
		// Another request with the key was faster.
		if job, found, again := q.submitted(r); found || again != nil {
			return job, found, again
		}
	}
	if errors.Is(err, jetstream.ErrKeyExists) {
		err = ErrExists
	}
	if err != nil {
		return Job{}, false, err
	}
	return rec.Job, false, nil
}

// store stores the files of a job, then its record, then its message. A process that
// ends in between leaves files without a record, or a record without a message, which
// Open or Keep repairs. unknown reports whether the job may have been accepted although store
// returns an error.
func (q *Queue) store(ctx context.Context, r *record, request Request) (unknown bool, err error) {
	sums := map[string]string{}
	for _, f := range request.Files {
		r.Files = append(r.Files, f.Name)
		n, sum, err := q.files.Put(ctx, r.upload(f.Name), f)
		if err != nil {
			return false, noSpace(err)
		}
		r.UploadBytes += n
		sums[f.Name] = sum
	}
	if request.Key != "" {
		r.Fingerprint = fingerprint(request, sums)
	}
	if !q.b.Embedded() {
		r.Change = q.nextChange()
	}
	data, err := json.Marshal(r)
	if err != nil {
		return false, err
	}
	// From here on the job is accepted, even if the client leaves.
	ctx, cancel := withTimeout(context.WithoutCancel(ctx))
	defer cancel()
	revision, err := q.b.Update(ctx, q.states, r.ID, data, 0)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return false, err
	}
	if err != nil && !q.b.Embedded() {
		// Another submission with the key, or a worker, may have the job already: it is left as
		// it is.
		return !broker.IsNoSpace(err), noSpace(err)
	}
	if err == nil {
		// The worker may receive the message before publish returns.
		q.mu.Lock()
		if e := q.jobs[r.ID]; e == nil && revision > q.removed[r.ID] {
			q.jobs[r.ID] = &entry{record: *r, revision: revision, changed: make(chan struct{})}
		}
		q.mu.Unlock()
		err = q.publish(ctx, r, r.ID)
		if err != nil && !q.b.Embedded() {
			// The record is durable, so that the job is accepted: Keep sends the message.
			q.o.Log.Warn("the message of a job is sent later", slog.String("job", r.ID), slog.Any("error", err))
			return false, nil
		}
	}
	if err != nil {
		q.mu.Lock()
		delete(q.jobs, r.ID)
		q.mu.Unlock()
		return false, errors.Join(noSpace(err), q.purge(ctx, r.ID, 0))
	}
	return false, nil
}

// noSpace returns ErrNoSpace, wrapped, for the error of a server that may not store more.
func noSpace(err error) error {
	if broker.IsNoSpace(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// keySubject returns the subject of a job's record.
func keySubject(id string) string { return "$KV." + bucket + "." + id }

// publish puts the message of a job into the queue. The servers drop a message whose id they have
// seen a short time ago, and one of a job that has one.
func (q *Queue) publish(ctx context.Context, r *record, id string) error {
	ctx, cancel := withTimeout(ctx)
	defer cancel()
	if _, err := q.stream(ctx, r.Kind); err != nil {
		return err
	}
	m := &nats.Msg{Subject: workOf(r), Header: nats.Header{jetstream.MsgIDHeader: {id}}}
	if q.b.Embedded() {
		if _, err := q.b.Publish(ctx, m); err != nil && !isWaiting(err) {
			return err
		}
	} else if err := q.b.PublishFirst(ctx, m); err != nil && !isWaiting(err) {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addTurnLocked(r.Turn)
	q.wakeRun()
	return nil
}

// isWaiting reports whether an error is that of a message whose job has one already.
func isWaiting(err error) bool {
	return strings.Contains(err.Error(), "maximum messages per subject")
}

// reserve reserves the place of a job with uploads of n bytes.
func (q *Queue) reserve(ctx context.Context, n int64) error {
	free, err := q.b.Space()
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.bytes()+q.reservedBytes+n+modelReserve > q.o.MaxBytes {
			return ErrFull
		}
		if n+q.reservedBytes+SpareDisk > free {
			return ErrNoSpace
		}
		if len(q.jobs)+q.reservedJobs < q.o.MaxJobs {
			break
		}
		oldest := q.finished()
		if len(oldest) == 0 {
			return ErrTooMany
		}
		q.mu.Unlock()
		err := q.remove(ctx, oldest[0].record.ID)
		q.mu.Lock()
		if err != nil && !errors.Is(err, ErrUnknown) {
			return err
		}
	}
	q.reservedBytes += n + modelReserve
	q.reservedJobs++
	return nil
}

// bytes returns the bytes of all jobs. The mutex must be held.
func (q *Queue) bytes() (n int64) {
	for _, e := range q.jobs {
		n += e.record.bytes()
	}
	return n
}

// finished returns the jobs that have ended, in the order of their ends. The mutex
// must be held.
func (q *Queue) finished() []*entry {
	list := slices.DeleteFunc(slices.Collect(maps.Values(q.jobs)), func(e *entry) bool { return !e.record.State.Final() })
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(a.record.EndNumber, b.record.EndNumber) })
	return list
}

// sweepInterval is the time between two searches for jobs that are too old.
const sweepInterval = time.Minute

// sweep removes the jobs that ended more than MaxAge ago. In a cluster Keep does that.
func (q *Queue) sweep(ctx context.Context) {
	if q.b.Embedded() {
		q.removeOld(ctx)
	}
}

// removeOld removes the jobs that ended more than MaxAge ago, unless that was done a moment ago.
func (q *Queue) removeOld(ctx context.Context) {
	q.mu.Lock()
	now := time.Now()
	due := q.o.MaxAge > 0 && now.Sub(q.swept) >= min(sweepInterval, q.o.MaxAge)
	var old []string
	if due {
		q.swept = now
		for _, e := range q.finished() {
			if e.agedBefore+now.Sub(e.ended) > q.o.MaxAge {
				old = append(old, e.record.ID)
			}
		}
	}
	q.mu.Unlock()
	for _, id := range old {
		if err := q.remove(ctx, id); err != nil && !errors.Is(err, ErrUnknown) {
			q.o.Log.Warn("cannot remove an old job", slog.String("job", id), slog.Any("error", err))
		}
	}
}

// newID returns a random id of 32 hexadecimal digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
