package api

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/deepmed/anomaly/models"
)

const (
	// maxWarningsHeader is the maximum length of a header with warnings, in bytes. Proxies
	// limit all headers of an answer together, nginx to 4 KiB by default.
	maxWarningsHeader = 1 << 10
	// maxWarnings is the maximum number of warnings in a header.
	maxWarnings = 16
	// maxWarningBytes is the maximum length of a warning in a header, in bytes. A warning
	// may have names of files in it.
	maxWarningBytes = 250
)

// setWarnings sets a header to the warnings and, if files were skipped, to a sentence about
// them. It sets no header if there are none.
func setWarnings(set func(name, value string), header string, warnings []string, skipped int, files []models.SkippedFile) {
	if warnings = allWarnings(warnings, skipped, files); len(warnings) > 0 {
		set(header, encodeWarnings(warnings))
	}
}

// allWarnings returns the warnings and, if files were skipped, a sentence about them.
func allWarnings(warnings []string, skipped int, files []models.SkippedFile) []string {
	if skipped == 0 {
		return warnings
	}
	sentence := fmt.Sprintf("skipped images: %d", skipped)
	if len(files) > 0 {
		sentence += fmt.Sprintf(", the first is %s: %s", files[0].Name, files[0].Reason)
	}
	return append(slices.Clone(warnings), sentence)
}

// encodeWarnings returns warnings as a JSON list of strings, percent-encoded, because names
// of files in them may have any characters. Warnings that exceed the limits are cut or
// replaced by their number.
func encodeWarnings(warnings []string) string {
	for n := min(len(warnings), maxWarnings); ; n-- {
		var list []string
		for _, w := range warnings[:n] {
			if len(w) > maxWarningBytes {
				w = strings.ToValidUTF8(w[:maxWarningBytes], "") + "…"
			}
			list = append(list, w)
		}
		if rest := len(warnings) - n; rest > 0 {
			list = append(list, fmt.Sprintf("more warnings, in metadata.json: %d", rest))
		}
		text, err := json.Marshal(list)
		if encoded := url.PathEscape(string(text)); err == nil && len(encoded) <= maxWarningsHeader || n == 0 {
			return encoded
		}
	}
}
