package jobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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

// checkpoints returns the folder of a job's checkpoints.
func (q *Queue) checkpoints(id string) string { return filepath.Join(q.o.Dir, checkpointsDir, id) }

// SaveCheckpoint stores data durably under a name, from which another attempt can go on,
// and replaces what was there. The checkpoints are removed when the job ends; of a job that
// has ended, nothing is stored.
func (t *Task) SaveCheckpoint(name string, data []byte) error {
	if j, err := t.q.Get(t.Job.ID); err != nil || j.State.Final() {
		return nil
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
	if free, err := files.FreeSpace(t.q.o.Dir); err != nil {
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

// LoadCheckpoint returns what SaveCheckpoint stored under a name, in this attempt or an
// earlier one. It returns fs.ErrNotExist, wrapped, if there is nothing.
func (t *Task) LoadCheckpoint(name string) ([]byte, error) {
	data, err := files.ReadAtMost(filepath.Join(t.q.checkpoints(t.Job.ID), name), maxCheckpoints)
	if err == nil && len(data) > maxCheckpoints {
		err = errCheckpoints
	}
	return data, err
}

// removeCheckpoints removes the checkpoints of a job.
func (q *Queue) removeCheckpoints(id string) error { return os.RemoveAll(q.checkpoints(id)) }

// tidyCheckpoints removes checkpoints of jobs that have ended or do not exist, and files
// that were not written completely.
func (q *Queue) tidyCheckpoints(ctx context.Context) error {
	jobs, err := os.ReadDir(filepath.Join(q.o.Dir, checkpointsDir))
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
