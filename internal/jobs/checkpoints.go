package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/files"
)

// checkpointsDir is the folder of the checkpoints, in that of the queue: a folder for each
// job, with a file for each checkpoint. They are not in the store of files, in which the
// removal of a file reads all others.
const checkpointsDir = "checkpoints"

// maxCheckpoints is the maximum size of the checkpoints of a job together. Only a job that
// was started has any, so that modelReserve covers them.
const maxCheckpoints = modelReserve

// errCheckpoints is returned for checkpoints that are too large.
var errCheckpoints = fmt.Errorf("the checkpoints of the job are larger than %d bytes", maxCheckpoints)

// checkpointsBucket is the object store of the checkpoints of a cluster, where another node must
// find them.
const checkpointsBucket = "checkpoints"

// checkpoints returns the folder of a job's checkpoints.
func (q *Queue) checkpoints(id string) string { return filepath.Join(q.b.Dir(), checkpointsDir, id) }

// SaveCheckpoint stores data durably under a name, from which another attempt can go on,
// and replaces what was there. The checkpoints are removed when the job ends; of a job that
// has ended, or that another node runs, nothing is stored.
func (t *Task) SaveCheckpoint(name string, data []byte) error {
	e, err := t.q.entry(t.Job.ID)
	if err != nil {
		return nil
	}
	t.q.mu.Lock()
	r := e.record
	t.q.mu.Unlock()
	if r.State.Final() || t.q.fence(&r, t) != nil {
		return nil
	}
	if !t.q.b.Embedded() {
		return t.q.saveShared(t.Job.ID, name, data)
	}
	dir := t.q.checkpoints(t.Job.ID)
	total := int64(len(data))
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != name {
			total += info.Size()
		}
	}
	if total > maxCheckpoints {
		return errCheckpoints
	}
	if free, err := t.q.b.Space(); err != nil {
		return err
	} else if free < SpareDisk+int64(len(data)) {
		return ErrNoSpace
	}
	err = files.WriteAtomic(filepath.Join(dir, name), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if err != nil {
		return err
	}
	return files.SyncDir(dir)
}

// saveShared stores a checkpoint for all nodes.
func (q *Queue) saveShared(id, name string, data []byte) error {
	total := int64(len(data))
	names, err := q.saved.List(q.clean, id+"/")
	if err != nil {
		return err
	}
	for _, other := range names {
		if other == id+"/"+name {
			continue
		}
		info, err := q.saved.Info(q.clean, other)
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			return err
		}
		total += info.Bytes
	}
	if total > maxCheckpoints {
		return errCheckpoints
	}
	_, _, err = q.saved.Put(q.clean, id+"/"+name, bytes.NewReader(data))
	return noSpace(err)
}

// LoadCheckpoint returns what SaveCheckpoint stored under a name, in this attempt or an
// earlier one. It returns fs.ErrNotExist, wrapped, if there is nothing.
func (t *Task) LoadCheckpoint(name string) ([]byte, error) {
	if !t.q.b.Embedded() {
		return t.q.loadShared(t.Job.ID + "/" + name)
	}
	data, err := files.ReadAtMost(filepath.Join(t.q.checkpoints(t.Job.ID), name), maxCheckpoints)
	if err == nil && len(data) > maxCheckpoints {
		err = errCheckpoints
	}
	return data, err
}

// loadShared returns a checkpoint that a node has stored. An attempt that was lost may replace
// it meanwhile.
func (q *Queue) loadShared(name string) (data []byte, err error) {
	for range 3 {
		var c *Content
		c, err = q.saved.Open(q.clean, name)
		if errors.Is(err, broker.ErrNotFound) {
			return nil, fmt.Errorf("%w: %s", fs.ErrNotExist, name)
		}
		if err == nil && c.Bytes > maxCheckpoints {
			return nil, errCheckpoints
		}
		if err == nil {
			data, err = io.ReadAll(c)
		}
		if err == nil || q.clean.Err() != nil {
			break
		}
	}
	return data, err
}

// removeCheckpoints removes the checkpoints of a job.
func (q *Queue) removeCheckpoints(id string) error {
	if q.b.Embedded() {
		return os.RemoveAll(q.checkpoints(id))
	}
	names, err := q.saved.List(q.clean, id+"/")
	for _, name := range names {
		err = errors.Join(err, q.saved.Remove(q.clean, name))
	}
	return err
}

// tidyCheckpoints removes checkpoints of jobs that have ended or do not exist, and files
// that were not written completely.
func (q *Queue) tidyCheckpoints(ctx context.Context) error {
	jobs, err := os.ReadDir(filepath.Join(q.b.Dir(), checkpointsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, job := range jobs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		id := job.Name()
		if e := q.jobs[id]; e == nil || e.record.State.Final() {
			if err := q.removeCheckpoints(id); err != nil {
				return err
			}
			continue
		}
		entries, err := os.ReadDir(q.checkpoints(id))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), files.TemporaryPrefix) {
				if err := os.Remove(filepath.Join(q.checkpoints(id), e.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
