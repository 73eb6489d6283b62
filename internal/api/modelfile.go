package api

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
)

// modelFormat is a format of GET /models/{name}/file.
type modelFormat struct {
	name string
	// file returns the name of the download of a model.
	file func(model string) string
	// kind is the media type.
	kind string
	// write writes a model.
	write func(b *bytes.Buffer, m *models.Model, name string) error
}

const octetStream = "application/octet-stream"

var modelFormats = []modelFormat{
	{string(models.FormatBundle), func(n string) string { return n + ".zip" }, "application/zip",
		func(b *bytes.Buffer, m *models.Model, _ string) error { return exporter.WriteBundle(b, m) }},
	{string(models.FormatCheckpoint), func(n string) string { return n + ".pt" }, octetStream,
		func(b *bytes.Buffer, m *models.Model, _ string) error { return exporter.WriteCheckpoint(b, m) }},
	{string(models.FormatONNX), func(n string) string { return n + ".onnx" }, octetStream,
		func(b *bytes.Buffer, m *models.Model, _ string) error {
			return writeGraph(b, m, exporter.InferenceModel)
		}},
	{"onnx-image", func(n string) string { return n + "_image.onnx" }, octetStream,
		func(b *bytes.Buffer, m *models.Model, _ string) error { return writeGraph(b, m, exporter.ImageModel) }},
	{"triton", func(n string) string { return n + "_triton.zip" }, "application/zip", writeTriton},
}

func writeGraph(b *bytes.Buffer, m *models.Model, lower func(*models.Model) ([]byte, error)) error {
	data, err := lower(m)
	b.Write(data)
	return err
}

// writeTriton writes a zip of the model's entries in a Triton model repository.
func writeTriton(b *bytes.Buffer, m *models.Model, name string) error {
	entries, err := exporter.TritonEntries(m, name)
	if err != nil {
		return err
	}
	z := zip.NewWriter(b)
	for _, e := range entries {
		for _, f := range []struct {
			name string
			data []byte
		}{{e.Name + "/config.pbtxt", e.Config}, {e.Name + "/1/model.onnx", e.Model}} {
			w, err := z.CreateHeader(&zip.FileHeader{Name: f.name, Method: zip.Store}) // weights hardly compress
			if err == nil {
				_, err = w.Write(f.data)
			}
			if err != nil {
				return err
			}
		}
	}
	return z.Close()
}

func parseModelFormat(text string) (modelFormat, error) {
	var names []string
	for _, f := range modelFormats {
		if f.name == text {
			return f, nil
		}
		names = append(names, f.name)
	}
	return modelFormat{}, badRequest(fmt.Sprintf("The format is %.40q, expected ?format= with one of %s", text, strings.Join(names, ", ")))
}

// modelFile answers GET /models/{name}/file. A stored zip is sent as it is; any other file is
// written from the model, so that it has the model's threshold.
func (s *Server) modelFile(c *fiber.Ctx) error {
	if s.registry == nil {
		return errNoRegistry
	}
	name := modelName(c)
	if _, err := s.registry.Look(s.base, name); err != nil {
		return err
	}
	format, err := parseModelFormat(strings.Clone(c.Query("format")))
	if err != nil {
		return err
	}
	ctx, done := s.workContext(c)
	defer done()
	if err := s.versionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.versionSlots.release()
	file, err := s.readOrWriteModel(ctx, name, format)
	if err != nil {
		return s.shutdownError(err)
	}
	tag := `"` + models.Identity(file) + `"`
	c.Set(fiber.HeaderETag, tag)
	// Clients may keep the file if they ask each time whether it is still the same.
	c.Set(fiber.HeaderCacheControl, "private, no-cache")
	if c.Get(fiber.HeaderIfNoneMatch) == tag {
		return c.SendStatus(fiber.StatusNotModified)
	}
	if err := reservationOf(c).reserve(len(file)); err != nil {
		return err
	}
	c.Attachment(format.file(name))
	c.Set(fiber.HeaderContentType, format.kind)
	reservationOf(c).send(c, file)
	return nil
}

func (s *Server) readOrWriteModel(ctx context.Context, name string, format modelFormat) ([]byte, error) {
	for try := 0; ; try++ {
		e, err := s.registry.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		if format.name != string(models.FormatBundle) || e.Format != models.FormatBundle {
			break
		}
		file, err := s.registry.Bytes(ctx, e)
		if errors.Is(err, registry.ErrChanged) && try < maxReloads {
			continue
		}
		return file, err
	}
	d, release, err := s.namedDetector(ctx, name)
	if err != nil {
		return nil, err
	}
	defer release()
	m := *d.Model()
	m.Metadata.Files = nil // of the zip; a training writes the files in it without
	var b bytes.Buffer
	err = s.scheduler.Work(ctx, func() error { return format.write(&b, &m, name) })
	if err != nil && ctx.Err() == nil {
		return nil, &problem{fiber.StatusUnprocessableEntity, fmt.Sprintf("The model cannot be written as %s: %v", format.name, sentence(err))}
	}
	return b.Bytes(), err
}
