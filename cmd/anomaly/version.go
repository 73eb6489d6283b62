package main

import (
	"runtime/debug"
	"strings"
)

// version returns the version of the program, as --version prints it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return describeBuild(info)
}

// describeBuild returns the version of the main module, the revision of its source unless
// the version contains it, and the version of Go.
func describeBuild(info *debug.BuildInfo) string {
	const shortRevision = 12 // characters, as in Go's pseudo-versions
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	parts := []string{info.Main.Version}
	if parts[0] == "" {
		parts[0] = "(devel)"
	}
	if r := settings["vcs.revision"]; r != "" {
		r = r[:min(len(r), shortRevision)]
		if settings["vcs.modified"] == "true" {
			r += ", modified"
		}
		if !strings.Contains(parts[0], r[:min(len(r), shortRevision)]) {
			parts = append(parts, "revision "+r)
		}
	}
	return strings.Join(append(parts, info.GoVersion), ", ")
}
