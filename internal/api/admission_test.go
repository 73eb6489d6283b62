package api

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

func TestTrain_TimesOut(t *testing.T) {
	s := start(t, func(o *Options) { o.TrainTime = 5 * time.Second })
	a := s.post(t, "/train", file("zipFile", "a.zip", trainingZip(t, 60, nil)), text("level", "5"), text("image_size", "128"))
	if a.status != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.message(t), "max_seconds") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if s.trainingSlots.running() != 0 || s.uploads(t) != 0 {
		t.Error("the training still runs")
	}
}

func TestTrain_RunsWithoutATimeLimit(t *testing.T) {
	s := start(t, func(o *Options) { o.TrainTime, o.DetectTime = 0, 0 })
	if a := s.post(t, "/train", smallTraining(trainingZip(t, 2, nil))...); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestDetect_TimesOutInTheQueue(t *testing.T) {
	s := start(t, func(o *Options) { o.DetectTime = 3 * time.Second })
	release := fill(t, s.detectionSlots)
	model, image := modelPart(t), imagePart(t)
	if a := s.post(t, "/detect", model, image); a.status != 503 || !strings.Contains(a.message(t), "longer than this service allows") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	release()
	eventually(t, "a detection in time", func() bool { return s.post(t, "/detect", model, image).status == 200 })
}

func TestNamedModels_TimeOutInTheQueue(t *testing.T) {
	s, _ := startWithModels(t, func(o *Options) { o.DetectTime = 3 * time.Second })
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	eventually(t, "the model is stored in time", func() bool { return s.put(t, "tiles", model).status/100 == 2 })
	release := fill(t, s.detectionSlots)
	tensor := marshal(t, map[string]any{"inputs": []any{map[string]any{"name": "image", "datatype": "FP32", "shape": []int{1, 3, 32, 32}, "data": make([]float32, 3*32*32)}}})
	for name, ask := range map[string]func() answer{
		"put":    func() answer { return s.put(t, "tiles", model) },
		"detect": func() answer { return s.byName(t, "tiles", image) },
		"infer":  func() answer { return s.infer(t, tensor, "") },
	} {
		if a := ask(); a.status != 503 || !strings.Contains(a.message(t), "longer than this service allows") {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	release()
	eventually(t, "an answer in time", func() bool { return s.byName(t, "tiles", image).status == 200 })
}

func TestDetect_ShedsLoadBeyondTheQueue(t *testing.T) {
	s := start(t, func(o *Options) { o.WaitingDetections = 1 })
	release := fill(t, s.detectionSlots)
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- s.detectionSlots.acquire(ctx) }()
	eventually(t, "the queue is full", func() bool { return s.detectionSlots.waiting() == 1 })
	model, image := modelPart(t), imagePart(t)
	if a := s.post(t, "/detect", model, image); a.status != 503 || a.header.Get("Retry-After") == "" || a.message(t) != errBusy.message {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if s.scraped(t)["anomaly_queue_waiting work=detect"] != 1 {
		t.Error("the metrics do not show the waiting request")
	}
	cancel()
	if err := <-waiting; err == nil {
		t.Error("the cancelled request was admitted")
	}
	release()
	if a := s.post(t, "/detect", model, image); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

// A request beyond the memory budget is rejected, and its reservation is released.
func TestMemoryBudget_BoundsAllUploads(t *testing.T) {
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	budget := int64(len(model) + len(image))
	s := start(t, func(o *Options) { o.UploadBytes, o.ModelsDir = budget, t.TempDir() })
	detect := func() answer {
		return s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i", image))
	}
	if a := detect(); a.status != 200 {
		t.Fatalf("with exactly the budget: status %d: %s", a.status, a.body)
	}
	if left := s.memory.available.Load(); left != budget {
		t.Fatalf("%d of %d bytes are available after a request", left, budget)
	}
	// Another upload reserves a part of the budget.
	body, kind := encode(t, file("modelFile", "m", model[:100_000]))
	c := s.dial(t)
	fmt.Fprintf(c, "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, body.Len()+(1<<20))
	if _, err := c.Write(body.Bytes()[:body.Len()-100]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload reserves memory", func() bool { return s.memory.available.Load() < budget })
	for name, a := range map[string]answer{
		"a form":             detect(),
		"a body":             s.put(t, "m", model),
		"one of many images": s.post(t, "/detect", file("imageFile", "i", image), file("imageFile", "j", image), file("modelFile", "m", model)),
	} {
		if a.status != 503 || a.header.Get("Retry-After") == "" || a.message(t) != errNoMemory.message {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	c.Close()
	eventually(t, "all memory is released", func() bool { return s.memory.available.Load() == budget })
	if a := detect(); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

// A client that keeps sending without end is cut off as one that stops.
func TestUpload_TimesOutWhileBytesArrive(t *testing.T) {
	s := start(t, func(o *Options) { o.DetectTime = 500 * time.Millisecond })
	c := s.dial(t)
	fmt.Fprint(c, "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"modelFile\"\r\n\r\n"+strings.Repeat("x", prefetch))
	trickle(t, c, "x")
	answer, err := io.ReadAll(c)
	if !strings.Contains(string(answer), "408") || !strings.Contains(string(answer), errSlowUpload.message) {
		t.Errorf("%v: %.300s", err, answer)
	}
}
