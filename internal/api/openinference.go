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

// Constants of the Open Inference Protocol, version 2, which serves the stored models.
// The inputs and outputs are the tensors of a model's ONNX file.
const (
	inferenceVersion   = "1" // the only version of each model
	inferencePlatform  = "onnxruntime_onnx"
	headerBinaryLength = "Inference-Header-Content-Length"
	binaryExtension    = "binary_tensor_data"
)

func (s *Server) routeInference() {
	timeout := withTimeout(s.options.DetectTime)
	s.app.Get("/v2", s.inferenceServer)
	s.app.Get(pathInferenceLive, func(c *fiber.Ctx) error { return c.SendStatus(fiber.StatusOK) })
	s.app.Get(pathInferenceReady, s.inferenceReady)
	for _, version := range []string{"", "/versions/:version"} {
		s.app.Get("/v2/models/:name"+version, timeout, s.inferenceModel)
		s.app.Get("/v2/models/:name"+version+"/ready", timeout, s.inferenceModelReady)
		s.app.Post("/v2/models/:name"+version+"/infer", timeout, s.infer)
	}
}

// inferenceServer answers GET /v2 with the server's metadata.
func (s *Server) inferenceServer(c *fiber.Ctx) error {
	_, version := s.engine.Library()
	return c.JSON(fiber.Map{"name": ServiceName, "version": "onnxruntime-" + version, "extensions": []string{binaryExtension}})
}

var errNotReady = &problem{fiber.StatusServiceUnavailable, "The service is still reading its models, try again in a moment"}

// inferenceReady answers GET /v2/health/ready as ready answers /readyz.
func (s *Server) inferenceReady(c *fiber.Ctx) error {
	if err := s.checkReady(); err != nil {
		return err
	}
	return c.SendStatus(fiber.StatusOK)
}

// modelsRead reports whether the service has tried to read every model in its folder.
// Broken models count as read.
func (s *Server) modelsRead() bool {
	return s.registry == nil || s.registry.Loaded()
}

// inferenceEntry returns the entry of the model in the path. It returns a 404 problem for
// an unknown version of it.
func (s *Server) inferenceEntry(c *fiber.Ctx) (registry.Entry, error) {
	if s.registry == nil {
		return registry.Entry{}, errNoRegistry
	}
	if v := c.Params("version"); v != "" && v != inferenceVersion {
		return registry.Entry{}, &problem{fiber.StatusNotFound, fmt.Sprintf("There is no version %.40q of the model, only %q", v, inferenceVersion)}
	}
	return s.registry.Look(s.base, modelName(c))
}

// tensorMetadata is the protocol's description of an input or an output.
type tensorMetadata struct {
	Name     string `json:"name"`
	Datatype string `json:"datatype"`
	Shape    []int  `json:"shape"`
}

// inferenceModel answers GET /v2/models/{name} with the model's inputs and outputs.
func (s *Server) inferenceModel(c *fiber.Ctx) error {
	e, err := s.inferenceEntry(c)
	if err == nil && e.State != registry.Ready {
		ctx, done := s.workContext(c)
		e, err = s.registry.Get(ctx, e.Name)
		done()
	}
	if err != nil {
		return err
	}
	size := e.Metadata.Input()
	images := []int{-1, models.InputChannels, size.H, size.W}
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
		return s.rejectUnread(c, err)
	}
	body, err := s.readBody(c, "The request", s.options.RequestImages)
	if err != nil {
		return err
	}
	timer := s.metrics.timer(workDetect, receivedAt(c))
	timer.done(stageReceive)
	ctx, done := s.workContext(c)
	defer done()
	if e, err = s.registry.Get(ctx, e.Name); err != nil {
		return err
	}
	var r *inferRequest
	if err := s.scheduler.Work(ctx, func() error {
		r, err = parseInferRequest(body, c.Get(headerBinaryLength), e.Metadata.Input(), reservationOf(c).reserve)
		return err
	}); err != nil {
		return err
	}
	timer.done(stageDecode)
	if err := s.detectionSlots.acquire(ctx); err != nil {
		return err
	}
	defer s.detectionSlots.release()
	timer.done(stageQueue)
	tensors, err := s.runInference(ctx, timer, e, r)
	if err != nil {
		return s.shutdownError(err)
	}
	return sendOutputs(c, e.Name, r, tensors)
}

// errSizeChanged is returned if the model was replaced, while the request was received,
// by a model with another image size.
var errSizeChanged = &problem{fiber.StatusConflict, "The model was replaced by one of another image size meanwhile"}

// errPlaces is returned for a model that compares each tile with its place in the image: the
// protocol's input, image, does not have the place.
var errPlaces = &problem{fiber.StatusUnprocessableEntity, "The model compares each tile with its place in the image, which this request does not have: send the whole image to /models/{name}/detect"}

// runInference runs the network on a request's images. It returns the outputs by name.
func (s *Server) runInference(ctx context.Context, timer *stageTimer, e registry.Entry, r *inferRequest) (map[string]tensor, error) {
	d, release, err := s.namedDetector(ctx, e.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	timer.done(stageLoad)
	if d.Size() != e.Metadata.Input() {
		return nil, errSizeChanged
	}
	if models.PlaceCount(d.Model().Reference) > 0 {
		return nil, errPlaces
	}
	var reconstruction []float32
	if slices.ContainsFunc(r.outputs, func(o inferOutput) bool { return o.name == network.ReconstructionName }) {
		reconstruction = make([]float32, len(r.images))
	}
	scores, mses, err := s.scheduler.Infer(ctx, d, r.images, reconstruction)
	if err != nil {
		return nil, err
	}
	timer.done(stageInfer)
	return map[string]tensor{
		network.ReconstructionName: {[]int{len(scores), models.InputChannels, d.Size().H, d.Size().W}, reconstruction},
		network.ErrorName:          {[]int{len(scores)}, scores},
		network.MSEName:            {[]int{len(mses)}, mses},
	}, nil
}

// errNotFinite is returned for NaN and infinite results, which JSON cannot represent.
var errNotFinite = &problem{fiber.StatusUnprocessableEntity, "The result has values that are not finite, which JSON cannot represent: request binary data"}

// sendOutputs answers with the requested outputs. Outputs in JSON are part of the header;
// binary outputs follow it, in the order of the request.
func sendOutputs(c *fiber.Ctx, name string, r *inferRequest, tensors map[string]tensor) error {
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
		reservationOf(c).send(c, body)
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
	reservationOf(c).send(c, all)
	return nil
}
