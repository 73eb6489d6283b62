package api

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gofiber/fiber/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// described is the part of the OpenAPI description that the tests use.
type described struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Summary     string
		Tags        []string
		Parameters  []map[string]string
		Responses   map[string]struct {
			Ref     string `json:"$ref"`
			Content map[string]struct{ Schema json.RawMessage }
		}
	}
}

// description returns the OpenAPI description, parsed and as JSON.
func description(t testing.TB, s *service) (described, []byte) {
	t.Helper()
	a := s.request(t, http.MethodGet, pathOpenAPI, nil)
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("status %d, type %s", a.status, a.header.Get("Content-Type"))
	}
	var d described
	if err := json.Unmarshal(a.body, &d); err != nil {
		t.Fatal(err)
	}
	return d, a.body
}

var fiberParameter = regexp.MustCompile(`:([A-Za-z_][A-Za-z_0-9]*)`)

func TestOpenAPI_DescribesExactlyTheRoutes(t *testing.T) {
	s := start(t, nil)
	d, _ := description(t, s)
	if !strings.HasPrefix(d.OpenAPI, "3.1.") {
		t.Errorf("OpenAPI %s", d.OpenAPI)
	}
	routes := map[string]bool{}
	for _, r := range s.app.GetRoutes(true) {
		if r.Method != fiber.MethodHead { // Fiber adds it to each GET
			routes[r.Method+" "+fiberParameter.ReplaceAllString(r.Path, "{$1}")] = true
		}
	}
	if len(routes) < 7 {
		t.Errorf("only %d routes", len(routes))
	}
	ids := map[string]bool{}
	for path, methods := range d.Paths {
		for method, o := range methods {
			if method == "parameters" {
				continue
			}
			name := strings.ToUpper(method) + " " + path
			if !routes[name] {
				t.Errorf("%s is described and does not exist", name)
			}
			delete(routes, name)
			if o.OperationID == "" || ids[o.OperationID] || o.Summary == "" || len(o.Tags) != 1 || len(o.Responses) == 0 {
				t.Errorf("%s: operationId %q, summary %q, tags %v", name, o.OperationID, o.Summary, o.Tags)
			}
			ids[o.OperationID] = true
			for _, p := range fiberParameter.FindAllString(path, -1) {
				t.Errorf("%s: %s is Fiber's syntax", name, p)
			}
		}
	}
	for name := range routes {
		t.Errorf("%s exists and is not described", name)
	}
}

// schema compiles the schema at a JSON pointer of the description.
func schema(t testing.TB, document []byte, pointer string) *jsonschema.Schema {
	t.Helper()
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler() // 2020-12, which is OpenAPI 3.1's
	if err := c.AddResource("urn:openapi", parsed); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("urn:openapi#" + pointer)
	if err != nil {
		t.Fatalf("%s: %v", pointer, err)
	}
	return compiled
}

func TestOpenAPI_SchemasCompileAndReferencesResolve(t *testing.T) {
	_, document := description(t, start(t, nil))
	var parsed map[string]any
	if err := json.Unmarshal(document, &parsed); err != nil {
		t.Fatal(err)
	}
	schemas, _ := parsed["components"].(map[string]any)["schemas"].(map[string]any)
	if len(schemas) < 6 {
		t.Errorf("only %d schemas", len(schemas))
	}
	for name := range schemas {
		schema(t, document, "/components/schemas/"+name)
	}
	for _, ref := range regexp.MustCompile(`"\$ref":"([^"]+)"`).FindAllSubmatch(document, -1) {
		at, ok := any(parsed), false
		for key := range strings.SplitSeq(strings.TrimPrefix(string(ref[1]), "#/"), "/") {
			m, _ := at.(map[string]any)
			if at, ok = m[key]; !ok {
				t.Errorf("%s does not resolve", ref[1])
				break
			}
		}
	}
}

// conforms checks the status, the media type and the JSON of an answer against the
// description.
func conforms(t *testing.T, d described, document []byte, method, path string, a answer) {
	t.Helper()
	r, ok := d.Paths[path][strings.ToLower(method)].Responses[strconv.Itoa(a.status)]
	if !ok {
		t.Errorf("%s %s: status %d is not described: %.300s", method, path, a.status, a.body)
		return
	}
	at := "/paths/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(path) + "/" + strings.ToLower(method) + "/responses/" + strconv.Itoa(a.status)
	if r.Ref != "" {
		at = strings.TrimPrefix(r.Ref, "#")
		var all struct {
			Components struct{ Responses map[string]json.RawMessage }
		}
		if err := json.Unmarshal(document, &all); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(all.Components.Responses[at[strings.LastIndex(at, "/")+1:]], &r); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.Content) == 0 {
		if len(a.body) > 0 {
			t.Errorf("%s %s: %d has a body that is not described: %.300s", method, path, a.status, a.body)
		}
		return
	}
	kind, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	if _, ok := r.Content[kind]; !ok {
		t.Errorf("%s %s: %d has the type %q, described are %v", method, path, a.status, kind, slices.Sorted(maps.Keys(r.Content)))
		return
	}
	if kind != fiber.MIMEApplicationJSON {
		return
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(a.body))
	if err == nil {
		err = schema(t, document, strings.NewReplacer("{", "%7B", "}", "%7D").Replace(at)+"/content/application~1json/schema").Validate(value)
	}
	if err != nil {
		t.Errorf("%s %s: %v: %s", method, path, err, a.body)
	}
}

