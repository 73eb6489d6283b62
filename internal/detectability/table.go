package detectability

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/models"
)

// Caveat says what the shares are not.
const Caveat = "Painted defects are not real ones: real ones may be found less often, or more often. " +
	"A model with markers has also learnt from painted defects, which favours these. " +
	"Measure with defects of your own where you have some."

// Row is a line of the table: what was painted, and the share found of each
// diameter, 0…1.
type Row struct {
	Name  string
	Found []float64
}

// Rows returns the table's lines, contrasts ascending and then the other kinds.
func Rows(d *models.Detectability) []Row {
	var rows []Row
	for i, found := range d.Found {
		rows = append(rows, Row{fmt.Sprintf("%s grey levels brighter or darker", number(d.Contrasts[i])), found})
	}
	if d.CutPaste != nil {
		rows = append(rows, Row{"a patch of another normal image", d.CutPaste})
	}
	if d.Blur != nil {
		rows = append(rows, Row{"blurred", d.Blur})
	}
	return rows
}

// Summary says in plain text what the shares are of.
func Summary(d *models.Detectability) string {
	return fmt.Sprintf("Spots, scratches and squares were painted anywhere on %d normal images that had not been learnt from, background included. "+
		"The table has the share of %d painted images each that scored above the threshold of %s, by the largest extent of the defect "+
		"in pixels of the image as the network sees it. Of the same normal images as they are, %s were above it: "+
		"so many are found by chance.", d.NormalImages, d.ImagesPerCell, number(d.Threshold), Percent(d.FalseAlarms))
}

// Markdown returns the summary, the caveat and the table as paragraphs.
func Markdown(d *models.Detectability) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n%s\n\n| painted |", Summary(d), Caveat)
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

// Percent writes a share in whole per cent.
func Percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

func number(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }
