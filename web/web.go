// Package web holds the built web page of the service. The sources are in src; make page
// builds them into dist with the tools that package-lock.json pins. It must hold no
// handlers: internal/api serves the files.
package web

import (
	"embed"
	"io/fs"
)

//go:embed dist
var dist embed.FS

// Index is the name of the page itself in Files.
const Index = "index.html"

// Files returns the files of the page: Index, and the script, the style sheet, the icon
// and the licenses that it refers to. The names of the script and the style sheet have a
// hash of their content.
func Files() fs.FS {
	files, err := fs.Sub(dist, "dist")
	if err != nil {
		panic(err) // only for an invalid path
	}
	return files
}
