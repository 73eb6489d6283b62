package bulk

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/inference"
)

// Line is the result of an image file: a verdict, or the reason why there is none. Its JSON is
// an entry of `anomaly detect --json` and a line of the results of a job.
type Line struct {
	File string `json:"file"`
	*inference.Verdict
	Error string `json:"error,omitempty"`
}

// FrameName returns the name of frame i, from 0, of a file with n frames.
func FrameName(file string, i, n int) string {
	if n == 1 {
		return file
	}
	return fmt.Sprintf("%s#%d", file, i+1)
}

// Images returns the results of the images in the file: those of the frames of a DICOM file
// of several, under their names, else the line itself.
func (l Line) Images() []Line {
	if l.Verdict == nil || l.Frames == nil {
		return []Line{l}
	}
	lines := make([]Line, len(l.Frames))
	for i, f := range l.Frames {
		v := *l.Verdict
		v.Frame, v.Frames = 0, nil
		v.ReconstructionError, v.AnomalyScore, v.MSE, v.IsAnomaly = f.ReconstructionError, f.ReconstructionError, f.MSE, f.IsAnomaly
		lines[i] = Line{File: FrameName(l.File, i, len(lines)), Verdict: &v}
	}
	return lines
}

// CSVWriter writes lines as CSV, as RFC 4180 describes it.
type CSVWriter struct {
	w     *csv.Writer
	begun bool
}

// NewCSVWriter returns a CSVWriter. Flush must be called after the last line.
func NewCSVWriter(w io.Writer) *CSVWriter {
	c := &CSVWriter{w: csv.NewWriter(w)}
	c.w.UseCRLF = true
	return c
}

// csvColumns are the names of the columns.
var csvColumns = []string{"file", "verdict", "anomaly_score", "threshold", "measure", "warnings", "error"}

// Write writes a line, as one for each frame if it has several, and before the first one the
// names of the columns.
func (c *CSVWriter) Write(l Line) error {
	if err := c.begin(); err != nil {
		return err
	}
	for _, image := range l.Images() {
		if err := c.write(image); err != nil {
			return err
		}
	}
	return nil
}

func (c *CSVWriter) write(l Line) error {
	record := []string{harmless(l.File), "", "", "", "", "", harmless(l.Error)}
	if v := l.Verdict; v != nil {
		record[1] = "normal"
		if v.IsAnomaly {
			record[1] = "anomalous"
		}
		record[2] = strconv.FormatFloat(v.AnomalyScore, 'g', -1, 64)
		record[3] = strconv.FormatFloat(v.Threshold, 'g', -1, 64)
		record[4], record[5] = harmless(v.Measure), harmless(strings.Join(v.Warnings, "; "))
	}
	return c.w.Write(record)
}

func (c *CSVWriter) begin() error {
	if c.begun {
		return nil
	}
	c.begun = true
	return c.w.Write(csvColumns)
}

// Flush writes what is buffered.
func (c *CSVWriter) Flush() error {
	if err := c.begin(); err != nil {
		return err
	}
	c.w.Flush()
	return c.w.Error()
}

// harmless returns a text that spreadsheets do not compute: one that begins like a formula
// gets an apostrophe before it.
func harmless(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r\n", rune(text[0])) {
		return "'" + text
	}
	return text
}
