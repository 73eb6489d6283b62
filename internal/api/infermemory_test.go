package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// An inference needs memory for its body, its input, its outputs and its answer. All of
// it is reserved before it is allocated, and released at the end.
func TestInfer_ReservesAllItsMemory(t *testing.T) {
	s, images, _ := startInference(t)
	shape := []int{2, 3, 32, 32}
	flat := map[string]any{"name": "image", "datatype": "FP32", "shape": shape, "data": images}
	binary := map[string]any{"name": "image", "datatype": "FP32", "shape": shape, "parameters": map[string]any{"binary_data_size": len(images) * 4}}
	errorOnly := []any{map[string]any{"name": "reconstruction_error"}}
	inBinary := map[string]any{"binary_data_output": true}
	for name, c := range map[string]struct {
		request        map[string]any
		reconstruction bool
	}{
		"JSON to JSON":     {map[string]any{"inputs": []any{flat}}, true},
		"JSON to binary":   {map[string]any{"inputs": []any{flat}, "parameters": inBinary}, true},
		"JSON to an error": {map[string]any{"inputs": []any{flat}, "outputs": errorOnly}, false},
		"binary to JSON":   {map[string]any{"inputs": []any{binary}}, true},
		"binary to binary": {map[string]any{"inputs": []any{binary}, "parameters": inBinary}, true},
	} {
		t.Run(name, func(t *testing.T) {
			body := marshal(t, c.request)
			header, length := len(body), ""
			if fmt.Sprint(c.request["inputs"]) == fmt.Sprint([]any{binary}) {
				length = strconv.Itoa(len(body))
				body = appendFloats(body, images)
			}
			need := int64(len(body))
			if _, err := parseInferRequest(body, length, models.Square(32), func(n int) error { need += int64(n); return nil }); err != nil {
				t.Fatal(err)
			}
			within := func(budget, held int64) answer {
				t.Helper()
				s.memory.reset(budget)
				other := &reservation{budget: &s.memory}
				if err := other.reserve(int(held)); err != nil {
					t.Fatal(err)
				}
				a := s.infer(t, body, length)
				other.release()
				eventually(t, "all memory is released", func() bool { return s.memory.available.Load() == budget })
				return a
			}
			a := within(need, 0)
			if a.status != 200 {
				t.Fatalf("with exactly the budget: status %d: %.300s", a.status, a.body)
			}
			// The body, a copy of the JSON, 4 bytes per value, and the answer.
			least := len(body) + header + 4*len(images) + len(a.body)
			if c.reconstruction {
				least += 4 * len(images)
			}
			const overhead = 1 << 10 // of the answer, beside its values
			if need < int64(least)-overhead {
				t.Errorf("%d bytes are reserved, at least %d are used", need, least)
			}
			if a := within(need, 1); a.status != 503 || a.header.Get("Retry-After") == "" || a.message(t) != errNoMemory.message {
				t.Errorf("beyond the available budget: status %d: %.300s", a.status, a.body)
			}
			if a := within(need-1, 0); a.status != 413 || !strings.Contains(a.message(t), strconv.FormatInt(need-1, 10)) {
				t.Errorf("beyond the whole budget: status %d: %.300s", a.status, a.body)
			}
			if a := within(int64(len(body))-1, 0); a.status != 413 {
				t.Errorf("a body beyond the whole budget: status %d: %.300s", a.status, a.body)
			}
			for wrong, text := range map[string]string{"prose": "prose", "a short input": `{"inputs":[{"name":"image","datatype":"FP32","shape":[1,3,32,32],"data":[1]}]}`} {
				s.memory.reset(1 << 20)
				if a := s.infer(t, []byte(text), ""); a.status != 400 {
					t.Errorf("%s: status %d: %.300s", wrong, a.status, a.body)
				}
				eventually(t, "all memory is released", func() bool { return s.memory.available.Load() == 1<<20 })
			}
		})
	}
}

// An answer remains in memory until its client has read it.
func TestInfer_ReservesTheAnswerUntilItIsSent(t *testing.T) {
	s, images, _ := startInference(t)
	const n = 700 // of about 33 KiB in JSON each, more than a connection buffers
	var many []float32
	for range n {
		many = append(many, images[:3*32*32]...)
	}
	header := marshal(t, map[string]any{
		"inputs": []any{map[string]any{"name": "image", "datatype": "FP32", "shape": []int{n, 3, 32, 32}, "parameters": map[string]any{"binary_data_size": 4 * len(many)}}},
	})
	body := appendFloats(bytes.Clone(header), many)
	total := s.options.UploadBytes
	for name, end := range map[string]func(net.Conn) error{
		"the client reads it":    func(c net.Conn) error { _, err := io.Copy(io.Discard, c); return err },
		"the client disconnects": net.Conn.Close,
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t)
			fmt.Fprintf(c, "POST /v2/models/tiles/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n%s: %d\r\n\r\n", len(body), headerBinaryLength, len(header))
			if _, err := c.Write(body); err != nil {
				t.Fatal(err)
			}
			start := make([]byte, 12)
			if _, err := io.ReadFull(c, start); err != nil || string(start) != "HTTP/1.1 200" {
				t.Fatalf("%q, %v", start, err)
			}
			// A value has 8 to 16 bytes in JSON. The rest was released.
			if taken := total - s.memory.available.Load(); taken < int64(8*len(many)) || taken > int64(16*len(many)) {
				t.Errorf("%d bytes are reserved", taken)
			}
			if err := end(c); err != nil {
				t.Error(err)
			}
			eventually(t, "all memory is released", func() bool { return s.memory.available.Load() == total })
		})
	}
}

