package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write docs/cli.md")

// Data of testdata/cli.md.tmpl.
type (
	cliPage struct {
		Commands       []cliCommand
		EngineCommands []string
		EngineFlags    []cliFlag
		Levels         []trainer.Level
		DefaultLevel   int
		MetadataBytes  int64
		LibraryVersion string
	}
	cliCommand struct {
		Name, Usage, Short, Long string
		Flags                    []cliFlag
		MinShiftImages           int
	}
	cliFlag struct{ Name, Default, Usage string }
)

// flagsOf returns the visible flags of a set, in alphabetical order.
func flagsOf(f *pflag.FlagSet) []cliFlag {
	var list []cliFlag
	f.VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			list = append(list, describeFlag(f))
		}
	})
	return list
}

var defaultInUsage = regexp.MustCompile(` ?\(default: (.*)\)$`)

// describeFlag moves the default value into a column of its own, with its unit.
func describeFlag(f *pflag.Flag) cliFlag {
	_, usage := pflag.UnquoteUsage(f)
	d := cliFlag{Name: f.Name, Usage: usage}
	if m := defaultInUsage.FindStringSubmatch(usage); m != nil {
		d.Usage, d.Default = strings.TrimSuffix(usage, m[0]), m[1]
	} else {
		n, notNumber := strconv.ParseInt(f.DefValue, 10, 64)
		switch {
		case notNumber == nil && strings.Contains(usage, "in bytes"):
			d.Default = size(n)
		case f.Value.Type() == "duration":
			d.Default = regexp.MustCompile(`([hm])(0m)?0s$`).ReplaceAllString(f.DefValue, "$1") // 2m0s, 24h0m0s
		case f.DefValue != "false" && f.DefValue != "[]":
			d.Default = f.DefValue
		}
		if d.Default != "" {
			d.Default = "`" + d.Default + "`"
		}
	}
	d.Usage = escape(d.Usage)
	return d
}

// size formats a number of bytes.
func size(n int64) string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n >= 1<<u.shift && n%(1<<u.shift) == 0 {
			return fmt.Sprintf("%d %s", n>>u.shift, u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}

// leaves returns the commands that have no commands of their own.
func leaves(c *cobra.Command) []*cobra.Command {
	if !c.HasSubCommands() {
		return []*cobra.Command{c}
	}
	var list []*cobra.Command
	for _, sub := range c.Commands() {
		list = append(list, leaves(sub)...)
	}
	return list
}

// renderCLIPage returns docs/cli.md.
func renderCLIPage(t *testing.T) []byte {
	t.Helper()
	page := cliPage{
		DefaultLevel: trainer.DefaultLevel, MetadataBytes: models.MaxMetadataBytes, LibraryVersion: ort.LibraryVersion(),
	}
	for l, err := trainer.LevelOf(1); err == nil; l, err = trainer.LevelOf(l.Number + 1) {
		page.Levels = append(page.Levels, l)
	}
	var engine cobra.Command
	new(engineFlags).add(&engine)
	page.EngineFlags = flagsOf(engine.Flags())
	for _, c := range leaves(rootCommand()) {
		if c.Hidden {
			continue
		}
		command := cliCommand{Name: strings.TrimPrefix(c.CommandPath(), "anomaly "), Usage: c.UseLine(), Short: escape(c.Short), Long: unwrap(c.Long), MinShiftImages: minShiftImages}
		flags := flagsOf(c.Flags())
		if c.Flags().Lookup("provider") != nil {
			page.EngineCommands = append(page.EngineCommands, c.Name())
			flags = slices.DeleteFunc(flags, func(f cliFlag) bool {
				return slices.ContainsFunc(page.EngineFlags, func(e cliFlag) bool { return e.Name == f.Name })
			})
		}
		command.Flags = flags
		page.Commands = append(page.Commands, command)
	}
	text := template.Must(template.New("cli.md.tmpl").Funcs(template.FuncMap{"size": size}).ParseFiles("testdata/cli.md.tmpl"))
	var b bytes.Buffer
	if err := text.Execute(&b, page); err != nil {
		t.Fatal(err)
	}
	return append(bytes.TrimSpace(b.Bytes()), '\n')
}

// escape escapes the characters of a sentence that Markdown tables and HTML use.
func escape(text string) string {
	return strings.NewReplacer("<", "&lt;", "|", `\|`, "*", `\*`).Replace(text)
}

// unwrap joins the lines of each paragraph, and escapes them.
func unwrap(text string) string {
	var paragraphs []string
	for p := range strings.SplitSeq(text, "\n\n") {
		paragraphs = append(paragraphs, strings.ReplaceAll(p, "\n", " "))
	}
	return escape(strings.Join(paragraphs, "\n\n"))
}

func TestCLIPage_MatchesTheCommands(t *testing.T) {
	const path = "../../docs/cli.md"
	want := renderCLIPage(t)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, path); !bytes.Equal(got, want) {
		t.Error("docs/cli.md differs from the commands: go test ./cmd/anomaly -run CLIPage -update writes it")
	}
	for _, c := range leaves(rootCommand()) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !bytes.Contains(want, []byte("`--"+f.Name+"`")) {
				t.Errorf("docs/cli.md has no --%s of %s", f.Name, c.Name())
			}
		})
	}
}

func TestDescribeFlag_MovesTheDefaultIntoItsColumn(t *testing.T) {
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.Int64("bytes", 4<<30, "largest request, in bytes")
	f.Int64("number", 16777216, "largest number")
	f.Duration("minutes", 120e9, "longest time")
	f.Duration("hours", 24*3600e9, "longest time")
	f.Duration("seconds", 30e9, "longest pause")
	f.Bool("yes", false, "do it")
	f.String("path", "", "a `file` <x> or * (default: none)")
	want := map[string]cliFlag{
		"bytes": {"bytes", "`4 GiB`", "largest request, in bytes"}, "number": {"number", "`16777216`", "largest number"},
		"minutes": {"minutes", "`2m`", "longest time"}, "hours": {"hours", "`24h`", "longest time"}, "seconds": {"seconds", "`30s`", "longest pause"},
		"yes": {"yes", "", "do it"}, "path": {"path", "none", "a file &lt;x> or \\*"},
	}
	for _, got := range flagsOf(f) {
		if got != want[got.Name] {
			t.Errorf("%+v, want %+v", got, want[got.Name])
		}
	}
}

func TestDocs_LinksResolve(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) < 6 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, path := range append(pages, "../../README.md", "../../CONTRIBUTING.md", "../../testdata/README.md") {
		for _, m := range regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`).FindAllStringSubmatch(string(read(t, path)), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := path
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(path), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			if m[2] != "" && !slices.Contains(anchors(string(read(t, target))), m[2]) {
				t.Errorf("%s: %s has no heading #%s", path, target, m[2])
			}
		}
	}
}

// anchors returns the anchors of the headings of a Markdown page, as GitHub makes
// them.
func anchors(page string) []string {
	var list []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(page, -1) {
		kept := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		list = append(list, strings.ReplaceAll(kept, " ", "-"))
	}
	return list
}

// The README opens with what the program is and how to try it; details are in docs.
func TestReadme_IsShort(t *testing.T) {
	if n := strings.Count(string(read(t, "../../README.md")), "\n"); n > 130 {
		t.Errorf("%d lines, at most 130 are allowed", n)
	}
}
