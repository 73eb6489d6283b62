package exporter

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/models"
)

// rows returns the rows of the README's table by their first cell.
func rows(t *testing.T, m *models.Model) map[string]string {
	t.Helper()
	readme, err := bundleReadme(m)
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]string{}
	for line := range strings.Lines(string(readme)) {
		if cells, ok := strings.CutPrefix(strings.TrimSpace(line), "| "); ok {
			name, value, ok := strings.Cut(strings.TrimSuffix(cells, " |"), " | ")
			if ok && name != "" {
				table[name] = value
			}
		}
	}
	return table
}

func TestReadme_SummarizesTraining(t *testing.T) {
	m := sample()
	m.Metadata.Threshold, m.Metadata.MeanError, m.Metadata.StdError = 0.0123456789, 0.01, 0.0011728395
	m.Metadata.TrainingLosses = []float64{0.123456789, 0.05, 0.025}
	m.Metadata.ClassNames = []string{"good", "Riß"}
	training := models.TrainingSummary{
		Level: 2, Epochs: 10, BatchSize: 16, LearningRate: 1e-3, Steps: 40, PlannedSteps: 40,
		Ended: models.EndedComplete, Seed: 7, Images: 60,
	}
	early := training
	early.Steps, early.Ended, early.MaxSeconds, early.Skipped, early.Base = 10, models.EndedByTime, 12.5, 3, strings.Repeat("ab", 32)
	stopped := early
	stopped.Ended = models.EndedByCaller
	foreign := training
	foreign.Ended = "a ``` | hostile value"
	for _, c := range []struct {
		name     string
		training *models.TrainingSummary
		want     map[string]string
	}{
		{"complete", &training, map[string]string{
			"trained on": "60 images", "level": "2: 10 epochs, batch 16, learning rate 0.001, seed 7",
			"training ended": "complete: all 40 steps",
		}},
		{"time limit", &early, map[string]string{
			"trained on": "60 images; 3 more could not be read, see `metadata.json`", "level": "2: 10 epochs, batch 16, learning rate 0.001, seed 7",
			"training ended": "early, after 10 of 40 steps, 2.5 of 10 epochs: the time limit of 12.5 s was reached",
			"continued from": "the model of SHA-256 " + early.Base,
		}},
		{"stopped", &stopped, map[string]string{
			"trained on": "60 images; 3 more could not be read, see `metadata.json`", "level": "2: 10 epochs, batch 16, learning rate 0.001, seed 7",
			"training ended": "early, after 10 of 40 steps, 2.5 of 10 epochs: it was stopped",
			"continued from": "the model of SHA-256 " + early.Base,
		}},
		{"imported, with an unknown ending", &foreign, map[string]string{
			"trained on": "60 images", "level": "2: 10 epochs, batch 16, learning rate 0.001, seed 7",
		}},
		{"imported, without a summary", nil, map[string]string{
			"trained on": "unknown: this model was converted from a file without this information",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.Metadata.Training = c.training
			got := rows(t, m)
			for name, value := range map[string]string{
				"image size":                 "16×16 pixels",
				"loss, first and last epoch": "0.123457 → 0.025",
				"mean squared error of the training images (`mse`)": "0.01 on average, standard deviation 0.00117284",
				"threshold of `reconstruction_error` (`mse`)":       "0.0123456789",
				"class names": "good, Riß",
			} {
				c.want[name] = value
			}
			for name, value := range c.want {
				if got[name] != value {
					t.Errorf("%s: got %q, want %q", name, got[name], value)
				}
				delete(got, name)
			}
			if len(got) > 0 {
				t.Errorf("unexpected rows %v", got)
			}
		})
	}
}

func TestReadme_ListsTheWarnings(t *testing.T) {
	m := sample()
	m.Metadata.Training = &models.TrainingSummary{Warnings: []string{"no class names were taken from a|b.yaml"}}
	if got, want := rows(t, m)["warnings"], `no class names were taken from a\|b.yaml`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	m.Metadata.Training.Warnings = slices.Repeat([]string{"one"}, shownWarnings)
	m.Metadata.Decision = &models.Decision{Measure: models.MeasureMSE, Threshold: 1, CalibratedOn: &models.CalibrationSummary{Warnings: []string{"two", "three"}}}
	if got := rows(t, m)["warnings"]; !strings.HasSuffix(got, "one; and 2 more, see `metadata.json`") {
		t.Errorf("got %q", got)
	}
}

func TestReadme_OmitsUnknownValues(t *testing.T) {
	m := sample()
	m.Metadata = models.Metadata{Threshold: models.DefaultThreshold}
	want := map[string]string{
		"trained on": "unknown: this model was converted from a file without this information",
		"image size": "16×16 pixels", "threshold of `reconstruction_error` (`mse`)": "0.02", "class names": "normal, anomaly",
	}
	if got := rows(t, m); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got the rows %v, want %v", got, want)
	}
}

