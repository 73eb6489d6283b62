package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestTrainingThatTakesTooLongIsToldToComeBackWithLess(t *testing.T) {
	s := start(t, func(o *Options) { o.TrainTime = time.Second })
	a := s.post(t, "/train", file("zipFile", "a.zip", normals(t, 60, nil)), text("level", "5"), text("image_size", "128"))
	if a.status != 503 || a.header.Get("Retry-After") == "" || !strings.Contains(a.message(t), "max_seconds") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if len(s.training.places) != 0 || s.uploads(t) != 0 {
		t.Error("it goes on")
	}
}

func TestWithoutABoundOnItsTimeARequestIsAnswered(t *testing.T) {
	s := start(t, func(o *Options) { o.TrainTime, o.DetectTime = 0, 0 })
	if a := s.post(t, "/train", file("zipFile", "a.zip", normals(t, 2, nil)), text("level", "1"), text("image_size", "16")); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

func TestDetectionThatWaitsTooLongIsTold(t *testing.T) {
	s := start(t, func(o *Options) { o.DetectTime = 200 * time.Millisecond })
	for range cap(s.running.places) {
		if err := s.running.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	model, image := file("modelFile", "m", trained(t)["autoencoder.pt"]), file("imageFile", "i", read(t, tileFiles(t, "test/good", 1)[0]))
	if a := s.post(t, "/detect", model, image); a.status != 503 || !strings.Contains(a.message(t), "longer than this service allows") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	for range cap(s.running.places) {
		s.running.leave()
	}
	eventually(t, "a detection in time", func() bool { return s.post(t, "/detect", model, image).status == 200 })
}

func TestWorkWithNamedModelsThatTakesTooLongIsTold(t *testing.T) {
	s, _ := keeping(t, func(o *Options) { o.DetectTime = time.Second })
	model, image := trained(t)["autoencoder.pt"], read(t, tileFiles(t, "test/good", 1)[0])
	eventually(t, "the model is kept in time", func() bool { return s.put(t, "tiles", model).status/100 == 2 })
	for range cap(s.running.places) {
		if err := s.running.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	tensor := request(t, map[string]any{"inputs": []any{map[string]any{"name": "image", "datatype": "FP32", "shape": []int{1, 3, 32, 32}, "data": make([]float32, 3*32*32)}}})
	for name, ask := range map[string]func() answer{
		"put":    func() answer { return s.put(t, "tiles", model) },
		"detect": func() answer { return s.byName(t, "tiles", image) },
		"infer":  func() answer { return s.infer(t, tensor, "") },
	} {
		if a := ask(); a.status != 503 || !strings.Contains(a.message(t), "longer than this service allows") {
			t.Errorf("%s: status %d: %s", name, a.status, a.body)
		}
	}
	for range cap(s.running.places) {
		s.running.leave()
	}
	eventually(t, "an answer in time", func() bool { return s.byName(t, "tiles", image).status == 200 })
}

func TestDetectionsBeyondTheQueueAreToldToComeBack(t *testing.T) {
	s := start(t, func(o *Options) { o.WaitingDetections = 1 })
	for range cap(s.running.places) {
		if err := s.running.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	waits := make(chan error, 1)
	go func() { waits <- s.running.enter(ctx) }()
	eventually(t, "one waits", func() bool { return s.running.outside() == 1 })
	model, image := file("modelFile", "m", trained(t)["autoencoder.pt"]), file("imageFile", "i", read(t, tileFiles(t, "test/good", 1)[0]))
	if a := s.post(t, "/detect", model, image); a.status != 503 || a.header.Get("Retry-After") == "" || a.message(t) != errBusy.message {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if s.scraped(t)["anomaly_queue_waiting work=detect"] != 1 {
		t.Error("the one that waits is not shown")
	}
	leave()
	if err := <-waits; err == nil {
		t.Error("it was let in")
	}
	for range cap(s.running.places) {
		s.running.leave()
	}
	if a := s.post(t, "/detect", model, image); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

// Uploads that are under way are bounded together, however many there are: who
// comes when nothing is left is told, and nothing of it stays taken.
func TestUploadsTogetherAreBounded(t *testing.T) {
	model, image := trained(t)["autoencoder.pt"], read(t, tileFiles(t, "test/good", 1)[0])
	room := int64(len(model) + len(image))
	s := start(t, func(o *Options) { o.UploadBytes, o.ModelsDir = room, t.TempDir() })
	detect := func() answer {
		return s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i", image))
	}
	if a := detect(); a.status != 200 {
		t.Fatalf("what just fits is answered %d: %s", a.status, a.body)
	}
	if left := s.memory.left.Load(); left != room {
		t.Fatalf("%d of %d bytes are left after a request", left, room)
	}
	// Another upload holds some of it.
	body, kind := encode(t, file("modelFile", "m", model[:100_000]))
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, body.Len()+(1<<20))
	if _, err := c.Write(body.Bytes()[:body.Len()-100]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload holds memory", func() bool { return s.memory.left.Load() < room })
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
	eventually(t, "all is given back", func() bool { return s.memory.left.Load() == room })
	if a := detect(); a.status != 200 {
		t.Errorf("afterwards status %d: %s", a.status, a.body)
	}
}

// A sender who never stops for long, and never ends, is no better than one who
// stops.
func TestUploadThatGoesOnAndOnIsGivenUp(t *testing.T) {
	s := start(t, func(o *Options) { o.DetectTime = 500 * time.Millisecond })
	c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "POST /detect HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"modelFile\"\r\n\r\n"+strings.Repeat("x", prefetch))
	trickle(t, c, "x")
	answer, err := io.ReadAll(c)
	if !strings.Contains(string(answer), "408") || !strings.Contains(string(answer), errSlowUpload.message) {
		t.Errorf("%v: %.300s", err, answer)
	}
}
