package main

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

// Methods and functions of package time whose result has no monotonic clock reading.
// Differences, deadlines and timers of all other times use the monotonic clock.
var (
	wallMethods   = []string{"UTC", "Local", "In", "Unix", "UnixMilli", "UnixMicro", "UnixNano", "AddDate"}
	wallFunctions = []string{"Date", "Parse", "ParseInLocation", "Unix", "UnixMilli", "UnixMicro"}
)

// shownTimes are the uses of the wall clock that are shown to people or to other machines,
// and decide nothing here.
var shownTimes = []string{
	"cmd/anomaly/models.go Local",      // prints the times of models and versions
	"internal/api/callback.go Unix",    // the receiver of a callback compares it with its own
	"internal/feedback/folders.go UTC", // when feedback was given
	"internal/feedback/shared.go UTC",
	"internal/monitor/monitor.go UTC", // since when the alarm is on
	// Orders the scores of several nodes for display.
	"internal/monitor/monitor.go UnixMilli",
}

// The wall clock may be set while the service runs. A test cannot set it, so this one
// checks that no source reads it. (Left-over folders are recognized by locks, not by
// the age of a file.)
func TestSources_DoNotUseTheWallClock(t *testing.T) {
	files, uses := 0, 0
	for _, dir := range []string{"../../cmd", "../../internal", "../../inference", "../../trainer", "../../models"} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == "registry" { // reports when a model was stored
				return fs.SkipDir
			}
			if err == nil && d.IsDir() && d.Name() == "telemetrytest" { // for tests only
				return fs.SkipDir
			}
			if strings.HasSuffix(filepath.ToSlash(path), "internal/jobs/wallclock.go") { // tested by make faults
				return err
			}
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			files++
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"time"` || i.Path.Value == `"os"` }) {
				return nil
			}
			ast.Inspect(file, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				of, named := s.X.(*ast.Ident)
				switch {
				case named && of.Name == "time":
					uses++
					if slices.Contains(wallFunctions, s.Sel.Name) {
						t.Errorf("%s uses time.%s", set.Position(s.Pos()), s.Sel.Name)
					}
				case named && of.Name == "math":
				case slices.Contains(shownTimes, strings.TrimPrefix(filepath.ToSlash(path), "../../")+" "+s.Sel.Name):
				case slices.Contains(wallMethods, s.Sel.Name):
					t.Errorf("%s uses %s", set.Position(s.Pos()), s.Sel.Name)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 40 || uses < 50 {
		t.Errorf("found only %d uses of package time in %d files", uses, files)
	}
}
