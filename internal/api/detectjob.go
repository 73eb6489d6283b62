package api

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/broker"
	"github.com/deepmed/anomaly/internal/bulk"
	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/trainer"
	"github.com/gofiber/fiber/v2"
)

const (
	// kindDetect is the kind of a job that judges images.
	kindDetect = "detect"
	// parallelDetections is the number of jobs of this kind that a process coordinates at
	// once. All processes share the work of each.
	parallelDetections = 4
	// resultsMemory is an estimate of the memory of results that are sent as CSV, in bytes.
	resultsMemory = jobs.ContentMemory + 2<<20
)

// Files and fields of a job that judges images.
const (
	partImages     = "images"
	fileModel      = "modelFile" // the version that was the current one when the job was accepted
	fieldModel     = "model"
	fieldThreshold = "threshold"
	fieldSHA256    = "model_sha256"
	fieldLine      = "line_bytes" // see bulk.LineBytes
)

var (
	errNoImageZip       = badRequest("No images uploaded: send a zip of them as the part images")
	errDetectionTooLong = &problem{fiber.StatusServiceUnavailable, "The job took longer than this service allows; send fewer images"}

	errNoModelName = badRequest("No model named: send the name of a stored model as the field model")
)

// detectJobFields returns the fields of the form of a job that judges images, besides those
// that all jobs have.
func (s *Server) detectJobFields() map[string]field {
	return map[string]field{
		"kind":         {maxBytes: maxFieldBytes},
		fieldModel:     {maxBytes: maxFieldBytes},
		fieldThreshold: {maxBytes: maxFieldBytes},
		partImages:     {maxBytes: s.options.BodyBytes, spool: true},
	}
}

// openBulk opens the pieces of the jobs of a queue.
func (s *Server) openBulk(q *jobs.Queue, b *broker.Broker) (*bulk.Bulk, error) {
	return bulk.Open(s.base, bulk.Options{
		Broker: b, Scheduler: s.scheduler, Threads: s.engine.Threads(), Images: s.options.Images, Log: s.log,
		Unfinished: func(_ context.Context, id string) (bool, error) {
			job, err := q.Get(id)
			if errors.Is(err, jobs.ErrUnknown) {
				return false, nil
			}
			return err == nil && !job.State.Final(), err
		},
		Detector: func(ctx context.Context, id, sha256 string) (*inference.Detector, func(), error) {
			return s.cache.Get(ctx, sha256, func() (*inference.Detector, error) {
				file, err := readUpload(s.base, q, id, s.options.Models.MaxBytes)
				if err != nil {
					return nil, err
				}
				return s.loadDetector(file)
			})
		},
	})
}

// readUpload returns the model's file of a job. It returns bulk.ErrModel, wrapped, if there
// is none any more.
func readUpload(ctx context.Context, q *jobs.Queue, id string, limit int64) ([]byte, error) {
	content, err := q.Upload(ctx, id, fileModel)
	if err == nil && content.Bytes > limit {
		err = fmt.Errorf("the model of a job has %d bytes, at most %d are allowed", content.Bytes, limit)
	}
	if errors.Is(err, jobs.ErrUnknown) {
		err = fmt.Errorf("%w: %w", bulk.ErrModel, err)
	}
	if err != nil {
		return nil, err
	}
	return io.ReadAll(content)
}

// judgePieces starts to judge the pieces of jobs, in a process that does such jobs.
func (s *Server) judgePieces(b *bulk.Bulk) {
	if !s.does(kindDetect) {
		return
	}
	s.jobs.worker.Go(func() { b.Work(s.accepting, s.base) })
	s.jobs.worker.Go(func() { b.Keep(s.accepting) })
}

// removePieces removes the pieces of a job that has ended, in the background. What it does
// not remove, another process or the next start does.
func (s *Server) removePieces(j jobs.Job) {
	_, b := s.jobs.pieces()
	if j.Kind != kindDetect || !j.State.Final() || b == nil {
		return
	}
	s.jobs.background(func() {
		if err := b.Remove(s.base, j.ID); err != nil && s.base.Err() == nil {
			s.log.Warn("cannot remove the pieces of a job", slog.String("job", j.ID), slog.Any("error", err))
		}
	})
}

// pieces returns the queue and its pieces, or nil before the first job.
func (j *jobService) pieces() (*jobs.Queue, *bulk.Bulk) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.queue, j.bulk
}

