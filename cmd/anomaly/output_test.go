package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/verification"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
)

func TestQuoted_QuotesNamesThatChangeATerminal(t *testing.T) {
	for name, want := range map[string]string{
		"plain name.png": "plain name.png", "größe.png": "größe.png", "写真.png": "写真.png", `back\slash.png`: `back\slash.png`,
		"a\nb.png": `"a\nb.png"`, "a\tb.png": `"a\tb.png"`, "\x1b[31mred.png": `"\x1b[31mred.png"`, "a\x7f": `"a\x7f"`, "a\u0085b": `"a\u0085b"`,
		"bad\xff.png": `"bad\xff.png"`, "\u202egnp.exe": `"\u202egnp.exe"`, "line\u2028": `"line\u2028"`,
	} {
		if got := quoted(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func TestEscaped_ChangesOnlyWhatIsUnprintable(t *testing.T) {
	for text, want := range map[string]string{
		`open "x": größe`: `open "x": größe`, "open a\nb\x1b[0m \"x\": no": `open a\nb\x1b[0m "x": no`, "\xff\u202e\ufffd": `\xff\u202e` + "\ufffd",
	} {
		if got := escaped(text); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// hostileName is a file name that writes a line of its own and colours it.
const hostileName = "a\n\x1b[31mb.png"

func TestOutputs_QuoteHostileNames(t *testing.T) {
	var b bytes.Buffer
	if err := printVerdicts(&b, []result{{File: hostileName, Error: "open " + hostileName}}, 1, 1); err != nil {
		t.Fatal(err)
	}
	v := verification.Result{Images: []verification.Image{{File: hostileName, Error: "open " + hostileName}, {File: hostileName, Scores: &verification.Scores{}}}}
	if err := printVerification(&b, &v); err != nil {
		t.Fatal(err)
	}
	printRemarks(&b, []models.SkippedFile{{Name: hostileName, Reason: hostileName}}, []string{hostileName})
	e := evaluationOutput{Result: &evaluation.Result{Defects: []evaluation.Figures{{Name: hostileName}}}}
	if err := e.print(&b); err != nil {
		t.Fatal(err)
	}
	if err := printRecalibration(&b, hostileName, &trainer.Recalibration{}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "\x1b") || strings.Contains(b.String(), "\nb") || strings.Count(b.String(), `a\n\x1b[31mb.png`) != 10 {
		t.Errorf("%q", b.String())
	}
}

func TestTrainingReport_PrintsStagesAroundTheBar(t *testing.T) {
	report := func(terminal bool) string {
		var b bytes.Buffer
		r := &trainingReport{w: &b, terminal: terminal}
		for _, s := range []trainer.Stage{trainer.StageReadingImages, trainer.StageEpochs} {
			r.stage(s)
		}
		for step := range 3 { // of 8: the training is stopped
			r.progress(trainer.Progress{Epoch: 1, Epochs: 2, Step: step + 1, Steps: 8})
		}
		r.stage(trainer.StageCalibrating)
		r.end()
		return b.String()
	}
	if got, want := report(false), "reading images\ntraining the autoencoder\ncalibrating\n"; got != want {
		t.Errorf("not on a terminal: %q, want %q", got, want)
	}
	got := report(true)
	bar, ok := strings.CutPrefix(got, "reading images\n")
	bar, rest, _ := strings.Cut(bar, "calibrating")
	if !ok || strings.Contains(got, "training the autoencoder") || !strings.Contains(bar, "epoch 1/2") || rest != "\n" {
		t.Errorf("on a terminal: %q", got)
	}
	if i := strings.LastIndex(bar, "epoch"); !strings.HasSuffix(bar, "\r") && !strings.HasSuffix(bar, "\x1b[2K") || i < 0 {
		t.Errorf("the bar is not cleared before the next line: %q", bar)
	}
}
