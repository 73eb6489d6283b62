// Package scripts tests the files that no Go program uses: the Dockerfile, and the script
// that fetches ONNX Runtime's library. It must hold tests only.
package scripts

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/internal/testkit"
)

const root = ".."

// stage is a FROM of a Dockerfile with its instructions, without comments and with
// continued lines joined.
type stage struct {
	name, image string
	steps       []string
}

func (s stage) step(instruction string) []string {
	var found []string
	for _, line := range s.steps {
		if rest, ok := strings.CutPrefix(line, instruction+" "); ok {
			found = append(found, strings.TrimSpace(rest))
		}
	}
	return found
}

func dockerfile(t *testing.T) map[string]stage {
	t.Helper()
	text := strings.ReplaceAll(read(t, "Dockerfile"), "\\\n", " ")
	stages := map[string]stage{}
	var current *stage
	flush := func() {
		if current != nil {
			stages[current.name] = *current
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if f := strings.Fields(line); f[0] == "FROM" {
			flush()
			if len(f) != 4 || f[2] != "AS" {
				t.Fatalf("%q does not name its stage", line)
			}
			current = &stage{name: f[3], image: f[1]}
			continue
		}
		if current == nil {
			t.Fatalf("%q is before any FROM", line)
		}
		current.steps = append(current.steps, line)
	}
	flush()
	return stages
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// runMake runs make at the root, without the variables of a make that runs this test.
func runMake(t *testing.T, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("make is not installed")
	}
	cmd := exec.CommandContext(t.Context(), "make", args...)
	cmd.Dir = root
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); !slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "DESTDIR", "PREFIX", "RUNTIME"}, name) {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestDockerfile_RunsOnlyMakeTargetsAndSystemCommands(t *testing.T) {
	stages := dockerfile(t)
	system := []string{"apt-get", "rm", "ldconfig", "useradd"}
	ran := 0
	for name, s := range stages {
		for _, step := range s.step("RUN") {
			for command := range strings.SplitSeq(step, "&&") {
				f := strings.Fields(command)
				if f[0] != "make" {
					if !slices.Contains(system, f[0]) {
						t.Errorf("stage %s runs %q, expected a make target or a system command", name, command)
					}
					continue
				}
				if len(f) < 2 {
					t.Errorf("stage %s runs make without a target", name)
					continue
				}
				ran++
				// make -n fails if the target or one of its prerequisites does not exist.
				runMake(t, append([]string{"-n"}, f[1:]...)...)
			}
		}
	}
	if ran == 0 {
		t.Error("no step uses the Makefile")
	}
}

func TestDockerfile_InstallsThePinnedLibrary(t *testing.T) {
	for _, args := range [][]string{{"install", "PREFIX=/out"}, {"install", "RUNTIME=cuda", "PREFIX=/out"}} {
		plan := runMake(t, append([]string{"-n"}, args...)...)
		if !strings.Contains(plan, "scripts/fetch-onnxruntime.sh") {
			t.Errorf("make %s does not fetch the library:\n%s", strings.Join(args, " "), plan)
		}
	}
	if script := read(t, "scripts/fetch-onnxruntime.sh"); !strings.Contains(script, "internal/ort/library.tsv") {
		t.Error("the script does not read the table of pinned libraries")
	}
	// Only the table has the version.
	for _, name := range []string{"Dockerfile", "Makefile", "scripts/fetch-onnxruntime.sh"} {
		if strings.Contains(read(t, name), ort.LibraryVersion()) {
			t.Errorf("%s names the version %s, which the table pins", name, ort.LibraryVersion())
		}
	}
	for name, from := range map[string]string{"cpu": "--from=build /out/ /usr/local/", "cuda": "--from=build-cuda /out-cuda/ /usr/local/"} {
		if got := dockerfile(t)[name].step("COPY"); len(got) != 1 || got[0] != from {
			t.Errorf("stage %s copies %q, want %q", name, got, from)
		}
	}
}

func TestDockerfile_ServesWithoutRoot(t *testing.T) {
	stages := dockerfile(t)
	for _, name := range []string{"cpu", "cuda"} {
		s := stages[name]
		if user := s.step("USER"); len(user) != 1 || user[0] == "root" || user[0] == "0" {
			t.Errorf("stage %s runs as %q", name, user)
		}
		if got := s.step("EXPOSE"); !slices.Equal(got, []string{"5029"}) {
			t.Errorf("stage %s exposes %q", name, got)
		}
	}
}

// arguments parses the JSON list of an instruction, such as CMD, that a stage has once.
func (s stage) arguments(t *testing.T, instruction string) []string {
	t.Helper()
	steps := s.step(instruction)
	if len(steps) != 1 {
		t.Fatalf("stage %s has %s %d times", s.name, instruction, len(steps))
	}
	var list []string
	// Options, such as those of HEALTHCHECK, precede the list.
	if err := json.Unmarshal([]byte(steps[0][strings.Index(steps[0], "["):]), &list); err != nil {
		t.Fatalf("stage %s: %s %s: %v", s.name, instruction, steps[0], err)
	}
	return list
}

// The port must come from PORT, and the training of a client that names no time must end
// before DeepMed's web app and proxy give up, after 600 seconds.
func TestImages_LeaveThePortToTheEnvironment(t *testing.T) {
	stages := dockerfile(t)
	for _, name := range []string{"cpu", "cuda"} {
		s := stages[name]
		if got, want := s.arguments(t, "ENTRYPOINT"), []string{"anomaly"}; !slices.Equal(got, want) {
			t.Errorf("stage %s runs %q, expected %q", name, got, want)
		}
		if got, want := s.arguments(t, "CMD"), []string{"serve", "--addr", "0.0.0.0", "--default-max-seconds", "570"}; !slices.Equal(got, want) {
			t.Errorf("stage %s runs %q, expected %q", name, got, want)
		}
		if got, want := s.arguments(t, "HEALTHCHECK"), []string{"anomaly", "health"}; !slices.Equal(got, want) {
			t.Errorf("stage %s checks its health by %q, expected %q", name, got, want)
		}
	}
}

// The image's own commands, with PORT as a container's environment has it.
func TestImageCommand_ListensOnPORT(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	binary := filepath.Join(t.TempDir(), "anomaly")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, root+"/cmd/anomaly").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cpu := dockerfile(t)["cpu"]
	environment := append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "PORT=") }), "PORT="+testkit.FreePort(t))
	command := func(args []string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), binary, args...)
		c.Env = environment
		return c
	}
	service := command(append(cpu.arguments(t, "CMD"), "--temp-dir", t.TempDir()))
	var log strings.Builder
	service.Stderr = &log
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	healthy := func() bool { return command(cpu.arguments(t, "HEALTHCHECK")[1:]).Run() == nil }
	for deadline := time.Now().Add(time.Minute); !healthy(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("the service is not healthy on PORT")
			break
		}
	}
	if err := service.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := service.Wait(); err != nil {
		t.Errorf("%v: %s", err, &log)
	}
}

