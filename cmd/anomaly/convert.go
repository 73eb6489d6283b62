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

// writers are the formats of convert, by file name extension.
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
		to       outputFlags
		metadata string
		image    bool
	)
	c := &cobra.Command{
		Use:   "convert MODEL --to FILE",
		Short: "Write a model in another format: .pt, .onnx or .zip",
		Long: "Reads a model in any format that detect reads, a .pt of the Python service included, and writes its weights and\n" +
			"its decision in the format that the extension of the new file names.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			write, ok := writers[strings.ToLower(filepath.Ext(to.path))]
			if !ok {
				return fmt.Errorf("--to %s: the extension must be .pt, .onnx or .zip", to.path)
			}
			if image {
				if !strings.EqualFold(filepath.Ext(to.path), ".onnx") {
					return fmt.Errorf("--image with --to %s: the extension must be .onnx", to.path)
				}
				write = graphWriter(exporter.ImageModel)
			}
			if err := to.check(); err != nil {
				return err
			}
			m, err := readModelWith(args[0], metadata)
			if err != nil {
				return err
			}
			return files.WriteAtomic(to.path, func(w io.Writer) error { return write(w, m) })
		},
	}
	f := c.Flags()
	to.add(c, "to", "", "file to write; its extension selects the format")
	f.StringVar(&metadata, "metadata", "", "metadata.json to write into the new file instead of the model's own: measure, threshold, errors and class names")
	f.BoolVar(&image, "image", false, "write the .onnx that takes a decoded image of any size and decides, as autoencoder_image.onnx does")
	_ = c.MarkFlagRequired("to") // fails only for an unknown flag
	return c
}
