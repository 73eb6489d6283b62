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

// detect answers POST /detect: the verdict on one image, or a list of them.
func (s *Server) detect(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	f, err := s.readForm(c, map[string]field{
		"modelFile":    {limit: s.options.Models.MaxBytes, hash: true, known: s.cache.UploadMatcher},
		"imageFile":    {limit: s.options.Images.MaxBytes, many: s.options.RequestImages},
		"metadataFile": {limit: models.MaxMetadataBytes},
		"explain":      {limit: maxFieldBytes},
	})
	if err != nil {
		return err
	}
	defer f.Close()
	laps := s.metrics.laps(workDetect, arrival(c))
	laps.done(stageReceive)
	model := f.memory["modelFile"]
	if len(model) == 0 || !f.images() {
		return errNoModelImage
	}
	return s.judge(c, laps, f, func(ctx context.Context) (*inference.Detector, func(), error) {
		read := false
		d, release, err := s.cache.Get(ctx, f.sums["modelFile"], func() (*inference.Detector, error) {
			read = true
			return s.read(model)
		})
		if err == nil && !read {
			// It came a second time, and will come again.
			if !d.Remembers() {
				d.Remember(bytes.Clone(model))
			}
			f.unused("modelFile")
		}
		return d, release, err
	})
}

// read makes a detector of a model file's bytes.
func (s *Server) read(file []byte) (*inference.Detector, error) {
	var m *models.Model
	// A model that one request began to load is loaded for the others, too,
	// when its client leaves: only the server's end stops it.
	err := s.schedule.Work(s.base, func() (err error) {
		m, err = models.Read(file, s.options.Models)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.detector(m)
}

// detector makes a detector of a model.
func (s *Server) detector(m *models.Model) (d *inference.Detector, err error) {
	err = s.schedule.Work(s.base, func() error {
		d, err = inference.NewDetector(s.engine, m, 0)
		return err
	})
	return d, err
}

// images says whether an image was sent.
func (f *form) images() bool {
	for _, u := range f.lists["imageFile"] {
		if len(u.data) > 0 {
			return true
		}
	}
	return false
}

// judgement is an entry of the list that several images are answered with: a
// verdict, or why there is none.
type judgement struct {
	File string `json:"file,omitempty"`
	*inference.Verdict
	*inference.Evidence
	Error string `json:"error,omitempty"`
}

// judge answers a form's images by the model that get gives.
func (s *Server) judge(c *fiber.Ctx, laps *laps, f *form, get func(context.Context) (*inference.Detector, func(), error)) error {
	var meta *models.Metadata
	if data := f.memory["metadataFile"]; len(bytes.TrimSpace(data)) > 0 {
		m, err := models.ParseMetadata(data)
		if err != nil {
			return err
		}
		meta = &m
	}
	evidence, picture, err := wanted(c, f)
	if err != nil {
		return err
	}
	ctx, done := s.working(c)
	defer done()
	if err := s.running.enter(ctx); err != nil {
		return err
	}
	defer s.running.leave()
	laps.done(stageQueue)
	d, release, err := get(ctx)
	if err != nil {
		return s.closing(err)
	}
	defer release()
	laps.done(stageLoad)
	images := f.lists["imageFile"]
	if len(images) == 1 && evidence {
		x, err := s.explain(ctx, *laps, d, images[0].data, meta)
		if err != nil {
			return s.closing(err)
		}
		if picture {
			c.Set(fiber.HeaderContentType, "image/png")
			return c.Send(x.Heatmap)
		}
		return c.JSON(x)
	}
	if len(images) == 1 {
		v, err := s.judgeImage(ctx, *laps, d, images[0].data, meta)
		if err != nil {
			return s.closing(err)
		}
		return c.JSON(v)
	}
	list := make([]judgement, len(images))
	group, ctx := errgroup.WithContext(ctx)
	for i, image := range images {
		group.Go(func() error {
			list[i].File = image.file
			var x inference.Explanation
			err := error(nil)
			if evidence {
				var full *inference.Explanation
				if full, err = s.explain(ctx, *laps, d, image.data, meta); err == nil {
					x, list[i].Evidence = *full, &full.Evidence
				}
			} else {
				x.Verdict, err = s.judgeImage(ctx, *laps, d, image.data, meta)
			}
			switch {
			case errors.Is(err, imagefile.ErrImage), errors.Is(err, imagefile.ErrTooLarge):
				list[i].Error = sentence(err)
				return nil
			case err != nil:
				return err
			}
			list[i].Verdict = &x.Verdict
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return s.closing(err)
	}
	return c.JSON(list)
}

// judgeImage gives the verdict on one image. Its laps are its own: those of a
// request's images go on side by side.
func (s *Server) judgeImage(ctx context.Context, laps laps, d *inference.Detector, image []byte, meta *models.Metadata) (inference.Verdict, error) {
	v, err := s.schedule.Detect(ctx, d, inference.Task{Image: image, Metadata: meta, Limits: s.options.Images,
		Decoded: func() { laps.done(stageDecode) }})
	if err == nil {
		laps.done(stageInfer)
	}
	return v, err
}

// closing makes what a closed cache or detector says the server's own words.
func (s *Server) closing(err error) error {
	if errors.Is(err, inference.ErrClosed) && s.draining.Load() {
		return errShuttingDown
	}
	return err
}