func TestDockerfile_BuildsWithTheGoVersionOfTheModule(t *testing.T) {
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))
	if version == nil {
		t.Fatal("go.mod names no version of Go")
	}
	if image := dockerfile(t)["build"].image; !strings.HasPrefix(image, "golang:"+version[1]+"-") {
		t.Errorf("the image is built with %s, the module needs Go %s", image, version[1])
	}
}

// This is the build step of the image, in a folder.
func TestMakeInstall_InstallsBinaryAndLibrary(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary")
	}
	prefix := t.TempDir()
	runMake(t, "install", "PREFIX="+prefix)
	library, err := filepath.Glob(filepath.Join(prefix, "lib", "libonnxruntime*"))
	if err != nil || len(library) != 1 {
		t.Fatalf("lib holds %q, want the library alone", library)
	}
	if err := orttest.VerifyLibrary(t, library[0]); err != nil {
		t.Error(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(prefix, "bin", "anomaly"), "--help")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("the installed binary: %v\n%s", err, out)
	}
}

// fetch runs the script with the given PATH, and returns its output.
func fetch(t *testing.T, cache string, path string, env ...string) (string, error) {
	t.Helper()
	script, err := filepath.Abs("fetch-onnxruntime.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", script)
	cmd.Env = append([]string{"PATH=" + path, "HOME=" + cache, ort.EnvCache + "=" + cache}, env...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// tools returns a folder with the system commands that the script uses, without npm and Python.
func tools(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the system commands are those of Linux")
	}
	dir := t.TempDir()
	for _, name := range []string{"sh", "awk", "uname", "dirname", "cut", "sort", "mktemp", "rm", "mkdir", "tar", "gzip", "cp", "chmod", "mv", "grep", "tail", "cat", "sha256sum"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("%s is not installed", name)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// write writes an executable script.
func write(t *testing.T, dir, name, body string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestFetch_NamesTheProgramsToInstall(t *testing.T) {
	cache := t.TempDir()
	out, err := fetch(t, cache, tools(t))
	if err == nil {
		t.Fatalf("succeeded: %s", out)
	}
	if strings.Contains(out, "\n") {
		t.Errorf("more than one line:\n%s", out)
	}
	for _, want := range []string{"npm is not installed", "pip", ort.EnvLibrary} {
		if !strings.Contains(out, want) {
			t.Errorf("%q does not contain %q", out, want)
		}
	}
}

func TestFetch_InstallsNothingWithAnotherHash(t *testing.T) {
	cache, path := t.TempDir(), tools(t)
	// An npm that fetches a package with another library.
	write(t, path, "npm", `mkdir -p package/bin/napi-v6/linux/x64 package/bin/napi-v6/linux/arm64
echo other >package/bin/napi-v6/linux/x64/libonnxruntime.so.1
echo other >package/bin/napi-v6/linux/arm64/libonnxruntime.so.1
tar -czf it.tgz package
`)
	out, err := fetch(t, cache, path)
	if err == nil {
		t.Fatalf("succeeded: %s", out)
	}
	if !strings.Contains(out, "SHA-256") || strings.Contains(out, "\n") {
		t.Errorf("%q is not one line about the hash", out)
	}
	left, err := filepath.Glob(filepath.Join(cache, "onnxruntime", ort.LibraryVersion(), "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestFetch_PrintsTheErrorOfTheClient(t *testing.T) {
	cache, path := t.TempDir(), tools(t)
	write(t, path, "npm", "echo 'no such package here' >&2\nexit 1\n")
	out, err := fetch(t, cache, path)
	if err == nil {
		t.Fatalf("succeeded: %s", out)
	}
	if !strings.Contains(out, "no such package here") || strings.Contains(out, "\n") {
		t.Errorf("%q is not one line with npm's error", out)
	}
}

func TestFetch_PrintsNothingIfTheLibraryExists(t *testing.T) {
	dir, err := ort.CacheDir()
	if err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skip(`no library in the cache: "make runtime" fetches it`)
	}
	out, err := fetch(t, filepath.Dir(filepath.Dir(dir)), tools(t))
	if err != nil || out != "" {
		t.Errorf("printed %q, %v", out, err)
	}
	// The script never replaces a library that the user names.
	named := filepath.Join(t.TempDir(), "libonnxruntime.so")
	if err := os.WriteFile(named, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err = fetch(t, t.TempDir(), tools(t), ort.EnvLibrary+"="+named)
	if err != nil || out != "" {
		t.Errorf("with %s set: printed %q, %v", ort.EnvLibrary, out, err)
	}
}
