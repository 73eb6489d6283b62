package api

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/gofiber/fiber/v2"
)

// The Open Inference Protocol, version 2, for the models that have names. What
// a model takes and gives are the tensors of its ONNX file.
const (
	inferenceVersion   = "1" // each model has the one
	inferencePlatform  = "onnxruntime_onnx"
	headerBinaryLength = "Inference-Header-Content-Length"
	binaryExtension    = "binary_tensor_data"
)

func (s *Server) routeInference() {
	inTime := bounded(s.options.DetectTime)
	s.app.Get("/v2", s.inferenceServer)
	s.app.Get(pathInferenceLive, func(c *fiber.Ctx) error { return c.SendStatus(fiber.StatusOK) })
	s.app.Get(pathInferenceReady, s.inferenceReady)
	for _, version := range []string{"", "/versions/:version"} {
		s.app.Get("/v2/models/:name"+version, inTime, s.inferenceModel)
		s.app.Get("/v2/models/:name"+version+"/ready", inTime, s.inferenceModelReady)
		s.app.Post("/v2/models/:name"+version+"/infer", inTime, s.infer)
	}
}

// inferenceServer answers GET /v2: who serves.
func (s *Server) inferenceServer(c *fiber.Ctx) error {
	_, version := s.engine.Library()
	return c.JSON(fiber.Map{"name": ServiceName, "version": "onnxruntime-" + version, "extensions": []string{binaryExtension}})
}

var errNotReady = &problem{fiber.StatusServiceUnavailable, "The service is still reading its models, try again in a moment"}

// inferenceReady answers GET /v2/health/ready: 200 once the folder's models were
// read, those that cannot be used left aside.
func (s *Server) inferenceReady(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	if !s.modelsRead() {
		return errNotReady
	}
	return c.SendStatus(fiber.StatusOK)
}

// modelsRead says whether all models of the folder were looked into.
func (s *Server) modelsRead() bool {
	return s.registry == nil || !slices.ContainsFunc(s.registry.List(), func(e registry.Entry) bool { return e.State == registry.Loading })
}

// inferenceEntry is the model that an address names, in the version it names.
func (s *Server) inferenceEntry(c *fiber.Ctx) (registry.Entry, error) {
	if s.registry == nil {
		return registry.Entry{}, errNoRegistry
	}
	if v := c.Params("version"); v != "" && v != inferenceVersion {
		return registry.Entry{}, &problem{fiber.StatusNotFound, fmt.Sprintf("There is no version %.40q of the model, only %q", v, inferenceVersion)}
	}
	return s.registry.Look(modelName(c))
}

// tensorMetadata describes an input or output.
type tensorMetadata struct {
	Name     string `json:"name"`
	Datatype string `json:"datatype"`
	Shape    []int  `json:"shape"`
}

// inferenceModel answers GET /v2/models/{name}: what the model takes and gives.
func (s *Server) inferenceModel(c *fiber.Ctx) error {
	e, err := s.inferenceEntry(c)
	if err == nil && e.State != registry.Ready {
		ctx, done := s.working(c)
		e, err = s.registry.Get(ctx, e.Name)
		done()
	}
	if err != nil {
		return err
	}
	images := []int{-1, models.InputChannels, e.Metadata.ImageSize, e.Metadata.ImageSize}
	return c.JSON(fiber.Map{
		"name": e.Name, "versions": []string{inferenceVersion}, "platform": inferencePlatform,
		"inputs": []tensorMetadata{{network.ImageName, datatype, images}},
		"outputs": []tensorMetadata{
			{network.ReconstructionName, datatype, images},
			{network.ErrorName, datatype, []int{-1}},
			{network.MSEName, datatype, []int{-1}},
		},
	})
}

// inferenceModelReady answers GET /v2/models/{name}/ready.
func (s *Server) inferenceModelReady(c *fiber.Ctx) error {
	e, err := s.inferenceEntry(c)
	switch {
	case err != nil:
		return err
	case e.State == registry.Loading:
		return errNotReady
	case e.State != registry.Ready:
		return fmt.Errorf("%w: %s: %s", registry.ErrBroken, e.Name, e.Error)
	}
	return c.JSON(fiber.Map{"name": e.Name, "ready": true})
}

