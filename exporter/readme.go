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

// shownClasses is the number of class names that the README lists. A model may have
// thousands.
const shownClasses = 20

// shownWarnings is the number of warnings that the README lists.
const shownWarnings = 10

// readmeView is the data of the README's template.
type readmeView struct {
	ImageSize, Width, Height int
	// Fit, Window and Region describe the preparation of images. They are empty by default.
	Fit, Window, Region string
	// Framed reports whether images are prepared as version 2 of the metadata format
	// describes, Masked whether pixels may be outside.
	Framed, Masked bool
	// Tiles is nil unless images are cut into tiles, of ImageSize×ImageSize pixels, and
	// TileCount what the calibration recorded about their number.
	Tiles     *models.Tiles
	TileCount *models.TileCalibration
	// Measure is the kind of anomaly score, Threshold its threshold.
	Measure   string
	Threshold float64
	// Decision reports whether the metadata has models.Decision, whose threshold
	// replaces that of the mean squared error.
	Decision bool
	// Heads reports whether the model has defect heads, GaborHeads whether it has the
	// heads on Gabor features of earlier versions.
	Heads, GaborHeads bool
	// MeanError and StdError are 0 if they are unknown.
	MeanError, StdError float64
	// Losses are the mean losses of the epochs. They are empty if they are unknown.
	Losses []float64
	// Training is nil for a model without a training summary.
	Training    *models.TrainingSummary
	Classes     []string
	MoreClasses int
	// Warnings are those of the training and of a later calibration.
	Warnings     []string
	MoreWarnings int
	// Detectability is Markdown about the share of synthetic anomalies found. It is empty
	// if the share was not measured. OtherThreshold reports whether it was measured at a
	// threshold other than the model's, as after a recalibration.
	Detectability  string
	OtherThreshold bool
}

// bundleReadme returns the README.md of a model: how it was trained, as far as its metadata
// has it, and how to run it.
func bundleReadme(m *models.Model) ([]byte, error) {
	measure, threshold := m.Metadata.Measure()
	view := readmeView{
		ImageSize: m.ImageSize, Tiles: m.Tiles(), Width: m.Input().W, Height: m.Input().H, Framed: m.Metadata.Framed(), Masked: m.Masked(), Measure: measure, Threshold: threshold,
		Decision: m.Metadata.Decision != nil, Heads: models.HasHeads(m.Reference), GaborHeads: models.HasGaborHeads(m.Reference),
		MeanError: m.Metadata.MeanError, StdError: m.Metadata.StdError,
		Losses: m.Metadata.TrainingLosses, Training: m.Metadata.Training, Classes: m.Metadata.Classes(),
	}
	if p := m.Metadata.Preprocessing; p != nil {
		view.Fit = string(p.Fit)
		if w := p.Window; w != nil {
			view.Window = fmt.Sprintf("%g to %g", w[0], w[1])
		}
		if p.Region != nil {
			view.Region = fmt.Sprintf("%.1f %%", 100*p.Region.Share())
		}
	}
	if n := len(view.Classes); n > shownClasses {
		view.Classes, view.MoreClasses = view.Classes[:shownClasses], n-shownClasses
	}
	if t := m.Metadata.Training; t != nil {
		view.Warnings = append(view.Warnings, t.Warnings...)
	}
	if d := m.Metadata.Decision; d != nil {
		view.TileCount = d.Tiles
	}
	if d := m.Metadata.Decision; d != nil && d.CalibratedOn != nil {
		view.Warnings = append(view.Warnings, d.CalibratedOn.Warnings...)
	}
	if n := len(view.Warnings); n > shownWarnings {
		view.Warnings, view.MoreWarnings = view.Warnings[:shownWarnings], n-shownWarnings
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

// Size returns width×height, Shape height×width, of the network's input.
func (v readmeView) Size() string  { return fmt.Sprintf("%d×%d", v.Width, v.Height) }
func (v readmeView) Shape() string { return fmt.Sprintf("%d×%d", v.Height, v.Width) }

// Patches reports whether the anomaly score is computed from patch features.
func (v readmeView) Patches() bool {
	return v.Measure == models.MeasurePatchMahalanobis || v.Measure == models.MeasureTiledPatchMahalanobis
}

// Places reports whether tiles have statistics by their place in the image.
func (v readmeView) Places() bool { return v.Tiles.Places() > 0 }

// BatchMegabytes returns the working memory of a tile in a batch, in MB: measured as 13 MB
// for 256×256 pixels.
func (v readmeView) BatchMegabytes() int {
	const side, megabytes = 256, 13
	return max(megabytes*v.ImageSize*v.ImageSize/(side*side), 1)
}

// Step returns the largest distance between two tiles, in pixels.
func (v readmeView) Step() int { return v.ImageSize - v.Tiles.Overlap }

// ByPatch reports whether the anomaly score is computed patch by patch, and is not the mean
// squared error.
func (v readmeView) ByPatch() bool {
	return v.Patches() || v.Measure == models.MeasureBandMahalanobis
}

// FirstLoss returns the mean loss of the first epoch.
func (v readmeView) FirstLoss() float64 { return v.Losses[0] }

// LastLoss returns the mean loss of the last epoch.
func (v readmeView) LastLoss() float64 { return v.Losses[len(v.Losses)-1] }

// Ending returns a sentence about how the training ended, "" if that is unknown.
func (v readmeView) Ending() string {
	t := v.Training
	progress := fmt.Sprintf("after %d of %d steps, %.1f of %d epochs", t.Steps, t.PlannedSteps, t.EpochsDone(), t.Epochs)
	switch t.Ended {
	case models.EndedComplete:
		return fmt.Sprintf("complete: all %d steps", t.Steps)
	case models.EndedByTime:
		return fmt.Sprintf("early, %s: the time limit of %g s was reached", progress, t.MaxSeconds)
	case models.EndedByCaller:
		return fmt.Sprintf("early, %s: it was stopped", progress)
	}
	return ""
}

// cell escapes untrusted text, such as a class name, as plain text in a cell of a Markdown
// table.
func cell(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case !unicode.IsPrint(r): // line breaks, and characters that change the writing direction
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
