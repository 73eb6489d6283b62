package imagefile

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// decoders are functions that decode an image, by package. Untrusted bytes must reach
// them through Decode only, which checks the limits first. imaging calls the TIFF
// decoder (CVE-2023-36308 was a panic there).
var decoders = map[string][]string{
	"image":                             {"Decode", "DecodeConfig"},
	"image/png":                         {"Decode", "DecodeConfig"},
	"image/jpeg":                        {"Decode", "DecodeConfig"},
	"image/gif":                         {"Decode", "DecodeAll", "DecodeConfig"},
	"golang.org/x/image/bmp":            {"Decode", "DecodeConfig"},
	"golang.org/x/image/tiff":           {"Decode", "DecodeConfig"},
	"golang.org/x/image/webp":           {"Decode", "DecodeConfig"},
	"github.com/disintegration/imaging": {"Decode", "Open"},

	"github.com/deepmed/anomaly/internal/dicom":        {"Open"},
	"github.com/deepmed/anomaly/internal/jpeg2000":     {"Decode"},
	"github.com/deepmed/anomaly/internal/jpegls":       {"Decode"},
	"github.com/deepmed/anomaly/internal/jpegextended": {"Decode"},
	"github.com/deepmed/anomaly/internal/jpeglossless": {"Decode"},
}

// callers are the files that may call a decoder, by its package. Others are for Decode.
var callers = map[string]string{
	"github.com/deepmed/anomaly/internal/dicom":        "../../internal/imagefile/frames.go",
	"github.com/deepmed/anomaly/internal/jpeg2000":     "../../internal/dicom/decode.go",
	"github.com/deepmed/anomaly/internal/jpegls":       "../../internal/dicom/decode.go",
	"github.com/deepmed/anomaly/internal/jpegextended": "../../internal/dicom/decode.go",
	"github.com/deepmed/anomaly/internal/jpeglossless": "../../internal/dicom/decode.go",
}

func TestDecode_IsTheOnlyCallerOfImageDecoders(t *testing.T) {
	found := 0
	err := filepath.WalkDir(filepath.Join("..", ".."), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// The benchmark decodes the repository's images only.
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
			caller := cmp.Or(callers[names[from.Name]], "../../internal/imagefile/decode.go")
			if filepath.ToSlash(path) != caller || names[from.Name] == "image" || names[from.Name] == "github.com/disintegration/imaging" {
				t.Errorf("%s decodes images with %s.%s, expected only in %s", path, from.Name, call.Sel.Name, caller)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 11 {
		t.Errorf("found only %d calls of decoders", found)
	}
}
