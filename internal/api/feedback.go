package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/calibration"
	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
	"golang.org/x/sync/errgroup"
)

// maxFilename is the maximum length of a feedback's file name, in bytes.
const maxFilename = 255

var errManyFeedback = badRequest("Send one image with its label, and several were sent")

// mediaTypes are those of the formats that imagefile reads.
var mediaTypes = map[imagefile.Format]string{
	imagefile.PNG: "image/png", imagefile.JPEG: "image/jpeg", imagefile.GIF: "image/gif",
	imagefile.BMP: "image/bmp", imagefile.TIFF: "image/tiff", imagefile.WebP: "image/webp",
	imagefile.DICOM: "application/dicom",
}

// feedbackItem is feedback in an answer.
type feedbackItem struct {
	ID        string         `json:"id"`
	Label     feedback.Label `json:"label"`
	Filename  string         `json:"filename"`
	Score     *float64       `json:"anomaly_score"`
	IsAnomaly bool           `json:"is_anomaly"`
	CreatedAt time.Time      `json:"created_at"`
}

func newFeedbackItem(r feedback.Record, e registry.Entry) feedbackItem {
	_, threshold := e.Metadata.Measure()
	return feedbackItem{r.ID, r.Label, r.Filename, r.Score, r.Score != nil && *r.Score > threshold, r.CreatedAt}
}

// addFeedback answers POST /models/{name}/feedback.
func (s *Server) addFeedback(c *fiber.Ctx) error {
	name, err := s.acceptForModel(c)
	if err != nil {
		return err
	}
	f, timer, err := s.receiveForm(c, workDetect, map[string]field{
		"imageFile": {maxBytes: s.options.Images.MaxBytes, maxTotal: s.options.Images.MaxBytes},
		"label":     {maxBytes: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if !f.hasImage() {
		return errNoImage
	}
	if len(f.lists["imageFile"]) > 1 {
		return errManyFeedback
	}
	image := f.lists["imageFile"][0]
	r := feedback.Record{Filename: cleanFilename(image.file)}
	if r.Label, err = feedback.ParseLabel(f.text("label")); err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	v, err := s.judgeFeedback(ctx, name, image.data, timer)
	if err != nil {
		return s.shutdownError(err)
	}
	r.Score, r.Scores = &v.AnomalyScore, s.scoresOf(ctx, name, v.ModelSHA256)
	if r, err = s.storeFeedback(ctx, name, r, image.data); err != nil {
		return err
	}
	s.log.Info("feedback stored", slog.String("id", requestID(c)), slog.String("name", name), slog.String("image", r.ID), slog.String("label", string(r.Label)))
	e, records, err := s.currentFeedback(ctx, name)
	if err != nil {
		return s.shutdownError(err)
	}
	for _, current := range records {
		if current.ID == r.ID {
			r = current
		}
	}
	return c.Status(fiber.StatusCreated).JSON(struct {
		feedbackItem
		Summary feedback.Summary `json:"summary"`
	}{newFeedbackItem(r, e), summarize(e, records, nil)})
}

// judgeFeedback decodes and judges an image. The verdict is not one of the model's recent
// ones: the image was sent before.
func (s *Server) judgeFeedback(ctx context.Context, name string, image []byte, timer *stageTimer) (inference.Verdict, error) {
	if err := s.detectionSlots.acquire(ctx); err != nil {
		return inference.Verdict{}, err
	}
	defer s.detectionSlots.release()
	timer.done(stageQueue)
	d, release, err := s.namedDetector(ctx, name)
	if err != nil {
		return inference.Verdict{}, err
	}
	defer release()
	timer.done(stageLoad)
	return s.scheduler.Detect(ctx, d, inference.Task{Image: image, Limits: s.options.Images, Decoded: func() { timer.done(stageDecode) }})
}

// scoresOf returns the identity of the scores of a model's version.
func (s *Server) scoresOf(ctx context.Context, name, sha256 string) string {
	list, err := s.registry.Versions(ctx, name)
	if err == nil {
		for _, v := range list {
			if v.SHA256 == sha256 {
				return v.Scores
			}
		}
	}
	return sha256
}

// storeFeedback stores an image unless its model was deleted meanwhile.
func (s *Server) storeFeedback(ctx context.Context, name string, r feedback.Record, image []byte) (feedback.Record, error) {
	defer s.registry.Hold()()
	e, err := s.registry.Look(ctx, name)
	if err != nil {
		return r, err
	}
	if err := s.checkDisk(len(image)); err != nil {
		return r, err
	}
	return s.named.feedback.Add(ctx, e.Key, r, image)
}

// cleanFilename returns the last element of a file name that a client sent, without control
// characters.
func cleanFilename(name string) string {
	name = strings.ToValidUTF8(name, "")
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	name = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '"' {
			return -1
		}
		return r
	}, name))
	if len(name) > maxFilename {
		name = strings.ToValidUTF8(name[:maxFilename], "")
	}
	if name == "" || name == "." || name == ".." {
		return "image"
	}
	return name
}

// currentFeedback returns a model's entry and its feedback with the scores of that version.
// It computes those that are of an earlier version. A record has no score if the model has
// none for its image.
func (s *Server) currentFeedback(ctx context.Context, name string) (registry.Entry, []feedback.Record, error) {
	for range maxReloads {
		e, err := s.registry.Get(ctx, name)
		if err != nil {
			return e, nil, err
		}
		id := s.scoresOf(ctx, name, e.SHA256)
		records, err := s.named.feedback.List(ctx, e.Key)
		if err != nil {
			return e, nil, err
		}
		if len(scoredByOthers(records, id)) == 0 {
			return e, records, nil
		}
		if err := s.rescore(ctx, e, id); err != nil {
			return e, nil, err
		}
	}
	return registry.Entry{}, nil, errReplaced
}

