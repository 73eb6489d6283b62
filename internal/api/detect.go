package api

import (
	"bytes"
	"context"
	"errors"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
	"golang.org/x/sync/errgroup"
)

// detect answers POST /detect with the result of one image, or a list of results.
func (s *Server) detect(c *fiber.Ctx) error {
	f, timer, err := s.receiveForm(c, workDetect, map[string]field{
		"modelFile":    {maxBytes: s.options.Models.MaxBytes, hash: true, known: s.cache.UploadMatcher},
		"imageFile":    {maxBytes: s.options.Images.MaxBytes, maxTotal: s.options.RequestImages},
		"metadataFile": {maxBytes: models.MaxMetadataBytes},
		"explain":      {maxBytes: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	model := f.memory["modelFile"]
	if len(model) == 0 || !f.hasImage() {
		return errNoModelImage
	}
	return s.detectImages(c, timer, f, func(ctx context.Context) (judge, string, error) {
		loaded := false
		d, release, err := s.cache.Get(ctx, f.hashes["modelFile"], func() (*inference.Detector, error) {
			loaded = true
			return s.loadDetector(model)
		})
		if err == nil && !loaded {
			// A model sent twice is likely to be sent again: keep its file for the
			// upload matcher.
			if !d.Remembers() {
				d.Remember(bytes.Clone(model))
			}
			f.markReusable("modelFile")
		}
		if err != nil {
			return nil, "", err
		}
		return &localJudge{server: s, d: d, free: release}, "", nil
	})
}

// loadDetector returns a detector for a model file.
func (s *Server) loadDetector(file []byte) (*inference.Detector, error) {
	var m *models.Model
	// Other requests may wait for the same model, so that it is loaded even if this
	// request's client disconnects.
	err := s.scheduler.Work(s.base, func() (err error) {
		m, err = models.Read(file, s.options.Models)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.newDetector(m)
}

// newDetector returns a detector for a model.
func (s *Server) newDetector(m *models.Model) (d *inference.Detector, err error) {
	err = s.scheduler.Work(s.base, func() error {
		d, err = inference.NewDetector(s.engine, m, 0)
		return err
	})
	return d, err
}

// hasImage reports whether the form has an image that is not empty.
func (f *form) hasImage() bool {
	for _, u := range f.lists["imageFile"] {
		if len(u.data) > 0 {
			return true
		}
	}
	return false
}

// imageResult is the result of one image: a verdict, or the reason why there is none. In
// JSON, the fields of Verdict and Evidence are those of the result itself.
type imageResult struct {
	File string `json:"file,omitempty"`
	*inference.Verdict
	*inference.Evidence
	Error string `json:"error,omitempty"`
}

// detectImages answers with the results of the form's images. It gets the judge from open,
// after the request is admitted, and the SHA-256 of the judge's model for the answer's header;
// empty for none.
func (s *Server) detectImages(c *fiber.Ctx, timer *stageTimer, f *form, open func(context.Context) (j judge, version string, err error)) error {
	var meta *models.Metadata
	if data := f.memory["metadataFile"]; len(bytes.TrimSpace(data)) > 0 {
		m, err := models.ParseMetadata(data)
		if err != nil {
			return err
		}
		meta = &m
	}
	explain, err := parseExplain(c, f)
	if err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	if err := s.detectionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.detectionSlots.release()
	timer.done(stageQueue)
	j, version, err := open(ctx)
	if err != nil {
		return s.shutdownError(err)
	}
	defer j.release()
	timer.done(stageLoad)
	if version != "" {
		c.Set(headerModelSHA256, version)
	}
	detect := func(ctx context.Context, image upload) (imageResult, error) {
		return j.judge(ctx, *timer, image.data, meta, explain)
	}
	images := f.lists["imageFile"]
	if len(images) > 1 {
		list, err := detectAll(ctx, images, detect)
		if err != nil {
			return s.shutdownError(err)
		}
		return c.JSON(list)
	}
	r, err := detect(ctx, images[0])
	switch {
	case err != nil:
		return s.shutdownError(err)
	case explain.png:
		c.Set(fiber.HeaderContentType, "image/png")
		return c.Send(r.Heatmap)
	}
	return c.JSON(r)
}

// detectAll returns the results of several images, in their order. An image that cannot
// be read has its error as its result; any other error ends the whole request.
func detectAll(ctx context.Context, images []upload, detect func(context.Context, upload) (imageResult, error)) ([]imageResult, error) {
	list := make([]imageResult, len(images))
	group, ctx := errgroup.WithContext(ctx)
	for i, image := range images {
		group.Go(func() error {
			r, err := detect(ctx, image)
			if errors.Is(err, imagefile.ErrImage) || errors.Is(err, imagefile.ErrTooLarge) || errors.Is(err, inference.ErrGrid) {
				r, err = imageResult{Error: sentence(err)}, nil
			}
			r.File = image.file
			list[i] = r
			return err
		})
	}
	return list, group.Wait()
}

// detectImage returns the result of one image. Images of a request run concurrently,
// each with its own copy of the timer.
func (s *Server) detectImage(ctx context.Context, timer stageTimer, d *inference.Detector, image []byte, meta *models.Metadata, explain explanation) (imageResult, error) {
	task := inference.Task{Image: image, Metadata: meta, Limits: s.options.Images,
		Decoded: func() { timer.done(stageDecode) }}
	if explain.wanted {
		task.Overlay = explain.overlay
		x, err := s.scheduler.Explain(ctx, d, task)
		if err != nil {
			return imageResult{}, err
		}
		timer.done(stageInfer)
		return imageResult{Verdict: &x.Verdict, Evidence: &x.Evidence}, nil
	}
	v, err := s.scheduler.Detect(ctx, d, task)
	if err != nil {
		return imageResult{}, err
	}
	timer.done(stageInfer)
	return imageResult{Verdict: &v}, nil
}

// shutdownError returns errShuttingDown for the error of a cache or a detector that was
// closed by Shutdown, and other errors as they are.
func (s *Server) shutdownError(err error) error {
	if errors.Is(err, inference.ErrClosed) && s.draining.Load() {
		return errShuttingDown
	}
	return err
}