func TestOpenAPI_MatchesTheAnswers(t *testing.T) {
	s := start(t, nil)
	d, document := description(t, s)
	conforms := func(t *testing.T, method, path string, a answer) {
		t.Helper()
		conforms(t, d, document, method, path, a)
	}
	for _, path := range []string{pathHealth, pathLive, pathReady, pathMetrics, pathOpenAPI} {
		conforms(t, http.MethodGet, path, s.request(t, http.MethodGet, path, nil))
	}
	s.draining.Store(true)
	conforms(t, http.MethodGet, pathReady, s.request(t, http.MethodGet, pathReady, nil))
	conforms(t, http.MethodPost, "/detect", s.post(t, "/detect", text("x", "y")))
	s.draining.Store(false)
	files := trained(t)
	image := file("imageFile", "i", tile(t, testCrack))
	for _, name := range []string{"autoencoder.pt", "autoencoder.onnx", "anomaly_detection_model.zip"} {
		a := s.post(t, "/detect", file("modelFile", "m", files[name]), image)
		if a.status != 200 {
			t.Errorf("%s: status %d", name, a.status)
		}
		conforms(t, http.MethodPost, "/detect", a)
	}
	a := s.post(t, "/train", smallTraining(trainingZip(t, 2, nil))...)
	if a.status != 200 {
		t.Errorf("status %d", a.status)
	}
	conforms(t, http.MethodPost, "/train", a)
	for _, c := range invalidRequests(t) {
		if c.method != http.MethodPost || (c.path != "/train" && c.path != "/detect") {
			continue
		}
		body, kind := bytes.NewBuffer(c.body), c.kind
		if c.parts != nil {
			body, kind = encode(t, c.parts...)
		}
		conforms(t, c.method, c.path, s.send(t, c.method, c.path, kind, body))
	}
}

func TestOpenAPI_MatchesTheAnswersForNamedModels(t *testing.T) {
	s, dir := startWithModels(t, func(o *Options) { o.StoredModels = 1 })
	d, document := description(t, s)
	check := func(status int, method, path string, a answer) {
		t.Helper()
		if a.status != status {
			t.Errorf("%s %s: status %d, expected %d: %.300s", method, path, a.status, status, a.body)
		}
		conforms(t, d, document, method, path, a)
	}
	model, image := trained(t)["anomaly_detection_model.zip"], tile(t, testCrack)
	const one, detect = "/models/{name}", "/models/{name}/detect"
	get := func(path string) answer { return s.request(t, http.MethodGet, path, nil) }
	check(200, "GET", "/models", get("/models"))
	check(201, "PUT", one, s.put(t, "tiles", model))
	check(200, "PUT", one, s.put(t, "tiles", model))
	check(409, "PUT", one, s.put(t, "another", model))
	check(422, "PUT", one, s.put(t, "tiles", []byte("prose")))
	check(400, "PUT", one, s.put(t, "Tiles", model))
	check(200, "GET", "/models", get("/models"))
	check(200, "GET", one, get("/models/tiles"))
	check(404, "GET", one, get("/models/none"))
	check(200, "POST", detect, s.byName(t, "tiles", image))
	check(200, "POST", detect, s.byName(t, "tiles", image, []byte("prose"), image))
	check(400, "POST", detect, s.byName(t, "tiles"))
	check(404, "POST", detect, s.byName(t, "none", image))
	check(200, "POST", "/detect", s.post(t, "/detect", file("modelFile", "m", model), file("imageFile", "i", image), file("imageFile", "j", []byte("prose"))))
	check(200, "GET", "/v2", get("/v2"))
	check(200, "GET", pathInferenceLive, get(pathInferenceLive))
	check(200, "GET", pathInferenceReady, get(pathInferenceReady))
	values := make([]float32, 3*32*32)
	for _, version := range []string{"", "/versions/{version}"} {
		described := "/v2/models/{name}" + version
		path := func(name string) string {
			return strings.NewReplacer("{name}", name, "{version}", "1").Replace(described)
		}
		check(200, "GET", described, get(path("tiles")))
		check(404, "GET", described, get(path("none")))
		check(200, "GET", described+"/ready", get(path("tiles")+"/ready"))
		check(404, "GET", described+"/ready", get(path("none")+"/ready"))
		for _, binary := range []bool{false, true} {
			body := marshal(t, map[string]any{"id": "7", "parameters": map[string]any{"binary_data_output": binary},
				"inputs": []any{map[string]any{"name": "image", "datatype": "FP32", "shape": []int{1, 3, 32, 32}, "data": values}}})
			check(200, "POST", described+"/infer", s.send(t, "POST", path("tiles")+"/infer", fiber.MIMEApplicationJSON, bytes.NewReader(body)))
		}
		check(400, "POST", described+"/infer", s.send(t, "POST", path("tiles")+"/infer", fiber.MIMEApplicationJSON, strings.NewReader("{}")))
		check(404, "POST", described+"/infer", s.send(t, "POST", path("none")+"/infer", fiber.MIMEApplicationJSON, strings.NewReader("{}")))
	}
	checkVersions(t, s, check)
	check(404, "GET", "/v2/models/{name}/versions/{version}", get("/v2/models/tiles/versions/2"))
	check(204, "DELETE", one, s.send(t, http.MethodDelete, "/models/tiles", "", nil))
	check(404, "DELETE", one, s.send(t, http.MethodDelete, "/models/tiles", "", nil))
	s.draining.Store(true)
	check(503, "PUT", one, s.put(t, "tiles", []byte("short")))
	check(503, "GET", pathInferenceReady, get(pathInferenceReady))
	s.draining.Store(false)
	if files := storedFiles(t, dir); len(files) != 0 {
		t.Errorf("files left: %v", files)
	}
}

