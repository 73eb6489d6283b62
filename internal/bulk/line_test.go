package bulk

import (
	"bytes"
	"encoding/csv"
	"reflect"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/inference"
)

func TestCSVWriter_QuotesFieldsAndDefusesFormulas(t *testing.T) {
	verdict := &inference.Verdict{AnomalyScore: 0.12345678901234567, ReconstructionError: 0.12345678901234567, Threshold: 1e-9, IsAnomaly: true, Measure: "mse", Warnings: []string{"one", "two"}}
	for _, c := range []struct {
		line Line
		want []string
	}{
		{Line{File: "a.png", Verdict: verdict}, []string{"a.png", "anomalous", "0.12345678901234566", "1e-09", "mse", "one; two", ""}},
		{Line{File: "b.png", Verdict: &inference.Verdict{Measure: "mse"}}, []string{"b.png", "normal", "0", "0", "mse", "", ""}},
		{Line{File: `a "quoted", b` + "\nnext.png", Error: "it is damaged, or cut off"}, []string{`a "quoted", b` + "\nnext.png", "", "", "", "", "", "it is damaged, or cut off"}},
		{Line{File: "=cmd|' /C calc'!A0.png"}, []string{"'=cmd|' /C calc'!A0.png", "", "", "", "", "", ""}},
		{Line{File: "+1.png", Error: "-x"}, []string{"'+1.png", "", "", "", "", "", "'-x"}},
		{Line{File: "@sum.png", Error: "\tx"}, []string{"'@sum.png", "", "", "", "", "", "'\tx"}},
	} {
		var b bytes.Buffer
		w := NewCSVWriter(&b)
		if err := w.Write(c.line); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(&b).ReadAll()
		if err != nil || len(rows) != 2 || !reflect.DeepEqual(rows[0], csvColumns) || !reflect.DeepEqual(rows[1], c.want) {
			t.Errorf("%+v: rows %q, %v, want %q", c.line, rows, err, c.want)
		}
	}
}

func TestCSVWriter_WritesTheColumnsOfNoLines(t *testing.T) {
	var b bytes.Buffer
	if err := NewCSVWriter(&b).Flush(); err != nil || b.String() != strings.Join(csvColumns, ",")+"\r\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
}