func TestParseInferRequest_AllocatesNoMoreThanItReserves(t *testing.T) {
	const length, side, slack = 8 << 20, 16, 1 << 20
	const values = 3 * side * side
	fill := func(format, repeated string) string {
		n := (length - len(format)) / len(repeated)
		return fmt.Sprintf(format, strings.Repeat(repeated, n))
	}
	input := func(more string) string {
		return `{"inputs":[{"name":"image","datatype":"FP32","shape":[1,3,16,16],` + more + `}]}`
	}
	images := length / values / 3
	numbers := func(n int) string { return strings.TrimSuffix(strings.Repeat("0,", n), ",") }
	for name, c := range map[string]struct {
		text     string
		contains string // part of the error; empty for none
	}{
		"many images":              {fmt.Sprintf(`{"inputs":[{"name":"image","datatype":"FP32","shape":[%d,3,16,16],"data":[%s]}]}`, images, numbers(images*values)), ""},
		"many inputs":              {fill(`{"inputs":[%s{}]}`, "{},"), "one input"},
		"many outputs":             {fill(`{"outputs":[%s{}],"inputs":[{}]}`, "{},"), "one input"},
		"a long shape":             {fill(`{"inputs":[{"name":"image","datatype":"FP32","shape":[%s1]}]}`, "1,"), "shape"},
		"a long parameter":         {fill(input(`"parameters":{"x":[%s0]},"data":[`+numbers(values)+`]`), "0,"), ""},
		"a parameter of many":      {fill(input(`"parameters":{"x":{%s"b":1}},"data":[`+numbers(values)+`]`), `"a":{},`), ""},
		"many parameters":          {fill(input(`"parameters":{%s"b":1},"data":[`+numbers(values)+`]`), `"a":1,`), ""},
		"a list for a size":        {fill(input(`"parameters":{"binary_data_size":[%s0]}`), "0,"), "JSON"},
		"a list for a flag":        {fill(`{"parameters":{"binary_data_output":[%s0]}}`, "0,"), "JSON"},
		"data within data":         {fill(input(`"data":[%s`+numbers(values)+`]`), "[],"), ""},
		"the same data many times": {fill(input(`%s"data":[`+numbers(values)+`]`), `"data":[1],`), ""},
		"a long id":                {fill(`{"id":"%s"}`, "<"), "string"},
		"a long id of no text":     {fill(`{"id":"%s"}`, "\xff"), "string"},
		"a long id in escapes":     {fill(`{"id":"%s"}`, `\"`), "string"},
		"a long name of a key":     {fill(`{"%s":1}`, "K"), "string"},
		"a string without end":     {fill(`{"id":"%s\`, "x"), "string"},
		"a long number":            {fill(input(`"data":[%s]`), "1"), "longer"},
		"a long number in a shape": {fill(`{"inputs":[{"name":"image","datatype":"FP32","shape":[%s]}]}`, "1"), "longer"},
		"a long number for a size": {fill(input(`"parameters":{"binary_data_size":%s}`), "1"), "longer"},
		"a long number for a name": {fill(`{"inputs":[{"name":%s}]}`, "1"), "JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			reserved := 0
			body := []byte(c.text)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := parseInferRequest(body, "", models.Square(side), func(n int) error { reserved += n; return nil })
			runtime.ReadMemStats(&after)
			if took := int(after.TotalAlloc - before.TotalAlloc); took > reserved+slack {
				t.Errorf("%d bytes were allocated and %d reserved for a request of %d", took, reserved, len(body))
			}
			if (err == nil) != (c.contains == "") || (err != nil && !strings.Contains(err.Error(), c.contains)) {
				t.Errorf("%.300v", err)
			}
			if err != nil && len(err.Error()) > 500 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestJSONValueBytes_CoversTheEncoder(t *testing.T) {
	values := make([]float32, 1<<20)
	for i := range values {
		values[i] = 0.1 + float32(i)/float32(len(values)+1)*0.9
	}
	text, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	// The growing buffer, the previous buffer, and the copy.
	if counted := jsonValueBytes * len(values); 3*len(text) > counted {
		t.Errorf("%d bytes of text are counted as %d", len(text), counted)
	}
	if bytes.Contains(text, []byte("e")) {
		t.Error("the values have exponents, unlike those of images")
	}
}
