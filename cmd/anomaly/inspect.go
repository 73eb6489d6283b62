package main

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/deepmed/anomaly/models"
	"github.com/spf13/cobra"
)

func inspectCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "inspect MODEL",
		Short: "Print the contents of a model file (.zip, .pt or .onnx) without running it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, _, err := readModel(args[0], "")
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), describe(m))
			}
			return printModel(c, m)
		},
	}
	addJSON(c, &asJSON)
	return c
}

// description is printed by `inspect --json`.
type description struct {
	Format       models.Format `json:"format"`
	SHA256       string        `json:"sha256"`
	Architecture string        `json:"architecture"`
	Parameters   []parameter   `json:"parameters"`
	// ImageSize is the side of a square input, in pixels. Any other input has Width and
	// Height instead.
	ImageSize int             `json:"image_size,omitempty"`
	Width     int             `json:"width,omitempty"`
	Height    int             `json:"height,omitempty"`
	Metadata  models.Metadata `json:"metadata"`
}

// parameter is a tensor of weights or biases.
type parameter struct {
	Name  string `json:"name"`
	Shape []int  `json:"shape"`
}

func describe(m *models.Model) description {
	var ps []parameter
	for _, p := range m.Architecture.Parameters() {
		ps = append(ps, parameter{p.Name, p.Shape})
	}
	d := description{Format: m.Format, SHA256: m.SHA256, Architecture: m.Architecture.String(), Parameters: ps, Metadata: m.Metadata}
	if input := m.Input(); input.IsSquare() {
		d.ImageSize = input.Side()
	} else {
		d.Width, d.Height = input.W, input.H
	}
	return d
}

// describeTiles returns how images are cut into tiles, for a person.
func describeTiles(t *models.Tiles) string {
	scale, statistics := "the image's own size", "shared by all tiles"
	if t.LongestSide > 0 {
		scale = fmt.Sprintf("a longest side of %d pixels", t.LongestSide)
	}
	if t.Statistics == models.TilesByPlace {
		statistics = fmt.Sprintf("of %d×%d places", t.Columns, t.Rows)
	}
	return fmt.Sprintf("they overlap by %d pixels, at %s, with statistics %s", t.Overlap, scale, statistics)
}

func printModel(c *cobra.Command, m *models.Model) error {
	t := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(t, "%s\t%v\n", name, value) }
	measure, threshold := m.Metadata.Measure()
	row("format", m.Format)
	row("SHA-256", m.SHA256)
	row("architecture", m.Architecture)
	count := 0
	for _, p := range m.Architecture.Parameters() {
		count += p.Size()
	}
	row("parameters", count)
	row("image size", m.Input())
	if p := m.Metadata.Preprocessing; p != nil {
		if t := p.Tiles; t != nil {
			row("tiles", describeTiles(t))
		}
		if p.Fit != "" {
			row("fit", p.Fit)
		}
		if w := p.Window; w != nil {
			row("window of sample values", fmt.Sprintf("%g to %g", w[0], w[1]))
		}
		if p.Region != nil {
			row("region that is judged", fmt.Sprintf("%.1f %% of the image", 100*p.Region.Share()))
		}
	}
	row("threshold", fmt.Sprintf("%g (%s)", threshold, measure))
	row("mean squared error, mean and standard deviation", fmt.Sprintf("%g, %g", m.Metadata.MeanError, m.Metadata.StdError))
	var classes []string
	for _, name := range m.Metadata.Classes() {
		classes = append(classes, quoted(name))
	}
	row("class names", strings.Join(classes, ", "))
	if s := m.Metadata.Training; s != nil {
		row("trained on", fmt.Sprintf("%d images, %d skipped", s.Images, s.Skipped))
		row("level", fmt.Sprintf("%d: %d epochs, batch %d, learning rate %g, seed %d", s.Level, s.Epochs, s.BatchSize, s.LearningRate, s.Seed))
	}
	if d := m.Metadata.Decision; d != nil && d.CalibratedOn != nil {
		row("calibrated on", fmt.Sprintf("%d other images, %d skipped", d.CalibratedOn.Images, d.CalibratedOn.Skipped))
	}
	if l := m.Metadata.TrainingLosses; len(l) > 0 {
		row("loss, first and last epoch", fmt.Sprintf("%g, %g", l[0], l[len(l)-1]))
	}
	return t.Flush()
}
