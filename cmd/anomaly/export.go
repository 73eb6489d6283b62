package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/spf13/cobra"
)

// Files of a model in a Triton model repository.
const (
	tritonConfigFile = "config.pbtxt"
	tritonVersion    = "1"
	tritonModelFile  = "model.onnx"
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
		Long: "Reads a model as detect does and writes two entries into the repository DIR: NAME, the network, which\n" +
			"takes prepared images in batches, and NAME_image, which takes a decoded image of any size and decides.\n" +
			"Threshold, class names, image size and preprocessing are among each one's parameters.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, meta, err := readModel(args[0], metadata)
			if err != nil {
				return err
			}
			if meta != nil {
				m.Describe(*meta)
			}
			describeAnew(m)
			entries, err := exporter.TritonEntries(m, name)
			if errors.Is(err, exporter.ErrTritonName) {
				return fmt.Errorf("--name: %w", err)
			}
			if err != nil {
				return err
			}
			return writeRepository(triton, entries, force)
		},
	}
	f := c.Flags()
	f.StringVar(&triton, "triton", "", "the model repository to write into, a folder")
	f.StringVar(&name, "name", "anomaly", "what the model is called there")
	f.StringVar(&metadata, "metadata", "", "a metadata.json that replaces the model's own in the entries: measure, threshold, errors and class names")
	f.BoolVar(&force, "force", false, "replace existing entries of these names")
	_ = c.MarkFlagRequired("triton") // fails only for a flag that is not there
	return c
}

// writeRepository writes the entries into a temporary folder within the
// repository, which is on the same disk, and renames them to their names: no
// entry is ever half written. When one cannot be renamed, those before are put
// back as they were.
func writeRepository(dir string, entries []exporter.TritonEntry, force bool) (err error) {
	for _, e := range entries {
		if err := mayPlace(filepath.Join(dir, e.Name), force); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".anomaly-*")
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	fresh, replaced := filepath.Join(tmp, "new"), filepath.Join(tmp, "replaced")
	if err := os.Mkdir(replaced, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		for path, data := range map[string][]byte{
			filepath.Join(fresh, e.Name, tritonConfigFile):               e.Config,
			filepath.Join(fresh, e.Name, tritonVersion, tritonModelFile): e.Model,
		} {
			if err := files.WriteAtomic(path, func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
				return err
			}
		}
	}
	var undo []func() error
	move := func(from, to string) error {
		err := os.Rename(from, to)
		if err == nil {
			undo = append(undo, func() error { return os.Rename(to, from) })
		}
		return err
	}
	for _, e := range entries {
		target := filepath.Join(dir, e.Name)
		_, there := os.Lstat(target)
		if there == nil {
			err = move(target, filepath.Join(replaced, e.Name))
		}
		if err == nil {
			err = move(filepath.Join(fresh, e.Name), target)
		}
		if err != nil {
			for i := len(undo) - 1; i >= 0; i-- {
				if stuck := undo[i](); stuck != nil {
					keep = true // what was there is in it
					return fmt.Errorf("%w, and what was there cannot be put back, it is in %s: %w", err, replaced, stuck)
				}
			}
			return err
		}
	}
	return nil
}

// mayPlace returns an error when there is something in an entry's place that is
// not to be replaced, or that is no entry and would be lost.
func mayPlace(path string, force bool) error {
	switch _, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !force:
		return fmt.Errorf("%s exists; give --force to replace it, or another --name", path)
	}
	if _, err := os.Stat(filepath.Join(path, tritonConfigFile)); err != nil {
		return fmt.Errorf("%s holds no %s, so it is no model of a repository and stays; give another --name", path, tritonConfigFile)
	}
	return nil
}
