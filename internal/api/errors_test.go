package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
	"github.com/deepmed/anomaly/internal/testkit"
)

// invalidRequest is a request and the error that it is answered with.
type invalidRequest struct {
	name, method, path string
	kind               string // content type; empty for that of the form
	parts              []part
	body               []byte // if there are no parts
	status             int
	contains           string // part of the message
}

func invalidRequests(t *testing.T) []invalidRequest {
	model, image := trained(t)["autoencoder.pt"], tile(t, testGood)
	onnx, bundle := trained(t)["autoencoder.onnx"], trained(t)["anomaly_detection_model.zip"]
	zipped := trainingZip(t, 2, nil)
	prose := []byte("This is plain text.\n")
	post := http.MethodPost
	zipFile := file("zipFile", "a.zip", zipped)
	train := func(name string, status int, contains string, parts ...part) invalidRequest {
		return invalidRequest{name: "train: " + name, method: post, path: "/train", parts: parts, status: status, contains: contains}
	}
	level := func(value string) invalidRequest {
		return train("level "+value, 400, "Level must be between 1 and 5", zipFile, text("level", value))
	}
	size := func(value string) invalidRequest {
		return train("image_size "+value, 400, "image size", zipFile, text("level", "1"), text("image_size", value))
	}
	seconds := func(value string) invalidRequest {
		return train("max_seconds "+value, 400, "max_seconds", zipFile, text("level", "1"), text("max_seconds", value))
	}
	archive := func(name string, status int, contains string, data []byte) invalidRequest {
		return train(name, status, contains, file("zipFile", "a.zip", data), text("level", "1"), text("image_size", "32"))
	}
	detect := func(name string, status int, contains string, model, image []byte, more ...part) invalidRequest {
		return invalidRequest{name: "detect: " + name, method: post, path: "/detect", status: status, contains: contains,
			parts: append([]part{file("modelFile", "m", model), file("imageFile", "i", image)}, more...)}
	}
	metadata := func(name, json string) invalidRequest {
		return detect("metadata that is "+name, 422, "metadata", model, image, file("metadataFile", "m.json", []byte(json)))
	}
	flipped := bytes.Clone(zipped)
	for i := len(flipped) / 3; i < len(flipped)/3+2000; i++ {
		flipped[i] ^= 0xff
	}
	bmpBomb := append([]byte("BM\x36\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00"),
		"\xff\xff\x00\x00\xff\xff\x00\x00\x01\x00\x18\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	form, kind := encode(t, zipFile, text("level", "1"))
	whole := form.Bytes()
	raw := func(name, path, kind string, body []byte, status int, contains string) invalidRequest {
		return invalidRequest{name: name, method: post, path: path, kind: kind, body: body, status: status, contains: contains}
	}
	return []invalidRequest{
		train("no parts", 400, "No ZIP file uploaded", text("level", "1")),
		train("the zip under another name", 400, "No ZIP file uploaded", file("file", "a.zip", zipped)),
		level("0"), level("6"), level("-1"), level("abc"), level("3.5"), level("99999999999999999999"), level("1e0"), level("0x1"), level("一"),
		train("a level of 2000 bytes", 413, "level", zipFile, text("level", strings.Repeat("1", 2000))),
		size("0"), size("17"), size("100000"), size("-1"), size("-256"), size("abc"), size("256.0"), size("15"), size("1040"), size("99999999999999999999"),
		seconds("0"), seconds("-1"), seconds("soon"), seconds("NaN"), seconds("Inf"), seconds("1e300"), seconds("10s"),
		train("no time at all", 422, "too little", zipFile, text("level", "1"), text("max_seconds", "1e-9")),
		archive("an empty part as zip", 422, "ZIP", nil),
		archive("a text file as zip", 422, "ZIP", prose),
		archive("an image as zip", 422, "ZIP", image),
		archive("a truncated zip", 422, "ZIP", zipped[:len(zipped)/2]),
		archive("a zip without its end", 422, "ZIP", zipped[:len(zipped)-10]),
		archive("an empty zip", 400, "No image files found in the uploaded dataset", testkit.Zip(t, nil)),
		archive("a zip with only YAML", 400, "No image files found in the uploaded dataset", testkit.Zip(t, map[string][]byte{"data.yaml": []byte("names: [a]")})),
		archive("a zip of prose", 400, "No image files found in the uploaded dataset", testkit.Zip(t, map[string][]byte{"a.txt": prose})),
		archive("a zip with defects", 400, "beside the folder good there is crack", testkit.Zip(t, map[string][]byte{"good/a.png": prose, "crack/b.png": prose})),
		archive("a zip of hidden images", 400, "No image files found in the uploaded dataset", testkit.Zip(t, map[string][]byte{"__MACOSX/a.jpg": image, ".b.jpg": image})),
		archive("a zip of unreadable images", 400, "none of its 2 image files can be read", testkit.Zip(t, map[string][]byte{"a.jpg": prose, "b.png": nil})),
		archive("a zip of truncated images", 400, "none of its 1 image files can be read", testkit.Zip(t, map[string][]byte{"a.jpg": image[:len(image)/2]})),
		archive("a zip of bombs", 400, "none of its 1 image files can be read", testkit.Zip(t, map[string][]byte{"a.bmp": bmpBomb})),
		archive("a model as zip", 400, "No image files found in the uploaded dataset", bundle),

		{name: "detect: no parts", method: post, path: "/detect", parts: []part{text("x", "y")}, status: 400, contains: "Both model file and image file are required"},
		{name: "detect: no image", method: post, path: "/detect", parts: []part{file("modelFile", "m", model)}, status: 400, contains: "Both model file and image file are required"},
		{name: "detect: no model", method: post, path: "/detect", parts: []part{file("imageFile", "i", image)}, status: 400, contains: "Both model file and image file are required"},
		detect("an empty image", 400, "Both model file and image file are required", model, nil),
		detect("an empty model", 400, "Both model file and image file are required", nil, image),
		detect("a text file as image", 422, "image", model, prose),
		detect("a truncated image", 422, "image", model, image[:len(image)/2]),
		detect("an image of four bytes", 422, "image", model, image[:4]),
		detect("a zip as image", 422, "image", model, zipped),
		detect("a bitmap of 65535×65535", 413, "image", model, bmpBomb),
		detect("a text file as model", 422, "model", prose, image),
		detect("an image as model", 422, "model", image, image),
		detect("a zip of images as model", 422, "model", zipped, image),
		detect("a truncated checkpoint", 422, "model", model[:len(model)/2], image),
		detect("a checkpoint without its end", 422, "model", model[:len(model)-10], image),
		detect("a truncated ONNX file", 422, "", onnx[:len(onnx)/2], image),
		detect("a truncated bundle", 422, "model", bundle[:len(bundle)/2], image),
		detect("a pickle that calls os.system", 422, "", []byte("\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R."), image),
		metadata("prose", "I am not JSON"),
		metadata("a list", `[0.02]`),
		metadata("without a threshold", `{"model_type":"autoencoder"}`),
		metadata("negative", `{"threshold":-1}`),
		metadata("text for a number", `{"threshold":"0.02"}`),
		metadata("cut off", `{"threshold":0.02`),
		metadata("for another kind of model", `{"threshold":0.02,"model_type":"gan"}`),
		metadata("for an unknown measure", `{"threshold":0.02,"decision":{"measure":"vibes","threshold":1}}`),

		raw("train: JSON", "/train", "application/json", []byte(`{"level":3}`), 415, "multipart"),
		raw("train: the zip itself", "/train", "application/zip", zipped, 415, "multipart"),
		raw("detect: a URL-encoded form", "/detect", "application/x-www-form-urlencoded", []byte("a=b"), 400, "Both model file and image file are required"),
		raw("train: a URL-encoded form", "/train", "application/x-www-form-urlencoded", []byte("level=3"), 400, "No ZIP file uploaded"),
		raw("train: a level in the URL", "/train?level=5", kind, whole, 400, "The field level was sent in the URL"),
		raw("train: multipart without a boundary", "/train", "multipart/form-data", whole, 400, "multipart"),
		raw("train: another boundary", "/train", "multipart/form-data; boundary=nothere", whole, 400, ""),
		raw("train: a form cut off", "/train", kind, whole[:len(whole)/2], 400, "cut off"),
		raw("train: no body", "/train", kind, nil, 400, "No ZIP file uploaded"),
		raw("train: no body and no type", "/train", "", nil, 400, "No ZIP file uploaded"),
		raw("detect: no body and no type", "/detect", "", nil, 400, "Both model file and image file are required"),
		{name: "GET /train", method: http.MethodGet, path: "/train", status: 405, contains: "POST /train"},
		{name: "PUT /detect", method: http.MethodPut, path: "/detect", kind: "text/plain", body: prose, status: 405, contains: "POST /detect"},
		{name: "DELETE /health", method: http.MethodDelete, path: "/health", status: 405, contains: "GET /health"},
		{name: "an unknown method", method: "BREW", path: "/detect", status: 405, contains: "POST /detect"},
		{name: "an unknown method at no endpoint", method: "QUERY", path: "/none", status: 404, contains: "no such endpoint"},
		{name: "POST /", method: post, path: "/", kind: "text/plain", body: prose, status: 405, contains: "does not support that method"},
		{name: "a path that climbs", method: http.MethodGet, path: "/../../etc/passwd", status: 404, contains: "no such endpoint"},
		{name: "another path", method: http.MethodGet, path: "/model", status: 404, contains: "no such endpoint"},
		{name: "models without a folder", method: http.MethodGet, path: "/models", status: 404, contains: "--models"},
		{name: "PUT of a model without a folder", method: http.MethodPut, path: "/models/a", kind: "application/zip", body: bundle, status: 404, contains: "--models"},
		{name: "inference without a folder", method: post, path: "/v2/models/a/infer", kind: "application/json", body: []byte("{}"), status: 404, contains: "--models"},
	}
}

// isOneSentence checks that an error is one sentence in JSON without internal details, and
// that the service is healthy afterwards.
func (s *service) isOneSentence(t *testing.T, a answer) {
	t.Helper()
	message := a.message(t)
	if got := a.header.Get("Content-Type"); message == "" || !strings.HasPrefix(got, "application/json") {
		t.Errorf("the message %q has the type %q", message, got)
	}
	for _, trace := range []string{"goroutine", ".go:", "panic", "Traceback", "/tmp", "\n"} {
		if strings.Contains(message, trace) {
			t.Errorf("the message has internal details: %s", message)
		}
	}
	if len(message) > 600 {
		t.Errorf("the message has %d bytes", len(message))
	}
	if health := s.send(t, http.MethodGet, "/health", "", nil); health.status != 200 {
		t.Errorf("/health afterwards: status %d", health.status)
	}
}

func TestErrors_AreOneSentence(t *testing.T) {
	s := start(t, nil)
	table := invalidRequests(t)
	if len(table) < 60 {
		t.Errorf("only %d requests", len(table))
	}
	for _, c := range table {
		t.Run(c.name, func(t *testing.T) {
			body, kind := bytes.NewBuffer(c.body), c.kind
			if c.parts != nil {
				body, kind = encode(t, c.parts...)
			}
			a := s.send(t, c.method, c.path, kind, body)
			message := a.message(t)
			if a.status != c.status || message == "" || !strings.Contains(message, c.contains) {
				t.Errorf("status %d: %s; expected %d with %q", a.status, a.body, c.status, c.contains)
			}
			s.isOneSentence(t, a)
		})
	}
	s.keepsNoUpload(t)
	a := s.post(t, "/detect", modelPart(t), imagePart(t))
	if a.status != 200 {
		t.Errorf("a valid request afterwards: status %d: %s", a.status, a.body)
	}
}

func TestLimits_AreEnforced(t *testing.T) {
	image, model := tile(t, testGood), trained(t)["autoencoder.pt"]
	// 288 MiB of zeros, above the size up to which any ratio is allowed.
	bomb := hostile.Bomb(9)
	big := bytes.Repeat([]byte("x"), 1<<20)
	for _, c := range []struct {
		name     string
		change   func(*Options)
		path     string
		parts    []part
		contains string
	}{
		{"the body", func(o *Options) { o.BodyBytes = 1 << 18 }, "/detect", []part{file("other", "o", big)}, "too large"},
		{"the model", func(o *Options) { o.Models.MaxBytes = 1 << 16 }, "/detect", []part{file("modelFile", "m", model), file("imageFile", "i", image)}, "modelFile"},
		{"the image", func(o *Options) { o.Images.MaxBytes = 1 << 10 }, "/detect", []part{file("modelFile", "m", model), file("imageFile", "i", image)}, "imageFile"},
		{"the image's pixels", func(o *Options) { o.Images.MaxPixels = 100 }, "/detect", []part{file("modelFile", "m", model), file("imageFile", "i", image)}, "pixels"},
		{"the model's parameters", func(o *Options) { o.Models.MaxParameters = 1000 }, "/detect", []part{file("modelFile", "m", model), file("imageFile", "i", image)}, "at most 1000 are read"},
		{"what a model unpacks to", func(o *Options) { o.Models.MaxUnpacked = 1 << 10 }, "/detect", []part{file("modelFile", "m", trained(t)["anomaly_detection_model.zip"]), file("imageFile", "i", image)}, "unpack"},
		{"the model's operators", func(o *Options) { o.Models.MaxNodes = 10 }, "/detect", []part{file("modelFile", "m", trained(t)["autoencoder.onnx"]), file("imageFile", "i", image)}, "more than 10 nodes"},
		{"the model's image size", func(o *Options) { o.Models.MaxSide = 16 }, "/detect", []part{file("modelFile", "m", model), file("imageFile", "i", image)}, "at most 16×16"},
		{"the ratio of a zip", func(o *Options) { o.Dataset.Ratio = 100 }, "/train", []part{file("zipFile", "a", bomb)}, "more than 100 times"},
		{"the files in a zip", func(o *Options) { o.Dataset.Entries = 1 }, "/train", []part{file("zipFile", "a", trainingZip(t, 2, nil))}, "2 files"},
		{"the size of a data set", func(o *Options) { o.Dataset.PreparedBytes = 1 << 10 }, "/train", []part{file("zipFile", "a", trainingZip(t, 2, nil))}, "at most 1024 are allowed"},
		{"what a zip unpacks to", func(o *Options) { o.Dataset.UnpackedBytes = 1 << 10 }, "/train", []part{file("zipFile", "a", trainingZip(t, 2, nil))}, "unpacks to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, c.change)
			a := s.post(t, c.path, c.parts...)
			if a.status != 413 || !strings.Contains(a.message(t), c.contains) {
				t.Errorf("status %d: %s", a.status, a.body)
			}
			s.keepsNoUpload(t)
		})
	}
}

