package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printRemarks prints skipped files and warnings, one per line.
func printRemarks(w io.Writer, skipped []models.SkippedFile, warnings []string) {
	for _, s := range skipped {
		fmt.Fprintf(w, "skipped %s: %s\n", s.Name, s.Reason)
	}
	for _, s := range warnings {
		fmt.Fprintln(w, "warning:", s)
	}
}

func writeBundle(path string, m *models.Model) error {
	return files.WriteAtomic(path, func(w io.Writer) error { return exporter.WriteBundle(w, m) })
}

func writeFile(path string, data []byte) error {
	return files.WriteAtomic(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progressBar returns a bar of n units, which is drawn by its first update.
func progressBar(w io.Writer, n int) *progressbar.ProgressBar {
	return progressbar.NewOptions(n, progressbar.OptionSetWriter(w), progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetElapsedTime(true), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())
}
