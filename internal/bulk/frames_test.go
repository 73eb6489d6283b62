package bulk

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"math"
	"reflect"
	"testing"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/imagefile"
)

// framesLine is the result of a file of n frames.
func framesLine(n int) Line {
	v := &inference.Verdict{ReconstructionError: 3, AnomalyScore: 3, Threshold: 2, IsAnomaly: true, Measure: "mse", MSE: 0.5, ClassNames: []string{"normal", "anomaly"}, Frame: n}
	for i := range n {
		v.Frames = append(v.Frames, inference.FrameVerdict{Frame: i + 1, ReconstructionError: 3 - float64(n-1-i), MSE: 0.25, IsAnomaly: i == n-1})
	}
	return Line{File: "a.dcm", Verdict: v}
}

func TestLine_HasAnImageForEachFrame(t *testing.T) {
	images := framesLine(2).Images()
	want := []Line{
		{File: "a.dcm#1", Verdict: &inference.Verdict{ReconstructionError: 2, AnomalyScore: 2, Threshold: 2, Measure: "mse", MSE: 0.25, ClassNames: []string{"normal", "anomaly"}}},
		{File: "a.dcm#2", Verdict: &inference.Verdict{ReconstructionError: 3, AnomalyScore: 3, Threshold: 2, IsAnomaly: true, Measure: "mse", MSE: 0.25, ClassNames: []string{"normal", "anomaly"}}},
	}
	if !reflect.DeepEqual(images, want) {
		t.Errorf("%+v, expected %+v", images, want)
	}
	for _, l := range []Line{{File: "a.png", Error: "it is damaged"}, {File: "a.png", Verdict: &inference.Verdict{AnomalyScore: 1}}} {
		if got := l.Images(); len(got) != 1 || !reflect.DeepEqual(got[0], l) {
			t.Errorf("%+v, expected the line itself", got)
		}
	}
	var b bytes.Buffer
	w := NewCSVWriter(&b)
	if err := w.Write(framesLine(2)); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != 3 || rows[1][0] != "a.dcm#1" || rows[1][1] != "normal" || rows[2][0] != "a.dcm#2" || rows[2][1] != "anomalous" || rows[2][2] != "3" {
		t.Errorf("%q, %v", rows, err)
	}
}

func TestPlan_BoundsTheResultsOfFilesOfManyFrames(t *testing.T) {
	l := framesLine(imagefile.MaxFrames)
	for i := range l.Frames {
		l.Frames[i].ReconstructionError, l.Frames[i].MSE = math.SmallestNonzeroFloat64*float64(i+12345), 1.2345678901234567e-300
	}
	data, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	line := LineBytes(l.ClassNames)
	tiny := bytes.Repeat([]byte{1}, 4000)
	images := list(t, zipOf(t, entryOf{"a.dcm", tiny}, entryOf{"b.dcm", tiny}, entryOf{"c", append(make([]byte, 128), "DICM"...)}, entryOf{"d.png", tiny}, entryOf{"e.png", tiny}))
	if most := lineBytes(images, 0, line); int64(len(data)-len(l.File)) > most {
		t.Errorf("a result of %d frames has %d bytes, expected at most %d", len(l.Frames), len(data), most)
	}
	from := 0
	for _, to := range plan(images, imagefile.DefaultLimits(), line) {
		total := int64(0)
		for i := from; i < to; i++ {
			total += lineBytes(images, i, line)
		}
		if to-from > 1 && total > resultBytes {
			t.Errorf("the results of images %d to %d may have %d bytes", from, to-1, total)
		}
		from = to
	}
	if ends := plan(images, imagefile.DefaultLimits(), line); len(ends) < 2 {
		t.Errorf("the pieces end at %v, expected that files of frames are divided", ends)
	}
}
