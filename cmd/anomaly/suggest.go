package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// maxSuggestions is the largest number of names that an error suggests.
const maxSuggestions = 3

// otherNames are names of fields of the HTTP interface whose flags have another name.
var otherNames = map[string]string{"max-seconds": "max-time", "base-model": "from", "basemodel": "from"}

// unknownCommand returns the error of a command that does not exist, with a suggestion.
func unknownCommand(root *cobra.Command, name string) error {
	var known []string
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			known = append(known, c.Name())
		}
		if slices.Contains(c.SuggestFor, strings.ToLower(name)) {
			return fmt.Errorf("unknown command %q; did you mean %s?", name, c.Name())
		}
	}
	if root.Flags().Lookup(name) != nil {
		return fmt.Errorf("unknown command %q; did you mean --%s?", name, name)
	}
	if s := suggestion(name, known, ""); s != "" {
		return fmt.Errorf("unknown command %q; %s", name, s)
	}
	return fmt.Errorf("unknown command %q; %s help lists the commands", name, root.Name())
}

// flagError adds a suggestion to the error of a flag that does not exist.
func flagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	// Cobra parses the flags of a command that does not exist as the root's.
	if args := c.Flags().Args(); !c.HasParent() && len(args) > 0 {
		return unknownCommand(c, args[0])
	}
	name := unknown.GetSpecifiedName()
	if s := unknown.GetSpecifiedShortnames(); s != "" {
		name, _, _ = strings.Cut(s, "=") // one dash, for instance -level
	}
	if len(name) < 2 {
		return err
	}
	var known []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			known = append(known, f.Name)
		}
	})
	if s := suggestion(name, known, "--"); s != "" {
		return fmt.Errorf("%w; %s", err, s)
	}
	return fmt.Errorf("%w; %s --help lists the flags", err, c.CommandPath())
}

// suggestion returns a question that names the known names closest to name, or "" if
// there are none. Each has the prefix.
func suggestion(name string, known []string, prefix string) string {
	var names []string
	for _, k := range closest(name, known) {
		names = append(names, prefix+k)
	}
	if len(names) == 0 {
		return ""
	}
	return "did you mean " + strings.Join(names, " or ") + "?"
}

// closest returns at most maxSuggestions known names, those that name may be a
// misspelling of, or nil. Underscores and letter case do not count.
func closest(name string, known []string) []string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	if len(name) > 64 {
		return nil
	}
	if other, ok := otherNames[name]; ok && slices.Contains(known, other) {
		return []string{other}
	}
	var best []string
	smallest := 4 // no distance above 3 counts
	for _, k := range known {
		d := editDistance(name, k)
		if d > (len(k)+1)/3 {
			// A part of a name, or a name with an addition, is worse than any misspelling.
			words := strings.Contains("-"+k+"-", "-"+name+"-") || len(name) >= 3 && (strings.HasPrefix(k, name) || len(k) >= 3 && strings.HasPrefix(name, k))
			if !words {
				continue
			}
			d = 3
		}
		switch {
		case d < smallest:
			best, smallest = []string{k}, d
		case d == smallest:
			best = append(best, k)
		}
	}
	return best[:min(len(best), maxSuggestions)]
}

// editDistance returns the number of insertions, deletions, replacements and exchanges
// of neighbouring bytes that make b from a (optimal string alignment).
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replaced := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replaced++
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, replaced)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
