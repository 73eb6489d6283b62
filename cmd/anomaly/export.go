package main

import (
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/exporter"
	"github.com/spf13/cobra"
)

func exportCommand() *cobra.Command {
	var (
		triton   string
		name     string
		metadata string
		force    bool
	)
	c := &cobra.Command{
		Use:   "export MODEL --triton DIR",
		Short: "Write a model into a Triton model repository",
		Long: "Reads a model in any format that detect reads and writes two entries into the repository DIR: NAME, the network,\n" +
			"which takes prepared images in batches, and NAME_image, which takes a decoded image of any size and decides.\n" +
			"The parameters of both hold threshold, class names, image size and preprocessing.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, err := readModelWith(args[0], metadata)
			if err != nil {
				return err
			}
			entries, err := exporter.TritonEntries(m, name)
			if errors.Is(err, exporter.ErrTritonName) {
				return fmt.Errorf("--name: %w", err)
			}
			if err != nil {
				return err
			}
			err = exporter.WriteTritonRepository(triton, entries, force)
			switch {
			case errors.Is(err, exporter.ErrTritonEntryExists):
				return fmt.Errorf("%w; use --force to replace it, or another --name", err)
			case errors.Is(err, exporter.ErrNotTritonEntry):
				return fmt.Errorf("%w; use another --name", err)
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&triton, "triton", "", "model repository to write into, a folder")
	f.StringVar(&name, "name", "anomaly", "name of the model there: at most 100 letters, digits, '_', '-' and '.', the first a letter or digit")
	f.StringVar(&metadata, "metadata", "", "metadata.json to write into the entries instead of the model's own: measure, threshold, errors and class names")
	f.BoolVar(&force, "force", false, "replace existing entries of these names")
	_ = c.MarkFlagRequired("triton") // fails only for an unknown flag
	return c
}
