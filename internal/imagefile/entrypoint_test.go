package imagefile

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// decoders are packages and their functions that read an image. Untrusted bytes
// must come to them through Decode alone, which holds them against the limits
// first. Imaging's way to TIFF is one of them (CVE-2023-36308 was a panic there).
var decoders = map[string][]string{
	"image":                             {"Decode", "DecodeConfig"},
	"image/png":                         {"Decode", "DecodeConfig"},
	"image/jpeg":                        {"Decode", "DecodeConfig"},
	"image/gif":                         {"Decode", "DecodeAll", "DecodeConfig"},
	"golang.org/x/image/bmp":            {"Decode", "DecodeConfig"},
	"golang.org/x/image/tiff":           {"Decode", "DecodeConfig"},
	"golang.org/x/image/webp":           {"Decode", "DecodeConfig"},
	"github.com/disintegration/imaging": {"Decode", "Open"},
}

func TestImagesComeInThroughOneDoor(t *testing.T) {
	found := 0
	err := filepath.WalkDir(filepath.Join("..", ".."), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// The benchmark reads our own pictures only.
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || path == filepath.Join("..", "..", "bench")) {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		names := map[string]string{}
		for _, i := range file.Imports {
			full := strings.Trim(i.Path.Value, `"`)
			name := full[strings.LastIndexByte(full, '/')+1:]
			if i.Name != nil {
				name = i.Name.Name
			}
			names[name] = full
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			from, ok := call.X.(*ast.Ident)
			if !ok || !slices.Contains(decoders[names[from.Name]], call.Sel.Name) {
				return true
			}
			found++
			if filepath.ToSlash(path) != "../../internal/imagefile/decode.go" || names[from.Name] == "image" || names[from.Name] == "github.com/disintegration/imaging" {
				t.Errorf("%s reads images by %s.%s, expected imagefile.Decode", path, from.Name, call.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 10 {
		t.Errorf("only %d calls of decoders were found", found)
	}
}
