package kernels_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// header returns ONNX Runtime's header from onnxruntime_go, without comments.
func header(t *testing.T) string {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/yalue/onnxruntime_go").Output()
	if err != nil {
		t.Fatalf("locating onnxruntime_go: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "onnxruntime_c_api.h"))
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*`).ReplaceAllString(string(text), "")
}

// members returns the names of a struct's function pointers, in declaration order.
func members(t *testing.T, header, name string) []string {
	t.Helper()
	_, body, found := strings.Cut(header, "struct "+name+" {")
	if !found {
		t.Fatalf("the header has no %s", name)
	}
	body, _, _ = strings.Cut(body, "\n};")
	var names []string
	for _, m := range regexp.MustCompile(`ORT_API2_STATUS\((\w+),|ORT_CLASS_RELEASE\((\w+)\)|ORT_API_T\([^,]+, (\w+),|\(ORT_API_CALL\* ?(\w+)\)\(`).FindAllStringSubmatch(body, -1) {
		switch {
		case m[2] != "":
			names = append(names, "Release"+m[2])
		default:
			names = append(names, m[1]+m[3]+m[4])
		}
	}
	return names
}

func TestABI_MatchesONNXRuntimesHeader(t *testing.T) {
	own, err := os.ReadFile("abi.h")
	if err != nil {
		t.Fatal(err)
	}
	h := header(t)
	functions := members(t, h, "OrtApi")
	used := regexp.MustCompile(`F\((\d+), [^,]+, (\w+),`).FindAllStringSubmatch(string(own), -1)
	if len(used) < 10 || len(functions) < 300 {
		t.Fatalf("%d functions used of %d", len(used), len(functions))
	}
	for _, u := range used {
		index, _ := strconv.Atoi(u[1]) // digits
		if index >= len(functions) || functions[index] != u[2] {
			t.Errorf("%s is declared at %d, expected %d", u[2], index, slices.Index(functions, u[2]))
		}
	}
	_, body, _ := strings.Cut(string(own), "typedef struct OrtCustomOp {")
	body, _, _ = strings.Cut(body, "} OrtCustomOp;")
	operator := members(t, h, "OrtCustomOp")
	declared := regexp.MustCompile(`\(\*(\w+)\)\(`).FindAllStringSubmatch(body, -1)
	if len(declared) < 18 || len(declared) > len(operator) {
		t.Fatalf("%d members of %d", len(declared), len(operator))
	}
	for i, d := range declared {
		if d[1] != operator[i] {
			t.Errorf("member %d of OrtCustomOp is %s, declared as %s", i, operator[i], d[1])
		}
	}
}
