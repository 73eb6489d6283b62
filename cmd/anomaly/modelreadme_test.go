package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
)

// envSnippets names the folder that scripts/snippets.sh fills; `make test` sets
// it.
const envSnippets = "ANOMALY_TEST_SNIPPETS"

// snippetFile returns the path of a file that scripts/snippets.sh fetched. It skips the
// test if there is none.
func snippetFile(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv(envSnippets)
	if dir == "" {
		t.Skip(envSnippets + " names no folder with what a model's README needs: `make test` sets it")
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Skipf("%v: `make snippets` fetches it", err)
	}
	return path
}

// tool returns the path of an installed program. It skips the test if there is none.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// libraryFolder returns a folder with ONNX Runtime's library under the names that
// linkers and loaders look for.
func libraryFolder(t *testing.T) string {
	t.Helper()
	library, err := ort.FindLibrary("")
	if err == nil {
		library, err = filepath.Abs(library)
	}
	if err != nil {
		t.Fatal(err)
	}
	aliases := []string{"libonnxruntime.so", "libonnxruntime.so.1"}
	if runtime.GOOS == "darwin" {
		aliases = []string{"libonnxruntime.dylib", "libonnxruntime.1.dylib"}
	}
	dir := t.TempDir()
	for _, name := range append(aliases, filepath.Base(library)) {
		if err := os.Symlink(library, filepath.Join(dir, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	return dir
}

// program returns a command that judges an image by the model in its working directory.
type program func(image string) *exec.Cmd

// nthBlock returns the README's n-th block of a language, counted from 0. The README
// must have exactly the given number of them.
func nthBlock(t *testing.T, readme, language string, n, of int) string {
	t.Helper()
	list := blocks(readme, language)
	if len(list) != of {
		t.Fatalf("%d blocks of %s, expected %d", len(list), language, of)
	}
	return list[n]
}

// commandOf returns the first line in the README's shell blocks with the prefix.
func commandOf(t *testing.T, readme, begin string) string {
	t.Helper()
	for _, block := range blocks(readme, "sh") {
		for line := range strings.Lines(block) {
			if strings.HasPrefix(line, begin) {
				return strings.TrimSpace(line)
			}
		}
	}
	t.Fatalf("no command begins with %q", begin)
	return ""
}

func pythonProgram(n int) func(*testing.T, string) program {
	return func(t *testing.T, readme string) program {
		interpreter, text := python(t), nthBlock(t, readme, "python", n, 2)
		if strings.Count(text, `"photo.jpg"`) != 1 {
			t.Fatalf("it does not read photo.jpg:\n%s", text)
		}
		return func(image string) *exec.Cmd {
			return exec.Command(interpreter, "-c", strings.ReplaceAll(text, `"photo.jpg"`, strconv.Quote(image)))
		}
	}
}

func javascriptProgram(t *testing.T, readme string) program {
	node, modules := tool(t, "node"), snippetFile(t, "node_modules")
	dir := t.TempDir()
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	file := write(t, dir, "judge.mjs", []byte(nthBlock(t, readme, "js", 0, 1)))
	commandOf(t, readme, "node judge.mjs photo.jpg")
	return func(image string) *exec.Cmd { return exec.Command(node, file, image) }
}

func goProgram(t *testing.T, readme string) program {
	library, dir := libraryFolder(t), t.TempDir()
	module := strings.TrimPrefix(commandOf(t, readme, "go get "), "go get ")
	path, version, ok := strings.Cut(module, "@")
	if !ok || !strings.Contains(string(read(t, "../../go.mod")), fmt.Sprintf("\t%s %s\n", path, version)) {
		t.Fatalf("%s is not what go.mod names", module)
	}
	write(t, dir, "judge.go", []byte(nthBlock(t, readme, "go", 0, 1)))
	write(t, dir, "go.mod", fmt.Appendf(nil, "module judge\n\ngo 1.26\n\nrequire %s %s\n", path, version))
	write(t, dir, "go.sum", read(t, "../../go.sum"))
	binary := filepath.Join(dir, "judge")
	build := exec.Command("go", "build", "-o", binary, "judge.go")
	build.Dir, build.Env = dir, append(os.Environ(), "GOWORK=off", "GOPROXY=off", "GOFLAGS=-mod=readonly")
	if r := finish(t, build); r.status != 0 {
		t.Fatalf("it does not build: %s", r.stderr)
	}
	return func(image string) *exec.Cmd {
		c := exec.Command(binary, image)
		c.Env = append(os.Environ(), "LD_LIBRARY_PATH="+library, "DYLD_LIBRARY_PATH="+library)
		return c
	}
}

func cppProgram(t *testing.T, readme string) program {
	tool(t, "g++")
	root, dir := t.TempDir(), t.TempDir()
	for name, target := range map[string]string{"include": snippetFile(t, "include"), "lib": libraryFolder(t)} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, dir, "judge.cpp", []byte(nthBlock(t, readme, "cpp", 0, 1)))
	build := exec.Command("sh", "-c", commandOf(t, readme, "g++ ")+" -Wall -Werror")
	build.Dir, build.Env = dir, append(os.Environ(), "ORT="+root)
	if r := finish(t, build); r.status != 0 {
		t.Fatalf("it does not build: %s", r.stderr)
	}
	return func(image string) *exec.Cmd {
		return exec.Command(filepath.Join(dir, "judge"), image+".ppm")
	}
}

// picture returns a PNG with a colour pattern; unless opaque, its alpha falls to the
// right.
func picture(t *testing.T, width, height int, opaque bool) []byte {
	t.Helper()
	img := image.NewNRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			c := color.NRGBA{uint8(x * y / 7), uint8(40 + 3*x), uint8(200 - y), 255}
			if !opaque {
				c.A = uint8(255 - 255*x/width)
			}
			img.SetNRGBA(x, y, c)
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pixmap returns an image as a PPM.
func pixmap(t *testing.T, data []byte) []byte {
	t.Helper()
	img, err := imagefile.Decode(data, imagefile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return append(fmt.Appendf(nil, "P6\n%d %d\n255\n", img.W, img.H), img.Pix...)
}

func TestModelReadme_ProgramsJudgeAsDetect(t *testing.T) {
	fresh := unpacked(t, smallModel(t))
	readme := string(read(t, filepath.Join(fresh, "README.md")))
	folders := []string{fresh}
	for _, metadata := range []string{`{"threshold": 1e-9, "class_names": ["gut", "ein \"Riß\""]}`, `{"threshold": 1e-9, "decision": {"measure": "mse", "threshold": 9}}`} {
		dir := t.TempDir()
		file, to := write(t, dir, "metadata.json", []byte(metadata)), filepath.Join(dir, "model.zip")
		if r := run(t, "convert", smallModel(t), "--metadata", file, "--to", to); r.status != exitNormal {
			t.Fatal(r.stderr)
		}
		folders = append(folders, unpacked(t, to))
	}
	images := map[string][]byte{
		"tile.jpg": read(t, tileFiles(t, "test/crack", 1)[0]), "colours.png": picture(t, 77, 130, true), "faint.png": picture(t, 130, 45, false),
	}
	for name, data := range images {
		for _, dir := range folders {
			write(t, dir, name, data)
			write(t, dir, name+".ppm", pixmap(t, data))
		}
	}
	// All decode a PNG to the same pixels. autoencoder_image.onnx resizes with ONNX
	// Runtime; before autoencoder.onnx Pillow does.
	const resized, prepared = 5e-3, 1e-4
	for _, c := range []struct {
		name      string
		make      func(*testing.T, string) program
		tolerance float64
	}{
		{"Python", pythonProgram(0), resized},
		{"Python, the network by itself", pythonProgram(1), prepared},
		{"JavaScript", javascriptProgram, resized},
		{"Go", goProgram, resized},
		{"C++", cppProgram, resized},
	} {
		t.Run(c.name, func(t *testing.T) {
			judge := c.make(t, readme)
			said := map[string]int{}
			for _, dir := range folders {
				for name := range images {
					cmd := judge(name)
					cmd.Dir = dir
					r := finish(t, cmd)
					tolerance := c.tolerance
					if filepath.Ext(name) == ".jpg" {
						tolerance = jpegTolerance
					}
					ours := entries(t, run(t, "detect", "--json", "--model", filepath.Join(dir, "autoencoder.onnx"), filepath.Join(dir, name)))
					word := sameVerdict(t, r, ours[0], tolerance)
					said[word]++
				}
			}
			if said["normal"] < len(images) || said["anomaly"] < len(images) {
				t.Errorf("the verdicts are %v, expected some of each", said)
			}
		})
	}
}

// sameVerdict compares the line that a program printed with an entry of detect, and
// returns the verdict.
func sameVerdict(t *testing.T, r ran, ours entry, tolerance float64) string {
	t.Helper()
	parts := strings.SplitN(strings.TrimSpace(r.stdout), " ", 3)
	if r.status != 0 || len(parts) != 3 {
		t.Fatalf("exit %d: %s%s", r.status, r.stdout, r.stderr)
	}
	value, err := strconv.ParseFloat(parts[1], 64)
	if err != nil {
		t.Fatalf("%v: %s", err, r.stdout)
	}
	if difference := max(value, *ours.Value) - min(value, *ours.Value); !(difference <= tolerance**ours.Value) {
		t.Errorf("%s: the score is %v, detect's %v", ours.File, value, *ours.Value)
	}
	threshold := *ours.Threshold
	undecided := max(value, threshold)-min(value, threshold) <= tolerance*threshold
	if want := map[bool]string{false: "normal", true: "anomaly"}[*ours.IsAnomaly]; parts[0] != want && !undecided {
		t.Errorf("%s: %s at the score %v, detect: %s at the threshold %v", ours.File, parts[0], value, want, threshold)
	}
	var names []string
	if err := json.Unmarshal([]byte(parts[2]), &names); err != nil || !slices.Equal(names, ours.ClassNames) {
		t.Errorf("%s: the class names are %s, detect's %q", ours.File, parts[2], ours.ClassNames)
	}
	return parts[0]
}

func TestModelReadme_NamesTheTestedPackages(t *testing.T) {
	readme := string(read(t, filepath.Join(unpacked(t, smallModel(t)), "README.md")))
	var tried struct{ Dependencies map[string]string }
	if err := json.Unmarshal(read(t, "../../testdata/package.json"), &tried); err != nil {
		t.Fatal(err)
	}
	install := strings.Fields(commandOf(t, readme, "npm install "))
	for name := range tried.Dependencies {
		if !slices.Contains(install, name) {
			t.Errorf("%v does not install %s", install, name)
		}
	}
	if len(tried.Dependencies) != 2 || tried.Dependencies["onnxruntime-node"] != ort.LibraryVersion() {
		t.Errorf("the tested packages are %v", tried.Dependencies)
	}
}
