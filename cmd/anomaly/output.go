package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
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
		fmt.Fprintf(w, "skipped %s: %s\n", quoted(s.Name), escaped(s.Reason))
	}
	for _, s := range warnings {
		fmt.Fprintln(w, "warning:", escaped(s))
	}
}

// unprintable reports whether a character may change how a terminal shows the text around
// it: a control character, a line separator or a mark that changes the direction.
func unprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.IsOneOf([]*unicode.RangeTable{unicode.Zl, unicode.Zp, unicode.Bidi_Control}, r)
}

// quoted returns the name of a file, in quotes and with escapes if it has characters that
// change how a terminal shows it.
func quoted(name string) string { return dataset.Printable(name) }

// escaped returns a text, such as an error that contains the name of a file, with escapes
// for the characters that are unprintable or not valid UTF-8.
func escaped(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, unprintable) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		part := text[i : i+n]
		if unprintable(r) || r == utf8.RuneError && n == 1 {
			part = strconv.Quote(part)
			part = part[1 : len(part)-1]
		}
		b.WriteString(part)
		i += n
	}
	return b.String()
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

// fileProgress returns a function that counts one of n files, and one that ends the
// display. It draws a bar on a terminal, and nothing elsewhere. Both may be called
// concurrently.
func fileProgress(w io.Writer, n int) (step, end func()) {
	if n < 2 || !isTerminal(w) {
		return func() {}, func() {}
	}
	var mu sync.Mutex
	ended := false
	bar := progressBar(w, n)
	_ = bar.RenderBlank() // the first image takes a while
	step = func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			_ = bar.Add(1)
		}
	}
	return step, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended && !bar.IsFinished() {
			_ = bar.Clear()
		}
		ended = true
	}
}

// trainingReport prints the stages and the epochs of a training. On a terminal it draws a
// bar for the epochs, elsewhere it prints a line for each.
type trainingReport struct {
	w        io.Writer
	terminal bool
	bar      *progressbar.ProgressBar // nil unless drawn
}

func newTrainingReport(w io.Writer) *trainingReport {
	return &trainingReport{w: w, terminal: isTerminal(w)}
}

// stage prints a line for a stage, except for the epochs on a terminal: the bar shows
// them.
func (r *trainingReport) stage(s trainer.Stage) {
	r.end()
	if !r.terminal || s != trainer.StageEpochs {
		fmt.Fprintln(r.w, s)
	}
}

func (r *trainingReport) progress(p trainer.Progress) {
	if !r.terminal {
		if p.Step%(p.Steps/p.Epochs) == 0 {
			fmt.Fprintf(r.w, "epoch %d/%d loss %.6f, %s left\n", p.Epoch, p.Epochs, p.Loss, p.Remaining.Round(time.Second))
		}
		return
	}
	if r.bar == nil {
		r.bar = progressBar(r.w, p.Steps)
	}
	r.bar.Describe(fmt.Sprintf("epoch %d/%d loss %.6f", p.Epoch, p.Epochs, p.Loss))
	_ = r.bar.Set(p.Step)
}

// end removes the bar, so that the next line does not follow it.
func (r *trainingReport) end() {
	if r.bar != nil && !r.bar.IsFinished() {
		_ = r.bar.Clear()
	}
	r.bar = nil
}