// detectRequest returns the request of a job that judges images. It contains the model's
// file, so that the whole job is judged by one version, whatever happens to the model.
func (s *Server) detectRequest(c *fiber.Ctx, f *form) (r jobs.Request, err error) {
	name := f.text(fieldModel)
	switch {
	case s.registry == nil:
		return r, errNoRegistry
	case name == "":
		return r, errNoModelName
	case f.files[partImages] == nil:
		return r, errNoImageZip
	}
	upload, err := spooledFile(f, partImages)
	if err != nil {
		return r, err
	}
	images, err := dataset.OpenImages(f.files[partImages], upload.Bytes, s.options.Dataset)
	if err != nil {
		return r, err
	}
	ctx, done := s.workContext(c)
	defer done()
	e, err := s.registry.Get(ctx, name)
	if err != nil {
		return r, err
	}
	if err := reservationOf(c).reserve(int(e.Bytes)); err != nil {
		return r, err
	}
	reserved := e.Bytes
	e, model, err := s.namedFile(ctx, name)
	if err != nil {
		return r, err
	}
	if more := int64(len(model)) - reserved; more > 0 { // another version
		if err := reservationOf(c).reserve(int(more)); err != nil {
			return r, err
		}
	}
	line := bulk.LineBytes(e.Metadata.Classes())
	if err := bulk.CheckResults(images, line); err != nil {
		return r, err
	}
	r = jobs.Request{Kind: kindDetect, Name: name, Fields: map[string]string{fieldSHA256: e.SHA256, fieldLine: strconv.Itoa(line)},
		Files: []jobs.File{upload, {Name: fileModel, Bytes: int64(len(model)), Reader: bytes.NewReader(model)}}}
	if text := f.text(fieldThreshold); text != "" {
		threshold, err := strconv.ParseFloat(text, 64)
		if _, ok := e.Metadata.WithThreshold(threshold); err != nil || !ok {
			return r, fmt.Errorf("%w: %.40q, expected a number of 0 or more", trainer.ErrThreshold, text)
		}
		r.Fields[fieldThreshold] = text
	}
	return r, nil
}

// namedFile returns a stored model and its file.
func (s *Server) namedFile(ctx context.Context, name string) (registry.Entry, []byte, error) {
	for try := 0; ; try++ {
		e, err := s.registry.Get(ctx, name)
		if err != nil {
			return e, nil, err
		}
		file, err := s.registry.Bytes(ctx, e)
		// The model was replaced between Get and Bytes.
		if errors.Is(err, registry.ErrChanged) && try < maxReloads {
			continue
		}
		return e, file, err
	}
}

// runDetection judges the images of a job. Its errors are sentences for the job's user, or
// broker.ErrUnavailable for a job to be queued again.
func (s *Server) runDetection(ctx context.Context, t *jobs.Task) (r jobs.Result, err error) {
	q, b := s.jobs.pieces()
	if q == nil {
		return r, fmt.Errorf("%w: %w", broker.ErrUnavailable, errShuttingDown)
	}
	if s.options.TrainTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.options.TrainTime, errDetectionTooLong)
		defer cancel()
	}
	file, err := os.CreateTemp(s.options.TempDir, "upload-*")
	if err != nil {
		return r, s.jobError(t.Job.ID, err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	results, images, err := s.coordinate(ctx, q, b, t, file)
	if err == nil {
		// The queue reads the results after this function has returned.
		return jobs.Result{Results: results.Reader(s.base), Warnings: images.Warnings()}, nil
	}
	var failure *bulk.Failure
	switch {
	case errors.Is(context.Cause(ctx), jobs.ErrCancelled):
		if err := b.Remove(s.base, t.Job.ID); err != nil && s.base.Err() == nil {
			s.log.Warn("cannot remove the pieces of a job", slog.String("job", t.Job.ID), slog.Any("error", err))
		}
	case errors.Is(err, errShuttingDown), errors.Is(err, broker.ErrUnavailable):
		return r, fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	case errors.As(err, &failure):
		return r, failure
	case errors.Is(err, bulk.ErrNoSpace), broker.IsNoSpace(err):
		return r, jobs.ErrNoSpace
	}
	return r, s.jobError(t.Job.ID, err)
}

// coordinate copies the zip of a job to a file and lets all processes judge its images.
// When the service shuts down, it returns errShuttingDown.
func (s *Server) coordinate(ctx context.Context, q *jobs.Queue, b *bulk.Bulk, t *jobs.Task, file *os.File) (*bulk.Results, *dataset.ImageList, error) {
	content, err := t.Open(ctx, partImages)
	if err != nil {
		return nil, nil, err
	}
	spool := &spoolWriter{w: file}
	if s.spoolsBesideJobs {
		spool.check = s.checkDisk
	}
	if _, err := io.Copy(spool, content); err != nil {
		return nil, nil, err
	}
	images, err := dataset.OpenImages(file, content.Bytes, s.options.Dataset)
	if err != nil {
		return nil, nil, err
	}
	line, err := strconv.Atoi(t.Fields[fieldLine])
	if err != nil {
		return nil, nil, err
	}
	job := bulk.Job{ID: t.Job.ID, Images: images, Model: t.Fields[fieldSHA256], Line: line, Sharers: func() int { return q.Sharers(t.Job.ID) }}
	if text := t.Fields[fieldThreshold]; text != "" {
		threshold, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, nil, err
		}
		job.Threshold = &threshold
	}
	job.Progress = func(n bulk.Counts) { t.Progress(detectionProgress(n, images.Len()), nil) }
	job.Progress(bulk.Counts{})
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.accepting, func() { cancel(errShuttingDown) })()
	results, err := b.Run(ctx, job)
	return results, images, err
}

