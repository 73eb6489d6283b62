package bulk

import (
	"encoding/csv"
	"io"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/inference"
)

// Line is the result of an image: a verdict, or the reason why there is none. Its JSON is
// an entry of `anomaly detect --json` and a line of the results of a job.
type Line struct {
	File string `json:"file"`
	*inference.Verdict
	Error string `json:"error,omitempty"`
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

// Write writes a line, and before the first one the names of the columns.
func (c *CSVWriter) Write(l Line) error {
	if err := c.begin(); err != nil {
		return err
	}
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
