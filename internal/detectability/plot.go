package detectability

import (
	"bytes"
	"fmt"
	"image/color"

	"github.com/deepmed/anomaly/models"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The size of the plot. The width leaves space for the legend beside the lines.
const plotWidth, plotHeight = 16 * vg.Centimeter, 9 * vg.Centimeter

// Plot returns a plot of the share detected by diameter, with a line for each contrast
// and kind.
func Plot(d *models.Detectability) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "Synthetic anomalies detected", "largest extent in pixels", "detected, per cent"
	// Diameters are spaced equally. A logarithmic axis would have to handle any value
	// from a file.
	var names []string
	for _, v := range d.Diameters {
		names = append(names, number(v))
	}
	p.NominalX(names...)
	last := float64(len(d.Diameters) - 1)
	line := func(name string, shares []float64, c color.Color, dashes ...vg.Length) error {
		points := make(plotter.XYs, len(shares))
		for i, v := range shares {
			points[i] = plotter.XY{X: float64(i), Y: 100 * v}
		}
		l, err := plotter.NewLine(points)
		if err != nil {
			return fmt.Errorf("detectability: drawing: %w", err)
		}
		l.Color, l.Width, l.Dashes = c, vg.Points(2), dashes
		p.Add(l)
		p.Legend.Add(name, l)
		return nil
	}
	// The strongest contrast is first in the legend, as its line is the highest.
	for i := len(d.Found) - 1; i >= 0; i-- {
		if err := line(number(d.Contrasts[i])+" grey levels", d.Found[i], shade(i, len(d.Found))); err != nil {
			return nil, err
		}
	}
	alarms := make([]float64, len(d.Diameters))
	for i := range alarms {
		alarms[i] = d.FalseAlarms
	}
	for _, other := range []struct {
		name   string
		shares []float64
		colour color.Color
		dash   vg.Length
	}{
		{"pasted texture", d.CutPaste, color.NRGBA{R: 0xcc, G: 0x44, B: 0x33, A: 0xff}, 6},
		{"blurred", d.Blur, color.NRGBA{R: 0x99, G: 0x77, B: 0x11, A: 0xff}, 6},
		{"false alarms", alarms, color.Gray{Y: 0x60}, 2},
	} {
		if other.shares == nil {
			continue
		}
		if err := line(other.name, other.shares, other.colour, vg.Points(float64(other.dash)), vg.Points(3)); err != nil {
			return nil, err
		}
	}
	p.X.Min, p.X.Max, p.Y.Min, p.Y.Max = -0.2, last+1+0.6*last, 0, 100 // space on the right for the legend
	p.Legend.Top = true
	return p, nil
}

// shade returns a blue for line i of n, from light to dark.
func shade(i, n int) color.Color {
	t := float64(i+1) / float64(n)
	mix := func(light, dark float64) uint8 { return uint8(light + t*(dark-light)) }
	return color.NRGBA{R: mix(0xcc, 0x11), G: mix(0xdd, 0x44), B: mix(0xee, 0x77), A: 0xff}
}

// SVG returns the plot as an SVG document. Its bytes are deterministic.
func SVG(d *models.Detectability) ([]byte, error) {
	p, err := Plot(d)
	if err != nil {
		return nil, err
	}
	c := vgsvg.New(plotWidth, plotHeight)
	p.Draw(draw.New(c))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("detectability: drawing: %w", err)
	}
	return b.Bytes(), nil
}
