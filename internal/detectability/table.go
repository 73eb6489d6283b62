package detectability

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/models"
)

// Caveat states the limits of the shares.
const Caveat = "Synthetic anomalies are not real defects, which may be detected less or more often. " +
	"A model with defect heads was also trained on synthetic anomalies, which favours these. " +
	"Measure with real defects if you have any."

// Row is a line of the table: the kind of anomaly, and the share detected for each
// diameter, 0…1.
type Row struct {
	Name  string
	Found []float64
}

// Rows returns the lines of the table: ascending contrasts, then the other kinds.
func Rows(d *models.Detectability) []Row {
	var rows []Row
	for i, found := range d.Found {
		rows = append(rows, Row{fmt.Sprintf("%s grey levels brighter or darker", number(d.Contrasts[i])), found})
	}
	if d.CutPaste != nil {
		rows = append(rows, Row{"texture of another normal image", d.CutPaste})
	}
	if d.Blur != nil {
		rows = append(rows, Row{"blurred", d.Blur})
	}
	return rows
}

// Summary returns a plain-text description of the measurement.
func Summary(d *models.Detectability) string {
	return fmt.Sprintf("Spots, scratches and squares were added at random positions, background included, to %d normal images that the model "+
		"was not trained on. Each share in the table is of %d images and is the share that scored above the threshold of %s. "+
		"Sizes are the largest extent of the anomaly in pixels of the network's input. "+
		"Without an anomaly, %s of the same normal images scored above the threshold: that share is due to chance.", d.NormalImages, d.ImagesPerCell, number(d.Threshold), Percent(d.FalseAlarms))
}

// Markdown returns the summary, the caveat and the table in Markdown.
func Markdown(d *models.Detectability) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n%s\n\n| synthetic anomaly |", Summary(d), Caveat)
	for _, v := range d.Diameters {
		fmt.Fprintf(&b, " %s px |", number(v))
	}
	b.WriteString("\n|---|" + strings.Repeat("---:|", len(d.Diameters)) + "\n")
	for _, row := range Rows(d) {
		fmt.Fprintf(&b, "| %s |", row.Name)
		for _, share := range row.Found {
			fmt.Fprintf(&b, " %s |", Percent(share))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Percent returns a share in whole per cent.
func Percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

// number returns v with four significant digits.
func number(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }
