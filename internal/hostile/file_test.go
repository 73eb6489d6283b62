package hostile

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// unpickle loads pickles without protection and prints the names of those that created
// no canary.
const unpickle = `
import copyreg, os, pickle, sys
code, canary, *files = sys.argv[1:]
copyreg.add_extension("os", "system", int(code))
for name in files:
    try:
        with open(name, "rb") as f:
            pickle.load(f)
    except Exception:
        pass
    if os.path.exists(canary):
        os.remove(canary)
    else:
        print(os.path.basename(name))
`

// Only pickles that do run code in Python prove that the reader does not.
func TestPickles_RunCodeInPython(t *testing.T) {
	python := os.Getenv("ANOMALY_TEST_PYTHON")
	if python == "" {
		python = "python3"
	}
	if _, err := exec.LookPath(python); err != nil {
		t.Skip("no python3")
	}
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	args := []string{"-c", unpickle, strconv.Itoa(ExtensionCode), canary}
	harmless := filepath.Join(dir, "harmless")
	if err := os.WriteFile(harmless, Asm("N", Stop), 0o644); err != nil {
		t.Fatal(err)
	}
	args = append(args, harmless)
	for _, f := range pickles(canary) {
		if !f.RunsCode {
			continue
		}
		path := filepath.Join(dir, f.Name)
		if err := os.WriteFile(path, f.Pickle, 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	if n := len(args) - 5; n < 25 {
		t.Errorf("only %d files run code", n)
	}
	out, err := exec.CommandContext(t.Context(), python, args...).CombinedOutput()
	if err != nil || string(out) != "harmless\n" {
		t.Errorf("%v: ran no code: %s", err, out)
	}
}

func TestHostile_IsImportedOnlyByTests(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.ImportPath}}: {{.Imports}}", "../../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 10 {
		t.Fatalf("only %d packages", len(lines))
	}
	for _, line := range lines {
		if _, imports, _ := strings.Cut(line, ": "); strings.Contains(imports, "internal/hostile") {
			t.Errorf("imported by a package: %s", line)
		}
	}
}