// scoredByOthers returns the records whose scores are not those of id.
func scoredByOthers(records []feedback.Record, id string) []feedback.Record {
	return slices.DeleteFunc(slices.Clone(records), func(r feedback.Record) bool { return r.Scores == id })
}

// rescore computes the missing scores of feedback by the current version of a model, which
// is e, if its scores are those of id. Scores that are done are stored even if ctx ends. It runs once at a
// time: requests for the same model wait and find the scores, and few images are in memory.
func (s *Server) rescore(ctx context.Context, e registry.Entry, id string) error {
	if err := s.versionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.versionSlots.release()
	records, err := s.named.feedback.List(ctx, e.Key)
	if err != nil {
		return err
	}
	if records = scoredByOthers(records, id); len(records) == 0 {
		return nil
	}
	if err := s.detectionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.detectionSlots.release()
	d, release, err := s.namedDetector(ctx, e.Name)
	if err != nil {
		return err
	}
	defer release()
	if s.scoresOf(ctx, e.Name, d.Model().SHA256) != id {
		return nil // replaced meanwhile: the caller looks again
	}
	var mu sync.Mutex
	scores := map[string]*float64{}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(max(s.engine.Threads(), 1))
	for _, r := range records {
		group.Go(func() error {
			if groupCtx.Err() != nil {
				return context.Cause(groupCtx)
			}
			var score *float64
			_, image, err := s.named.feedback.Image(groupCtx, e.Key, r.ID)
			if err == nil {
				var v inference.Verdict
				if v, err = s.scheduler.Detect(groupCtx, d, inference.Task{Image: image, Limits: s.options.Images}); err == nil {
					score = &v.AnomalyScore
				}
			}
			if err != nil && !inference.IsImageError(err) && !errors.Is(err, feedback.ErrUnknown) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			scores[r.ID] = score
			return nil
		})
	}
	err = group.Wait()
	defer s.registry.Hold()()
	if _, gone := s.registry.Look(s.base, e.Name); gone != nil {
		return gone
	}
	return errors.Join(err, s.named.feedback.SetScores(s.base, e.Key, id, scores))
}

// summarize returns the summary of feedback at a threshold, or at the model's own for nil.
func summarize(e registry.Entry, records []feedback.Record, threshold *float64) feedback.Summary {
	_, own := e.Metadata.Measure()
	lowest := lowestThreshold(e.Metadata, own)
	if threshold == nil {
		threshold = &own
	}
	return feedback.Summarize(records, *threshold, lowest)
}

// lowestThreshold returns the lowest threshold that keeps the false alarm rate that a model
// promises on its calibration images, or NaN if the model does not contain their scores.
func lowestThreshold(md *models.Metadata, own float64) float64 {
	r, ok := calibration.RanksOf(md.Decision)
	if !ok {
		return math.NaN()
	}
	t, err := r.Threshold(max(md.Decision.FalseAlarmRate, r.MinRate()))
	if err != nil {
		return own
	}
	return min(t, own) // of quantiles, the threshold is not known exactly
}

// listFeedback answers GET /models/{name}/feedback.
func (s *Server) listFeedback(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	var threshold *float64
	if text := c.Query("threshold"); text != "" {
		t, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(t) || math.IsInf(t, 0) || t < 0 {
			return badRequest(fmt.Sprintf("The threshold is %.40q, expected a number of 0 or more", text))
		}
		threshold = &t
	}
	ctx, done := s.workContext(c)
	defer done()
	e, records, err := s.currentFeedback(ctx, modelName(c))
	if err != nil {
		return s.shutdownError(err)
	}
	items := make([]feedbackItem, len(records))
	for i, r := range records {
		items[i] = newFeedbackItem(r, e)
	}
	return c.JSON(fiber.Map{"feedback": items, "summary": summarize(e, records, threshold)})
}

// feedbackImage answers GET /models/{name}/feedback/{id}/image.
func (s *Server) feedbackImage(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	name := modelName(c)
	ctx, done := s.workContext(c)
	defer done()
	e, err := s.registry.Look(ctx, name)
	if err != nil {
		return err
	}
	r, image, err := s.named.feedback.Image(ctx, e.Key, strings.Clone(c.Params("id")))
	if err != nil {
		return err
	}
	kind := octetStream
	if format, _ := imagefile.Sniff(image); mediaTypes[format] != "" {
		kind = mediaTypes[format]
	}
	if err := reservationOf(c).reserve(len(image)); err != nil {
		return err
	}
	c.Attachment(r.Filename)
	c.Set(fiber.HeaderContentType, kind)
	reservationOf(c).send(c, image)
	return nil
}

// deleteFeedback answers DELETE /models/{name}/feedback/{id}.
func (s *Server) deleteFeedback(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	name, id := modelName(c), strings.Clone(c.Params("id"))
	ctx, done := s.workContext(c)
	defer done()
	err := func() error {
		defer s.registry.Hold()()
		e, err := s.registry.Look(ctx, name)
		if err != nil {
			return err
		}
		return s.named.feedback.Remove(ctx, e.Key, id)
	}()
	if err != nil {
		return err
	}
	s.log.Info("feedback deleted", slog.String("id", requestID(c)), slog.String("name", name), slog.String("image", id))
	e, records, err := s.currentFeedback(ctx, name)
	if err != nil {
		return s.shutdownError(err)
	}
	return c.JSON(fiber.Map{"summary": summarize(e, records, nil)})
}
