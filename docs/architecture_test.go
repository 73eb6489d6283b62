// Package docs holds the project's documents to the code.
package docs

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/deepmed/anomaly/"

// importTable returns the imports that architecture.md lists, by package.
func importTable(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\|.*\\|([^|]*)\\|$")
	name := regexp.MustCompile("`([^`]+)`")
	table := map[string][]string{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		table[m[1]] = []string{}
		for _, n := range name.FindAllStringSubmatch(m[2], -1) {
			table[m[1]] = append(table[m[1]], n[1])
		}
	}
	return table
}

func TestArchitecture_ListsTheImportsOfEachPackage(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles,CgoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	table := importTable(t)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath                 string
			Imports, GoFiles, CgoFiles []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(p.ImportPath, module)
		if len(p.GoFiles)+len(p.CgoFiles) == 0 || strings.HasPrefix(name, "bench") || strings.HasPrefix(name, "internal/ort/") {
			continue
		}
		want, ok := table[name]
		delete(table, name)
		if !ok {
			t.Errorf("architecture.md does not list %s", name)
			continue
		}
		got := []string{}
		for _, i := range p.Imports {
			if strings.HasPrefix(i, module) {
				got = append(got, strings.TrimPrefix(i, module))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s imports %q, architecture.md lists %q", name, got, want)
		}
	}
	for name := range table {
		t.Errorf("architecture.md lists %s, which does not exist", name)
	}
}
