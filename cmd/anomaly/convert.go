package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/models"
	"github.com/spf13/cobra"
)

// writers are the formats that convert writes, by the ending of the file.
var writers = map[string]func(io.Writer, *models.Model) error{
	".pt":   exporter.WriteCheckpoint,
	".zip":  exporter.WriteBundle,
	".onnx": graphWriter(exporter.InferenceModel),
}

func graphWriter(lower func(*models.Model) ([]byte, error)) func(io.Writer, *models.Model) error {
	return func(w io.Writer, m *models.Model) error {
		b, err := lower(m)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	}
}

func convertCommand() *cobra.Command {
	var (
		to       string
		metadata string
		image    bool
		force    bool
	)
	c := &cobra.Command{
		Use:   "convert MODEL --to FILE",
		Short: "Write a model in another format: .pt, .onnx or .zip",
		Long: "Reads a model as detect does, a .pt of the Python service included, and writes its weights and its\n" +
			"decision in the format that the new file's ending names.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			write, ok := writers[strings.ToLower(filepath.Ext(to))]
			if !ok {
				return fmt.Errorf("--to %s: choose a file that ends in .pt, .onnx or .zip", to)
			}
			if image {
				if !strings.EqualFold(filepath.Ext(to), ".onnx") {
					return fmt.Errorf("--image with --to %s: choose a file that ends in .onnx", to)
				}
				write = graphWriter(exporter.ImageModel)
			}
			if err := mayWrite("--to", to, force); err != nil {
				return err
			}
			m, meta, err := readModel(args[0], metadata)
			if err != nil {
				return err
			}
			if meta != nil {
				m.Describe(*meta)
			}
			describeAnew(m)
			return files.WriteAtomic(to, func(w io.Writer) error { return write(w, m) })
		},
	}
	f := c.Flags()
	f.StringVar(&to, "to", "", "the file to write; its ending names the format")
	f.StringVar(&metadata, "metadata", "", "a metadata.json that replaces the model's own in the new file: measure, threshold, errors and class names")
	f.BoolVar(&image, "image", false, "write the .onnx that takes a decoded image of any size and decides, as autoencoder_image.onnx does")
	f.BoolVar(&force, "force", false, "replace an existing file")
	_ = c.MarkFlagRequired("to") // fails only for a flag that is not there
	return c
}

// describeAnew makes the metadata say of the network what it is, whatever the
// file it came from said or left out, and nothing of that file.
func describeAnew(m *models.Model) {
	m.Metadata.ModelType, m.Metadata.ImageSize = models.ModelType, m.ImageSize
	m.Metadata.Architecture = &m.Architecture
	m.Metadata.Preprocessing = models.StandardPreprocessing()
	m.Metadata.ClassNames = m.Metadata.Classes()
	m.Metadata.FormatVersion = models.FormatVersion
	m.Metadata.Files = nil
}
