package evaluation

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"image/color"
	"io"

	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/models"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

//go:embed report.html.tmpl
var reportPage string

var reportTemplate = template.Must(template.New("report").Parse(reportPage))

// Picture is an image in a report, with a heatmap drawn over it.
type Picture struct {
	Judged
	PNG []byte
}

// Data returns the picture as a data URL.
func (p Picture) Data() template.URL {
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(p.PNG))
}

// Gallery is a row of pictures under a heading.
type Gallery struct {
	Title    string
	Pictures []Picture
}

// Report is the content of a report.
type Report struct {
	Title     string
	Result    *Result
	Metadata  models.Metadata
	Seconds   map[string]float64
	Galleries []Gallery
	// Detectability records which synthetic anomalies the model detects; nil when that
	// was not measured.
	Detectability *models.Detectability
}

// WriteReport writes the report as a self-contained HTML page.
func WriteReport(w io.Writer, r Report) error {
	var plots []template.HTML
	for _, draw := range []func(Report) (*plot.Plot, error){histograms, curve, losses} {
		p, err := draw(r)
		if err != nil {
			return fmt.Errorf("evaluation: drawing: %w", err)
		}
		if p == nil {
			continue
		}
		svg, err := render(p, plotWidth)
		if err != nil {
			return fmt.Errorf("evaluation: drawing: %w", err)
		}
		plots = append(plots, svg)
	}
	var foundPlot template.HTML
	if r.Detectability != nil {
		p, err := detectability.Plot(r.Detectability)
		if err != nil {
			return fmt.Errorf("evaluation: %w", err)
		}
		if foundPlot, err = render(p, foundPlotWidth); err != nil {
			return fmt.Errorf("evaluation: drawing: %w", err)
		}
	}
	var page bytes.Buffer // so that an error leaves w unwritten
	if err := reportTemplate.Execute(&page, struct {
		Report
		Plots     []template.HTML
		Found     *foundTable
		FoundPlot template.HTML
	}{r, plots, newFoundTable(r.Detectability), foundPlot}); err != nil {
		return fmt.Errorf("evaluation: %w", err)
	}
	_, err := page.WriteTo(w)
	return err
}

var (
	normalColour = color.NRGBA{R: 0x33, G: 0x77, B: 0xaa, A: 0xb0}
	defectColour = color.NRGBA{R: 0xcc, G: 0x44, B: 0x33, A: 0xb0}
	plainColour  = color.Gray{Y: 0x60}
)

// histograms returns a plot of the scores of both classes and the threshold.
func histograms(r Report) (*plot.Plot, error) {
	const bins = 40
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "Scores", r.Result.Measure, "images"
	highest := 0.0
	for _, class := range []struct {
		name   string
		judged []Judged
		colour color.Color
	}{{"normal", r.Result.good, normalColour}, {"defects", r.Result.bad, defectColour}} {
		h, err := plotter.NewHist(plotter.Values(scores(class.judged)), bins)
		if err != nil {
			return nil, err
		}
		h.FillColor, h.LineStyle.Width = class.colour, 0
		p.Add(h)
		p.Legend.Add(class.name, h)
		_, _, _, top := h.DataRange()
		highest = max(highest, top)
	}
	line, err := plotter.NewLine(plotter.XYs{{X: r.Result.Threshold, Y: 0}, {X: r.Result.Threshold, Y: highest}})
	if err != nil {
		return nil, err
	}
	line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(line)
	p.Legend.Add("threshold", line)
	p.Legend.Top = true
	return p, nil
}

// curve returns a plot of the ROC curve of all defects together.
func curve(r Report) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "ROC", "false alarms", "hits"
	tpr, fpr := roc(scores(r.Result.good), scores(r.Result.bad))
	points := make(plotter.XYs, len(tpr))
	for i := range points {
		points[i] = plotter.XY{X: fpr[i], Y: tpr[i]}
	}
	line, err := plotter.NewLine(points)
	if err != nil {
		return nil, err
	}
	line.Color, line.Width = defectColour, vg.Points(2)
	chance, err := plotter.NewLine(plotter.XYs{{X: 0, Y: 0}, {X: 1, Y: 1}})
	if err != nil {
		return nil, err
	}
	chance.Color = plainColour
	p.Add(chance, line)
	return p, nil
}

// losses returns a plot of the training losses, nil when the metadata has fewer than two.
func losses(r Report) (*plot.Plot, error) {
	all := r.Metadata.TrainingLosses
	if len(all) < 2 {
		return nil, nil
	}
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "Training", "epoch", "mean squared error"
	points := make(plotter.XYs, len(all))
	for i, v := range all {
		points[i] = plotter.XY{X: float64(i + 1), Y: v}
	}
	line, err := plotter.NewLine(points)
	if err != nil {
		return nil, err
	}
	line.Color, line.Width = normalColour, vg.Points(2)
	p.Add(line)
	return p, nil
}

// The sizes of the plots. The plot of synthetic anomalies has its legend beside the lines.
const plotWidth, foundPlotWidth, plotHeight = 11 * vg.Centimeter, 16 * vg.Centimeter, 8 * vg.Centimeter

// render returns a plot as an SVG element.
func render(p *plot.Plot, width vg.Length) (template.HTML, error) {
	c := vgsvg.New(width, plotHeight)
	p.Draw(draw.New(c))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return "", err
	}
	// Remove the XML declaration before the element.
	svg := b.Bytes()
	if at := bytes.Index(svg, []byte("<svg")); at >= 0 {
		svg = svg[at:]
	}
	return template.HTML(svg), nil
}