func TestReadme_ShowsDecidingThreshold(t *testing.T) {
	m := sample()
	m.Metadata.Threshold, m.Metadata.Decision = 0.5, &models.Decision{Measure: models.MeasureMSE, Threshold: 0.25}
	if got := rows(t, m)["threshold of `reconstruction_error` (`mse`)"]; got != "0.25" {
		t.Errorf("got the threshold %s, want 0.25", got)
	}
}

// The README must describe the model's measure, and exactly the outputs of its ONNX files.
func TestReadme_DescribesMeasureAndOutputs(t *testing.T) {
	random := func() *rand.Rand { return rand.New(rand.NewPCG(3, 3)) }
	const autoencoder, patch, heads, backbone = "between an image and its reconstruction", "normal patches at the same position", "trained on synthetic anomalies", "EfficientNet-Lite0"
	for _, c := range []struct {
		name      string
		model     *models.Model
		has       []string
		hasNot    []string
		threshold string
	}{
		{"the mean squared error", sample(), []string{autoencoder}, []string{patch, heads, backbone, "`decision`"}, "mse"},
		{"Gabor features", addGaborStatistics(sample(), random()), []string{patch, "`decision`"}, []string{autoencoder, heads, backbone}, "band_mahalanobis"},
		{"Gabor features and heads", addGaborHeads(sample(), random()), []string{patch, heads, "`decision`"}, []string{autoencoder, backbone}, "band_mahalanobis"},
		{"patches", patchModel(32, false), []string{patch, "`decision`", backbone, "Apache License 2.0", "anomaly calibrate", "normality_state_dict"}, []string{autoencoder, heads}, "patch_mahalanobis"},
		{"patches and heads", patchModel(32, true), []string{patch, heads, "`decision`", backbone, "the heads"}, []string{autoencoder}, "patch_mahalanobis"},
	} {
		t.Run(c.name, func(t *testing.T) {
			readme, err := bundleReadme(c.model)
			if err != nil {
				t.Fatal(err)
			}
			text := string(readme)
			for _, words := range c.has {
				if !strings.Contains(text, words) {
					t.Errorf("it has no %q", words)
				}
			}
			for _, words := range c.hasNot {
				if strings.Contains(text, words) {
					t.Errorf("it has %q", words)
				}
			}
			_, threshold := c.model.Metadata.Measure()
			if got := rows(t, c.model)["threshold of `reconstruction_error` (`"+c.threshold+"`)"]; got != fmt.Sprint(threshold) {
				t.Errorf("the threshold of %s is %q", c.threshold, got)
			}
			for file, lower := range map[string]func(*models.Model) ([]byte, error){
				models.ONNXFile: InferenceModel, models.ImageONNXFile: ImageModel,
			} {
				var want []string
				for _, o := range parsed(t, lower, c.model).GetGraph().GetOutput() {
					want = append(want, o.GetName())
				}
				slices.Sort(want)
				if got := outputs(t, text, file); !slices.Equal(got, want) {
					t.Errorf("%s has the outputs %v, want %v", file, got, want)
				}
			}
		})
	}
}

var codeSpan = regexp.MustCompile("`([a-z_]+)`")

// outputs returns the sorted names of a file's outputs in the README.
func outputs(t *testing.T, readme, file string) []string {
	t.Helper()
	_, item, _ := strings.Cut(readme, "\n- `"+file+"` ")
	item, _, _ = strings.Cut(item, "\n- ")
	_, item, ok := strings.Cut(item, "Outputs: ")
	if !ok {
		t.Fatalf("it has no outputs of %s", file)
	}
	var names []string
	for _, m := range codeSpan.FindAllStringSubmatch(item, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Class names are untrusted, and a model may have thousands.
func TestReadme_EscapesClassNames(t *testing.T) {
	m := sample()
	plain, err := bundleReadme(m)
	if err != nil {
		t.Fatal(err)
	}
	m.Metadata.ClassNames = []string{"a|b", "```\n```python\nprint(1)\n```", "<script>", "[link](x)", "\u202eright"}
	for i := range 100 {
		m.Metadata.ClassNames = append(m.Metadata.ClassNames, fmt.Sprint("c", i))
	}
	hostile, err := bundleReadme(m)
	if err != nil {
		t.Fatal(err)
	}
	before, after := strings.Split(string(plain), "\n"), strings.Split(string(hostile), "\n")
	isClasses := func(line string) bool { return strings.HasPrefix(line, "| class names | ") }
	i, j := slices.IndexFunc(before, isClasses), slices.IndexFunc(after, isClasses)
	if i < 0 || i != j || !slices.Equal(slices.Delete(before, i, i+1), slices.Delete(slices.Clone(after), j, j+1)) {
		t.Fatalf("class names changed other lines, %d and %d", i, j)
	}
	want := `| class names | a\|b, ` + "\\`\\`\\` \\`\\`\\`python print\\(1\\) \\`\\`\\`" + `, \<script\>, \[link\]\(x\),  right, `
	if !strings.HasPrefix(after[j], want) || !strings.HasSuffix(after[j], ", c14 and 85 more, see `metadata.json` |") {
		t.Errorf("got the row %s", after[j])
	}
}