// detectionProgress returns the progress of a job that has judged some of all its images.
func detectionProgress(n bulk.Counts, all int) jobs.Progress {
	return jobs.Progress{Phase: "judging images", Fraction: float64(n.Judged+n.Unreadable) / float64(all),
		Images: &jobs.ImageProgress{All: all, Judged: n.Judged, Anomalous: n.Anomalous, Unreadable: n.Unreadable}}
}

// jobResults answers GET /jobs/{id}/results with the lines of a job that has judged images,
// as they are stored or as CSV.
func (s *Server) jobResults(c *fiber.Ctx) error {
	format := cmp.Or(c.Query("format"), "jsonl")
	if format != "jsonl" && format != "csv" {
		return badRequest(fmt.Sprintf("The format %.40q is not known: use jsonl or csv", format))
	}
	id := jobID(c)
	store, err := s.jobs.storeOf(id)
	if err != nil {
		return err
	}
	q, ok := store.(*jobs.Queue)
	if !ok {
		return fmt.Errorf("%w: its kind is %s", jobs.ErrNoResults, jobs.KindTrain)
	}
	// The results are read while they are sent, after the handler has returned.
	results, err := q.Results(s.base, id)
	if err != nil {
		return err
	}
	c.Attachment("results." + format)
	if format == "jsonl" {
		if err := reservationOf(c).reserve(jobs.ContentMemory); err != nil {
			return err
		}
		c.Set(fiber.HeaderContentType, "application/jsonl")
		reservationOf(c).stream(c, results, results.Bytes, jobs.ContentMemory)
		return nil
	}
	if err := reservationOf(c).reserve(resultsMemory); err != nil {
		return err
	}
	c.Set(fiber.HeaderContentType, "text/csv; charset=utf-8")
	reservationOf(c).stream(c, newCSVReader(results), -1, resultsMemory)
	return nil
}

// csvReader reads lines of results as CSV.
type csvReader struct {
	lines *json.Decoder
	csv   *bulk.CSVWriter
	rows  bytes.Buffer
	err   error
}

func newCSVReader(results io.Reader) *csvReader {
	r := &csvReader{lines: json.NewDecoder(bufio.NewReader(results))}
	r.csv = bulk.NewCSVWriter(&r.rows)
	return r
}

// csvChunk is the number of bytes of rows that a csvReader has at most, but for the last.
const csvChunk = 32 << 10

func (r *csvReader) Read(p []byte) (int, error) {
	for r.rows.Len() == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.fill()
	}
	return r.rows.Read(p)
}

// fill reads the next lines.
func (r *csvReader) fill() {
	for r.err == nil && r.rows.Len() < csvChunk {
		var l bulk.Line
		if r.err = r.lines.Decode(&l); r.err == nil {
			r.err = r.csv.Write(l)
		}
	}
	if r.err == nil || errors.Is(r.err, io.EOF) {
		r.err = cmp.Or(r.csv.Flush(), r.err)
	}
}