// infer answers POST /v2/models/{name}/infer.
func (s *Server) infer(c *fiber.Ctx) error {
	if s.draining.Load() {
		return errShuttingDown
	}
	e, err := s.inferenceEntry(c)
	if err != nil {
		return s.refuseUnread(c, err)
	}
	body, err := s.readBody(c, "The request", s.options.RequestImages)
	if err != nil {
		return err
	}
	laps := s.metrics.laps(workDetect, arrival(c))
	laps.done(stageReceive)
	ctx, done := s.working(c)
	defer done()
	if e, err = s.registry.Get(ctx, e.Name); err != nil {
		return err
	}
	var r *inferRequest
	if err := s.schedule.Work(ctx, func() error {
		r, err = parseInfer(body, c.Get(headerBinaryLength), e.Metadata.ImageSize, shareOf(c).take)
		return err
	}); err != nil {
		return err
	}
	laps.done(stageDecode)
	if err := s.running.enter(ctx); err != nil {
		return err
	}
	defer s.running.leave()
	laps.done(stageQueue)
	tensors, err := s.compute(ctx, laps, e, r)
	if err != nil {
		return s.closing(err)
	}
	return answerInfer(c, e.Name, r, tensors)
}

// errSize is a model that was replaced by one of another size meanwhile.
var errSize = &problem{fiber.StatusConflict, "The model was replaced by one of another image size meanwhile"}

// compute runs a request's images, and gives its outputs by name.
func (s *Server) compute(ctx context.Context, laps *laps, e registry.Entry, r *inferRequest) (map[string]tensor, error) {
	d, release, err := s.named(ctx, e.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	laps.done(stageLoad)
	if d.Side() != e.Metadata.ImageSize {
		return nil, errSize
	}
	var rebuilt []float32
	if slices.ContainsFunc(r.outputs, func(o inferOutput) bool { return o.name == network.ReconstructionName }) {
		rebuilt = make([]float32, len(r.images))
	}
	errs, mses, err := s.schedule.Infer(ctx, d, r.images, rebuilt)
	if err != nil {
		return nil, err
	}
	laps.done(stageInfer)
	return map[string]tensor{
		network.ReconstructionName: {[]int{len(errs), models.InputChannels, d.Side(), d.Side()}, rebuilt},
		network.ErrorName:          {[]int{len(errs)}, errs},
		network.MSEName:            {[]int{len(mses)}, mses},
	}, nil
}

// errNotFinite is told of results that JSON has no words for.
var errNotFinite = &problem{fiber.StatusUnprocessableEntity, "The result has values that are no finite numbers, which JSON cannot hold: ask for binary data"}

// answerInfer writes the outputs asked for: those in JSON in the header, the
// others one after another behind it.
func answerInfer(c *fiber.Ctx, name string, r *inferRequest, tensors map[string]tensor) error {
	type output struct {
		tensorMetadata
		Parameters map[string]int `json:"parameters,omitempty"`
		Data       []float32      `json:"data,omitempty"`
	}
	header := struct {
		ModelName    string   `json:"model_name"`
		ModelVersion string   `json:"model_version"`
		ID           string   `json:"id,omitempty"`
		Outputs      []output `json:"outputs"`
	}{ModelName: name, ModelVersion: inferenceVersion, ID: r.id}
	binaryBytes := 0
	for _, o := range r.outputs {
		t := tensors[o.name]
		out := output{tensorMetadata: tensorMetadata{o.name, datatype, t.shape}}
		if o.binary {
			out.Parameters = map[string]int{binarySize: len(t.data) * floatBytes}
			binaryBytes += len(t.data) * floatBytes
		} else if out.Data = t.data; !models.Finite(t.data...) {
			return errNotFinite
		}
		header.Outputs = append(header.Outputs, out)
	}
	body, err := json.Marshal(header)
	if err != nil {
		return err
	}
	if binaryBytes == 0 {
		c.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
		shareOf(c).send(c, body)
		return nil
	}
	c.Set(headerBinaryLength, strconv.Itoa(len(body)))
	c.Set(fiber.HeaderContentType, fiber.MIMEOctetStream)
	all := append(make([]byte, 0, len(body)+binaryBytes), body...)
	for _, o := range r.outputs {
		if o.binary {
			all = appendFloats(all, tensors[o.name].data)
		}
	}
	shareOf(c).send(c, all)
	return nil
}
