package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/deepmed/anomaly/internal/evaluation"
	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/stat"
)

// summary is the results of one configuration on one data set, over its seeds.
type summary struct {
	set     string
	recipe  bool
	of      configuration
	defects []kind // each kind of defect, and the mean over them last
	// falseAlarms is the fraction of normal images above the threshold, seconds the
	// duration of each part; both are means over seeds.
	falseAlarms float64
	seconds     map[string]float64
	rows        int
}

// kind is the results for one kind of defect, over seeds.
type kind struct {
	name            string
	images          int
	auroc           []float64
	hits            float64
	masked          bool
	pixelAUROC, pro float64
}

// summarize groups rows that differ only in the seed, in order of appearance.
func summarize(rows []measured) []*summary {
	var all []*summary
	byKey := map[string]*summary{}
	for _, r := range rows {
		of := configuration{r.Level, r.Side}
		key := fmt.Sprint(r.Folder, r.Recipe, of)
		s := byKey[key]
		if s == nil {
			s = &summary{set: r.Set, recipe: r.Recipe, of: of, seconds: map[string]float64{}}
			byKey[key] = s
			all = append(all, s)
		}
		s.add(r)
	}
	for _, s := range all {
		n := float64(s.rows)
		s.falseAlarms /= n
		for part := range s.seconds {
			s.seconds[part] /= n
		}
		for i := range s.defects {
			k := &s.defects[i]
			k.hits, k.pixelAUROC, k.pro = k.hits/n, k.pixelAUROC/n, k.pro/n
		}
	}
	return all
}

func (s *summary) add(r measured) {
	results := append(append([]evaluation.Figures(nil), r.Defects...), r.Mean)
	if s.rows == 0 {
		s.defects = make([]kind, len(results))
	}
	s.rows++
	s.falseAlarms += r.FalseAlarms
	for part, v := range r.Seconds {
		s.seconds[part] += v
	}
	for i, f := range results {
		k := &s.defects[i]
		k.name, k.images = f.Name, f.Images
		k.auroc = append(k.auroc, f.AUROC)
		k.hits += f.Hits
		if f.Pixels != nil {
			k.masked = true
			k.pixelAUROC += f.Pixels.AUROC
			k.pro += f.Pixels.PRO
		}
	}
}

// mean returns the mean over the kinds of defects.
func (s *summary) mean() kind { return s.defects[len(s.defects)-1] }

// printTable writes a row for each data set, configuration and kind of defect.
func printTable(w io.Writer, all []*summary) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DATA SET\tWHO\tLEVEL\tPX\tSEEDS\tDEFECT\tIMAGES\tAUROC\tLOWEST–HIGHEST\tPIXEL AUROC\tPRO\tHITS\tFALSE ALARMS\tTRAINING S\tEPOCHS\tCALIBRATION\tDETECTION S")
	for _, s := range all {
		who := "ours"
		if s.recipe {
			who = "recipe"
		}
		defects := s.defects
		if len(defects) == 2 { // a single kind is its own mean
			defects = defects[:1]
		}
		for i, k := range defects {
			pixels, pro := "", ""
			if k.masked {
				pixels, pro = fmt.Sprintf("%.3f", k.pixelAUROC), fmt.Sprintf("%.3f", k.pro)
			}
			between := ""
			if s.rows > 1 {
				between = fmt.Sprintf("%.3f–%.3f", floats.Min(k.auroc), floats.Max(k.auroc))
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\t%d\t%.3f\t%s\t%s\t%s\t%.2f", s.set, who, s.of.level, s.of.side, s.rows, k.name, k.images,
				stat.Mean(k.auroc, nil), between, pixels, pro, k.hits)
			if i == len(defects)-1 {
				fmt.Fprintf(t, "\t%.1f %%\t%.1f\t%s\t%s\t%.1f", 100*s.falseAlarms, s.seconds["training"], seconds(s.seconds, "epochs"),
					seconds(s.seconds, "calibration"), s.seconds["detection"])
			}
			fmt.Fprintln(t)
		}
	}
	return t.Flush()
}

// seconds returns the duration of a part, or "" if unknown.
func seconds(of map[string]float64, part string) string {
	v, ok := of[part]
	if !ok {
		return ""
	}
	return fmt.Sprintf("%.1f", v)
}

// checkFloors returns errFloor, wrapped, if a data set is below its floor in one of our
// configurations.
func checkFloors(all []*summary) error {
	var low []string
	for _, s := range all {
		floor, ok := floors[s.set]
		if mean := stat.Mean(s.mean().auroc, nil); ok && !s.recipe && !(mean >= floor) {
			low = append(low, fmt.Sprintf("%s at %v has an AUROC of %.3f, the floor is %.2f", s.set, s.of, mean, floor))
		}
	}
	if low != nil {
		return fmt.Errorf("%w: %s", errFloor, strings.Join(low, "; "))
	}
	return nil
}
