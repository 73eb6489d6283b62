package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/bulk"
	"github.com/deepmed/anomaly/internal/jobs"
)

// jobService is the queue of jobs and its worker. Without a folder for data, the queue
// is opened with the first job: a service without jobs needs no memory for it.
type jobService struct {
	server     *Server
	tempParent string
	mu         sync.Mutex
	queue      *jobs.Queue    // nil before the first job
	broker     *broker.Broker // of the queue
	bulk       *bulk.Bulk     // of the queue
	temp       *tempDir       // of the queue; nil with Options.DataDir
	worker     sync.WaitGroup
	closed     bool
	attached   *jobs.Attached // the jobs of /train
}

// open returns the queue, and opens it if necessary.
func (j *jobService) open() (*jobs.Queue, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.queue != nil:
		return j.queue, nil
	case j.closed:
		return nil, errShuttingDown
	}
	s := j.server
	b := s.options.Broker
	if b == nil {
		var err error
		if b, err = j.openFolder(); err != nil {
			return nil, err
		}
		j.broker = b
	}
	queue, err := jobs.Open(s.base, b, jobs.Options{MaxJobs: s.options.StoredJobs, MaxAge: s.options.JobAge, MaxBytes: s.options.JobBytes, Log: s.log})
	if err != nil {
		return nil, errors.Join(err, j.closeFolder())
	}
	if j.bulk, err = s.openBulk(queue, b); err != nil {
		return nil, errors.Join(err, queue.Close(), j.closeFolder())
	}
	j.queue = queue
	s.judgePieces(j.bulk)
	for _, w := range s.workers() {
		j.worker.Go(func() { queue.Run(s.accepting, s.base, w) })
	}
	if !s.options.ProbesOnly {
		j.worker.Go(func() { queue.Notify(s.accepting, s.callBack) })
		j.worker.Go(func() { queue.Keep(s.accepting) })
	}
	return queue, nil
}

// workers returns the workers of the kinds of jobs that this process does.
func (s *Server) workers() []jobs.Worker {
	all := []jobs.Worker{{
		Kind: jobs.KindTrain,
		Admit: func(ctx context.Context) (func(), error) {
			return s.trainingSlots.release, s.trainingSlots.wait(ctx)
		},
		Run:      s.runJob,
		Ended:    s.jobEnded,
		Parallel: s.options.Parallel,
	}, {
		Kind:  kindDetect,
		Admit: func(context.Context) (func(), error) { return func() {}, nil },
		Run:   s.runDetection,
		Ended: func(j jobs.Job) {
			s.jobEnded(j)
			s.removePieces(j)
		},
		Parallel: max(s.options.Parallel, parallelDetections),
	}}
	return slices.DeleteFunc(all, func(w jobs.Worker) bool { return !s.does(w.Kind) })
}

// does reports whether this process does jobs of a kind.
func (s *Server) does(kind string) bool {
	return s.options.Broker == nil || slices.Contains(s.options.Work, kind)
}

// JobKinds lists the kinds of what a worker may do.
func JobKinds() []string { return []string{jobs.KindTrain, kindDetect, WorkStream} }

// openFolder opens the store of the queue of a service alone.
func (j *jobService) openFolder() (*broker.Broker, error) {
	s := j.server
	store := broker.Options{Log: s.log}
	if s.options.DataDir != "" {
		store.Dir = filepath.Join(s.options.DataDir, "jobs")
	} else {
		parent := j.tempParent
		if parent == "" {
			parent = os.TempDir()
		}
		temp, err := lockedTempDir(parent, jobsPrefix)
		if err != nil {
			return nil, err
		}
		j.temp = temp
		store.Dir = filepath.Join(temp.path, jobsStore)
	}
	b, err := broker.Open(s.base, store)
	if err == nil {
		return b, nil
	}
	if !errors.Is(err, broker.ErrInUse) {
		err = fmt.Errorf("the jobs in %s cannot be read: %w", store.Dir, err)
	}
	return nil, errors.Join(err, j.closeFolder())
}

// closeFolder closes the store of a service alone.
func (j *jobService) closeFolder() error {
	var err error
	if j.broker != nil {
		err = j.broker.Close()
	}
	if j.temp != nil {
		err = errors.Join(err, j.temp.Close())
	}
	j.broker, j.temp = nil, nil
	return err
}

// background runs f unless the queue is being closed, which waits for it.
func (j *jobService) background(f func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.worker.Go(f)
	}
}

// existing returns the queue, or nil before the first job.
func (j *jobService) existing() *jobs.Queue {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.queue
}

// stats returns the number of jobs in each state and the bytes that they have.
func (j *jobService) stats() (map[jobs.State]int, int64) {
	if q := j.existing(); q != nil {
		return q.Stats()
	}
	return nil, 0
}

// loads returns how the jobs of each kind wait and run.
func (j *jobService) loads() map[string]jobs.Load {
	if q := j.existing(); q != nil {
		return q.Loads()
	}
	return nil
}

// close waits for the worker, which must have been stopped, and closes the queue.
func (j *jobService) close() error {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	queue := j.queue
	j.queue, j.closed = nil, true
	j.mu.Unlock()
	j.worker.Wait()
	var err error
	if queue != nil {
		err = queue.Close()
	}
	return errors.Join(err, j.closeFolder())
}
