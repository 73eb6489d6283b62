package exporter

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"text/template"
	"unicode"

	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/models"
)

var (
	//go:embed files/README.md.tmpl
	readmeText string

	readmeTemplate = template.Must(template.New("README.md").Funcs(template.FuncMap{
		"cell": cell, "number": func(v float64) string { return fmt.Sprintf("%.6g", v) },
	}).Parse(readmeText))
)

// shownClasses is how many class names the README lists: a model may have
// thousands.
const shownClasses = 20

// readmeView is what the README's template is filled with.
type readmeView struct {
	ImageSize int
	// Measure is what the model decides by, Threshold that measure's.
	Measure   string
	Threshold float64
	// Decision says that the metadata has a threshold of that name beside the one
	// of the mean squared error.
	Decision bool
	// Heads says that the model has heads, Markers that it has what earlier versions
	// had in their place.
	Heads, Markers bool
	// MeanError and StdError are 0 where the model does not say them.
	MeanError, StdError float64
	// Losses are those of the epochs, empty where they are not known.
	Losses []float64
	// Training is nil for a model that came without.
	Training    *models.TrainingSummary
	Classes     []string
	MoreClasses int
	// Detectability tells in Markdown which synthetic anomalies are found, empty
	// where that was not measured; OtherThreshold says that it was at another
	// threshold than the model's, as before it was calibrated anew.
	Detectability  string
	OtherThreshold bool
}

// bundleReadme is the README.md of a model: what it was trained on, as far as
// the model says, and how to run it.
func bundleReadme(m *models.Model) ([]byte, error) {
	measure, threshold := m.Metadata.Measure()
	view := readmeView{
		ImageSize: m.ImageSize, Measure: measure, Threshold: threshold,
		Decision: m.Metadata.Decision != nil, Heads: models.HasHeads(m.Reference), Markers: models.HasGaborHeads(m.Reference),
		MeanError: m.Metadata.MeanError, StdError: m.Metadata.StdError,
		Losses: m.Metadata.TrainingLosses, Training: m.Metadata.Training, Classes: m.Metadata.Classes(),
	}
	if n := len(view.Classes); n > shownClasses {
		view.Classes, view.MoreClasses = view.Classes[:shownClasses], n-shownClasses
	}
	if d := m.Metadata.Detectability; d != nil {
		view.Detectability, view.OtherThreshold = detectability.Markdown(d), d.Threshold != threshold
	}
	var b bytes.Buffer
	if err := readmeTemplate.Execute(&b, view); err != nil {
		return nil, fmt.Errorf("exporter: README.md: %w", err)
	}
	return b.Bytes(), nil
}

// Patches says that the model decides by the features of patches.
func (v readmeView) Patches() bool { return v.Measure == models.MeasurePatchMahalanobis }

// ByPatch reports whether the model decides by how unusual an image's patches are,
// and not by its mean squared error.
func (v readmeView) ByPatch() bool {
	return v.Patches() || v.Measure == models.MeasureBandMahalanobis
}

// FirstLoss is the mean loss of the first epoch.
func (v readmeView) FirstLoss() float64 { return v.Losses[0] }

// LastLoss is the mean loss of the last epoch.
func (v readmeView) LastLoss() float64 { return v.Losses[len(v.Losses)-1] }

// Ending says in a sentence how the training ended; "" where nobody knows.
func (v readmeView) Ending() string {
	t := v.Training
	so := fmt.Sprintf("after %d of %d steps, %.1f of %d epochs", t.Steps, t.PlannedSteps, t.EpochsDone(), t.Epochs)
	switch t.Ended {
	case models.EndedComplete:
		return fmt.Sprintf("complete: all %d steps were taken", t.Steps)
	case models.EndedByTime:
		return fmt.Sprintf("early, %s: the %g s that it was given were over", so, t.MaxSeconds)
	case models.EndedByCaller:
		return fmt.Sprintf("early, %s: it was stopped", so)
	}
	return ""
}

// cell makes text from anybody, such as a class name, plain text in a cell of a
// Markdown table.
func cell(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case !unicode.IsPrint(r): // line ends, and what would turn the writing round
			b.WriteByte(' ')
		case strings.ContainsRune("\\`*_{}[]<>()#+!|~&$", r):
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