func TestTrain_EnforcesTheServicesImageSize(t *testing.T) {
	s := start(t, func(o *Options) { o.Models.MaxSide = 32 })
	zipped := file("zipFile", "a", trainingZip(t, 1, nil))
	if a := s.post(t, "/train", zipped, text("level", "1"), text("image_size", "48")); a.status != 400 || !strings.Contains(a.message(t), "32 at most") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if a := s.post(t, "/train", zipped, text("level", "1"), text("image_size", "32")); a.status != 200 {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

// The answer to a failure of the service has the request's id and no reason.
func TestServiceFailure_ShowsOnlyTheRequestID(t *testing.T) {
	s := start(t, nil)
	s.options.TempDir = "/nowhere/at/all"
	a := s.post(t, "/train", file("zipFile", "a.zip", trainingZip(t, 1, nil)))
	id := a.header.Get("X-Request-ID")
	if a.status != 500 || id == "" || !strings.Contains(a.message(t), id) || strings.Contains(string(a.body), "nowhere") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	s.options.TempDir = s.dir
}

func TestSentence_IsValidJSONOnOneLine(t *testing.T) {
	var m map[string]string
	long := fmt.Errorf("%s\n\t%s", strings.Repeat("ü", 400), "\x00")
	if b, err := json.Marshal(map[string]string{"error": sentence(long)}); err != nil || json.Unmarshal(b, &m) != nil || strings.Contains(m["error"], "\n") {
		t.Errorf("%v: %q", err, b)
	}
}