// checkVersions checks the answers about versions, feedback and scores of the stored model
// tiles.
func checkVersions(t *testing.T, s *service, check func(status int, method, path string, a answer)) {
	t.Helper()
	const one = "/models/{name}"
	image, zipped := tile(t, testCrack), calibrationZip(t, 8, nil)
	request := func(method, path string) answer { return s.request(t, method, path, nil) }
	patch := func(name, body string) answer {
		return s.send(t, http.MethodPatch, "/models/"+name, fiber.MIMEApplicationJSON, strings.NewReader(body))
	}
	check(200, "PATCH", one, patch("tiles", `{"threshold": 1.5, "note": "n"}`))
	check(400, "PATCH", one, patch("tiles", `{}`))
	check(404, "PATCH", one, patch("none", `{}`))
	check(413, "PATCH", one, patch("tiles", strings.Repeat(" ", maxPatchBytes+1)))
	check(422, "PATCH", one, patch("tiles", `{"false_alarm_rate": 1e-9}`))
	check(200, "POST", one+"/calibrate", s.post(t, "/models/tiles/calibrate", file("zipFile", "c.zip", zipped)))
	check(400, "POST", one+"/calibrate", s.post(t, "/models/tiles/calibrate", text("x", "y")))
	check(404, "POST", one+"/calibrate", s.post(t, "/models/none/calibrate", text("x", "y")))
	for _, format := range modelFormats {
		check(200, "GET", one+"/file", request("GET", "/models/tiles/file?format="+format.name))
	}
	check(400, "GET", one+"/file", request("GET", "/models/tiles/file"))
	check(404, "GET", one+"/file", request("GET", "/models/none/file?format=zip"))
	feedback := func(name string, parts ...part) answer { return s.post(t, "/models/"+name+"/feedback", parts...) }
	added := feedback("tiles", file("imageFile", "i", image), text("label", "normal"))
	id := as[feedbackItem](t, added).ID
	check(201, "POST", one+"/feedback", added)
	check(400, "POST", one+"/feedback", feedback("tiles", text("label", "normal")))
	check(422, "POST", one+"/feedback", feedback("tiles", file("imageFile", "i", []byte("prose")), text("label", "normal")))
	check(404, "POST", one+"/feedback", feedback("none", text("label", "normal")))
	check(200, "GET", one+"/feedback", request("GET", "/models/tiles/feedback?threshold=0"))
	check(400, "GET", one+"/feedback", request("GET", "/models/tiles/feedback?threshold=x"))
	check(200, "GET", one+"/scores", request("GET", "/models/tiles/scores"))
	check(404, "GET", one+"/scores", request("GET", "/models/none/scores"))
	check(200, "POST", one+"/drift/reset", request("POST", "/models/tiles/drift/reset"))
	check(404, "POST", one+"/drift/reset", request("POST", "/models/none/drift/reset"))
	check(200, "GET", one+"/feedback/{id}/image", request("GET", "/models/tiles/feedback/"+id+"/image"))
	check(404, "GET", one+"/feedback/{id}/image", request("GET", "/models/tiles/feedback/x/image"))
	check(200, "DELETE", one+"/feedback/{id}", request("DELETE", "/models/tiles/feedback/"+id))
	check(404, "DELETE", one+"/feedback/{id}", request("DELETE", "/models/tiles/feedback/"+id))
	versions := request("GET", "/models/tiles/versions")
	check(200, "GET", one+"/versions", versions)
	check(404, "GET", one+"/versions", request("GET", "/models/none/versions"))
	last := as[struct{ Versions []struct{ SHA256 string } }](t, versions).Versions
	check(200, "POST", one+"/versions/{sha256}/restore", request("POST", "/models/tiles/versions/"+last[len(last)-1].SHA256+"/restore"))
	check(404, "POST", one+"/versions/{sha256}/restore", request("POST", "/models/tiles/versions/x/restore"))
}
