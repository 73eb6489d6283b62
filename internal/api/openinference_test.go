package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// startInference runs a server that stores the model tiles, of 32×32 pixels. It returns
// two images as inputs of the network, and their anomaly scores.
func startInference(t testing.TB) (s *service, images []float32, errs []float64) {
	t.Helper()
	s, _ = startWithModels(t, nil)
	s.mustPut(t, "tiles", trained(t)["anomaly_detection_model.zip"])
	for _, f := range tileFiles(t, testCrack, 2) {
		image := read(t, f)
		pixels, err := imagefile.Prepare(image, models.Square(32), imagefile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		values := make([]float32, len(pixels))
		imagefile.Normalize(values, pixels)
		images = append(images, values...)
		errs = append(errs, as[inference.Verdict](t, s.byName(t, "tiles", image)).ReconstructionError)
	}
	return s, images, errs
}

// infer sends an inference request to the model tiles.
func (s *service) infer(t testing.TB, body []byte, headerLength string) answer {
	t.Helper()
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	if headerLength != "" {
		header.Set(headerBinaryLength, headerLength)
	}
	return s.do(t, s.newRequest(t, http.MethodPost, "/v2/models/tiles/infer", header, bytes.NewReader(body)))
}

// inferred returns the id of an inference answer, and the outputs by name.
func inferred(t testing.TB, a answer) (id string, outputs map[string]tensor) {
	t.Helper()
	header, rest := a.body, []byte(nil)
	if n := a.header.Get(headerBinaryLength); n != "" {
		length, err := strconv.Atoi(n)
		if err != nil {
			t.Fatal(err)
		}
		header, rest = a.body[:length], a.body[length:]
	}
	var v struct {
		ID      string
		Outputs []struct {
			Name, Datatype string
			Shape          []int
			Data           []float32
			Parameters     map[string]int
		}
	}
	if err := json.Unmarshal(header, &v); err != nil || a.status != 200 {
		t.Fatalf("status %d: %v: %.300s", a.status, err, a.body)
	}
	outputs = map[string]tensor{}
	for _, o := range v.Outputs {
		data := o.Data
		if size, ok := o.Parameters[binarySize]; ok {
			data, rest = decodeFloats(rest[:size]), rest[size:]
		}
		outputs[o.Name] = tensor{o.Shape, data}
		count := 1
		for _, d := range o.Shape {
			count *= d
		}
		if o.Datatype != "FP32" || len(data) != count {
			t.Errorf("%s: %s of shape %v with %d values", o.Name, o.Datatype, o.Shape, len(data))
		}
	}
	if len(rest) != 0 {
		t.Errorf("%d bytes follow the outputs", len(rest))
	}
	return v.ID, outputs
}

// marshal returns values as JSON.
func marshal(t testing.TB, values map[string]any) []byte {
	t.Helper()
	body, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestInfer_AcceptsJSONAndBinaryData(t *testing.T) {
	s, images, errs := startInference(t)
	nested := [][][][]float32{} // N×3×S×S
	for n := range 2 {
		var planes [][][]float32
		for c := range 3 {
			var rows [][]float32
			for y := range 32 {
				at := ((n*3+c)*32 + y) * 32
				rows = append(rows, images[at:at+32])
			}
			planes = append(planes, rows)
		}
		nested = append(nested, planes)
	}
	binary := map[string]any{"name": "image", "datatype": "FP32", "shape": []int{2, 3, 32, 32}, "parameters": map[string]any{"binary_data_size": len(images) * 4}}
	flat := map[string]any{"name": "image", "datatype": "FP32", "shape": []int{2, 3, 32, 32}, "data": images}
	deep := map[string]any{"name": "image", "datatype": "FP32", "shape": []int{2, 3, 32, 32}, "data": nested}
	both, all := []string{"reconstruction", "reconstruction_error"}, []string{"reconstruction", "reconstruction_error", "mse"}
	var reconstruction, mses []float32
	for name, c := range map[string]struct {
		input   map[string]any
		more    map[string]any
		outputs []string
		binary  bool // at least one output
	}{
		"flat JSON":                {input: flat, outputs: all},
		"nested JSON":              {input: deep, outputs: all},
		"binary":                   {input: binary, outputs: all},
		"binary to binary":         {input: binary, more: map[string]any{"parameters": map[string]any{"binary_data_output": true}}, outputs: all, binary: true},
		"the error only":           {input: flat, more: map[string]any{"outputs": []any{map[string]any{"name": "reconstruction_error"}}}, outputs: both[1:]},
		"the reconstruction only":  {input: flat, more: map[string]any{"outputs": []any{map[string]any{"name": "reconstruction"}}}, outputs: both[:1]},
		"one of two in binary":     {input: flat, more: map[string]any{"outputs": []any{map[string]any{"name": "reconstruction_error"}, map[string]any{"name": "reconstruction", "parameters": map[string]any{"binary_data": true}}}}, outputs: both, binary: true},
		"all but one in binary":    {input: binary, more: map[string]any{"parameters": map[string]any{"binary_data_output": true}, "outputs": []any{map[string]any{"name": "reconstruction_error", "parameters": map[string]any{"binary_data": false}}}}, outputs: both[1:]},
		"unknown parameters":       {input: flat, more: map[string]any{"parameters": map[string]any{"sequence_id": 5, "x": "y"}}, outputs: all},
		"a header length for JSON": {input: flat, outputs: all},
	} {
		t.Run(name, func(t *testing.T) {
			q := map[string]any{"id": "a-1", "inputs": []any{c.input}}
			for k, v := range c.more {
				q[k] = v
			}
			body, length := marshal(t, q), ""
			if _, ok := c.input["data"]; !ok || name == "a header length for JSON" {
				length = strconv.Itoa(len(body))
			}
			if _, ok := c.input["data"]; !ok {
				body = appendFloats(body, images)
			}
			a := s.infer(t, body, length)
			id, got := inferred(t, a)
			if id != "a-1" || len(got) != len(c.outputs) || (a.header.Get(headerBinaryLength) != "") != c.binary {
				t.Errorf("id %q, %d outputs, headers %v", id, len(got), a.header)
			}
			checkLength(t, a)
			for _, output := range c.outputs {
				switch data := got[output].data; output {
				case "reconstruction_error":
					for i := range errs {
						if float64(data[i]) != errs[i] {
							t.Errorf("the score of image %d is %v, of its file %v", i, data[i], errs[i])
						}
					}
				case "mse":
					mses = data
				case "reconstruction":
					if reconstruction == nil {
						reconstruction = data
					}
					if !slices.Equal(data, reconstruction) {
						t.Error("the reconstruction differs")
					}
				}
			}
		})
	}
	// The mean squared error is that of the reconstruction.
	sum := 0.0
	for i := range 3 * 32 * 32 {
		d := float64(reconstruction[i] - images[i])
		sum += d * d
	}
	if mse := sum / (3 * 32 * 32); math.Abs(mse-float64(mses[0])) > 1e-6*mse {
		t.Errorf("the reconstruction has the error %v, the answer has %v", mse, mses[0])
	}
}

func TestInferenceProtocol_DescribesServerAndModels(t *testing.T) {
	s, _, _ := startInference(t)
	get := func(path string) answer { return s.send(t, http.MethodGet, path, "", nil) }
	for _, path := range []string{"/v2/health/live", "/v2/health/ready", "/v2/models/tiles/ready", "/v2/models/tiles/versions/1/ready"} {
		if a := get(path); a.status != 200 {
			t.Errorf("%s: status %d: %s", path, a.status, a.body)
		}
	}
	server := as[struct {
		Name, Version string
		Extensions    []string
	}](t, get("/v2"))
	if server.Name != ServiceName || server.Version == "" || !slices.Contains(server.Extensions, "binary_tensor_data") {
		t.Errorf("%+v", server)
	}
	for _, path := range []string{"/v2/models/tiles", "/v2/models/tiles/versions/1"} {
		a := get(path)
		want := `{"inputs":[{"name":"image","datatype":"FP32","shape":[-1,3,32,32]}],"name":"tiles",` +
			`"outputs":[{"name":"reconstruction","datatype":"FP32","shape":[-1,3,32,32]},{"name":"reconstruction_error","datatype":"FP32","shape":[-1]},{"name":"mse","datatype":"FP32","shape":[-1]}],` +
			`"platform":"onnxruntime_onnx","versions":["1"]}`
		if string(a.body) != want {
			t.Errorf("%s: %s", path, a.body)
		}
	}
	for _, path := range []string{"/v2/models/other", "/v2/models/other/ready", "/v2/models/tiles/versions/2", "/v2/models/tiles/versions/2/ready"} {
		if a := get(path); a.status != 404 || a.message(t) == "" {
			t.Errorf("%s: status %d: %s", path, a.status, a.body)
		}
	}
}

func TestInfer_RejectsInvalidTensors(t *testing.T) {
	s, images, _ := startInference(t)
	one := images[:3*32*32]
	input := func(change func(map[string]any)) []byte {
		in := map[string]any{"name": "image", "datatype": "FP32", "shape": []int{1, 3, 32, 32}, "data": one}
		change(in)
		return marshal(t, map[string]any{"inputs": []any{in}})
	}
	binary := input(func(in map[string]any) {
		delete(in, "data")
		in["parameters"] = map[string]any{"binary_data_size": len(one) * 4}
	})
	length := strconv.Itoa(len(binary))
	nan := slices.Clone(one)
	nan[7] = float32(math.NaN())
	whole := string(input(func(map[string]any) {}))
	for name, c := range map[string]struct {
		body     []byte
		length   string
		contains string
	}{
		"prose":                       {[]byte("I am not JSON"), "", "JSON"},
		"an empty body":               {nil, "", "JSON"},
		"no inputs":                   {[]byte(`{"inputs":[]}`), "", "one input"},
		"two inputs":                  {[]byte(`{"inputs":[{"name":"image"},{"name":"image"}]}`), "", "one input"},
		"another input":               {input(func(in map[string]any) { in["name"] = "x" }), "", "named image"},
		"another type":                {input(func(in map[string]any) { in["datatype"] = "FP16" }), "", "FP32"},
		"another size":                {input(func(in map[string]any) { in["shape"] = []int{1, 3, 64, 64} }), "", "[N,3,32,32]"},
		"three dimensions":            {input(func(in map[string]any) { in["shape"] = []int{3, 32, 32} }), "", "[N,3,32,32]"},
		"no images":                   {input(func(in map[string]any) { in["shape"] = []int{0, 3, 32, 32} }), "", "[N,3,32,32]"},
		"a negative number of images": {input(func(in map[string]any) { in["shape"] = []int{-1, 3, 32, 32} }), "", "[N,3,32,32]"},
		"more images than bytes":      {input(func(in map[string]any) { in["shape"] = []int{math.MaxInt / 4, 3, 32, 32} }), "", "shape"},
		"too many images":             {input(func(in map[string]any) { in["shape"] = []int{2, 3, 32, 32} }), "", "3072 values"},
		"too few values":              {input(func(in map[string]any) { in["data"] = one[1:] }), "", "3071 values"},
		"too many values":             {input(func(in map[string]any) { in["data"] = append(slices.Clone(one), 1) }), "", "more than"},
		"text for values":             {input(func(in map[string]any) { in["data"] = []string{"a"} }), "", "numbers"},
		"one value":                   {input(func(in map[string]any) { in["data"] = 1 }), "", "array"},
		"no data":                     {input(func(in map[string]any) { delete(in, "data") }), "", "array"},
		"a number beyond FP32":        {[]byte(strings.Replace(whole, `"data":[`, `"data":[1e99,`, 1)), "", "1e99"},
		"an unknown output":           {[]byte(strings.Replace(whole, `{"inputs"`, `{"outputs":[{"name":"x"}],"inputs"`, 1)), "", "no output"},
		"an output twice":             {[]byte(strings.Replace(whole, `{"inputs"`, `{"outputs":[{"name":"reconstruction"},{"name":"reconstruction"}],"inputs"`, 1)), "", "twice"},
		"binary data without a size":  {append([]byte(whole), 1, 2, 3, 4), strconv.Itoa(len(whole)), "follow"},
		"binary data cut off":         {appendFloats(slices.Clone(binary), one[1:]), length, "bytes"},
		"too much binary data":        {append(appendFloats(slices.Clone(binary), one), 0), length, "bytes"},
		"binary data with NaN":        {appendFloats(slices.Clone(binary), nan), length, "finite"},
		"a length in letters":         {binary, "x", headerBinaryLength},
		"a negative length":           {binary, "-1", headerBinaryLength},
		"a length beyond the body":    {binary, "99999999", headerBinaryLength},
	} {
		t.Run(name, func(t *testing.T) {
			a := s.infer(t, c.body, c.length)
			if a.status != 400 || !strings.Contains(a.message(t), c.contains) {
				t.Errorf("status %d: %s; expected 400 with %q", a.status, a.body, c.contains)
			}
			s.isOneSentence(t, a)
		})
	}
	r := s.newRequest(t, http.MethodPost, "/v2/models/tiles/infer", http.Header{"Content-Encoding": {"gzip"}}, strings.NewReader(whole))
	if a := s.do(t, r); a.status != 415 || !strings.Contains(a.message(t), "gzip") {
		t.Errorf("status %d: %s", a.status, a.body)
	}
}

// Triton's Python client works with this service as with Triton.
func TestInfer_WorksWithTritonsClient(t *testing.T) {
	interpreter := os.Getenv("ANOMALY_TEST_PYTHON")
	if interpreter == "" {
		t.Skip("ANOMALY_TEST_PYTHON is not set to a Python with the packages of testdata/requirements.txt; `make test` sets it")
	}
	if out, err := exec.Command(interpreter, "-c", "import tritonclient.http").CombinedOutput(); err != nil {
		t.Skipf("tritonclient is not installed: %s", out)
	}
	s, images, errs := startInference(t)
	input := t.TempDir() + "/images.f32"
	if err := os.WriteFile(input, appendFloats(nil, images), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(interpreter, "testdata/triton_client.py", strings.TrimPrefix(s.url, "http://"), "tiles", input,
		fmt.Sprint(errs[0]), fmt.Sprint(errs[1])).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(string(out), "8 requests agree") {
		t.Errorf("%s", out)
	}
}
