package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/verification"
	"github.com/spf13/cobra"
)

func verifyCommand() *cobra.Command {
	var (
		engine engineFlags
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "verify MODEL [IMAGE|FOLDER...]",
		Short: "Check that an exported model computes what the trained network computes: exit 0 if so, 1 if not, 2 on an error",
		Long: "Exports the model to ONNX, reads the export back with an independent decoder into the graph that the trainer\n" +
			"builds, and exports that again: the bytes must be equal. Then it compares three scores of each image: ONNX\n" +
			"Runtime's for the export, Gorgonia's for the graph, and detect's. Without images it takes a fixed pattern.\n" +
			fmt.Sprintf("The relative difference may be %g; above %d×%d pixels it may grow with the number of pixels, as rounding\n",
				verification.BaseTolerance, verification.BaseSide, verification.BaseSide) +
			"errors do.\n\n" +
			"Gorgonia's machine is plain Go: an image of 256×256 pixels takes seconds, and four times as long at twice the\n" +
			"side. A few images are enough.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, _, err := readModel(args[0], "")
			if err != nil {
				return err
			}
			var paths []string
			var unread []verification.Image
			if len(args) > 1 {
				inputs, passedOver, err := imageFiles(args[1:])
				if err != nil {
					return err
				}
				printRemarks(c.ErrOrStderr(), nil, passedOver)
				for _, f := range inputs {
					if f.reason == "" {
						paths = append(paths, f.path)
					} else {
						unread = append(unread, verification.Image{File: f.path, Error: f.reason})
					}
				}
				if len(paths) == 0 {
					return fmt.Errorf("none of the %d images can be read, the first (%s) because %s",
						len(unread), dataset.Printable(unread[0].File), unread[0].Error)
				}
			}
			e, err := engine.open()
			if err != nil {
				return err
			}
			r, err := abandonable(c.Context(), func() (*verification.Result, error) {
				return verification.Verify(c.Context(), e, m, paths, fileProgress(c.ErrOrStderr(), len(paths)))
			})
			if err != nil {
				return err
			}
			r.Images = append(r.Images, unread...)
			if asJSON {
				err = printJSON(c.OutOrStdout(), r)
			} else {
				err = printVerification(c.OutOrStdout(), r)
			}
			if err != nil {
				return err
			}
			return verificationStatus(r)
		},
	}
	engine.add(c)
	addJSON(c, &asJSON)
	return c
}

// abandonable returns what f returns, or an error as soon as the context ends. It
// does not wait for f then: Gorgonia's machine cannot be stopped, and the program is
// about to exit.
func abandonable[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		v, err := f()
		done <- outcome{v, err}
	}()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, errors.New("interrupted; nothing was verified")
	}
}

func printVerification(w io.Writer, r *verification.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "IMAGE\tONNX RUNTIME\tGORGONIA\tDETECT\tDIFFERENCE")
	for _, i := range r.Images {
		if i.Scores == nil {
			fmt.Fprintf(t, "%s\t\t\t\tcannot be compared: %s\n", dataset.Printable(i.File), i.Error)
		} else {
			fmt.Fprintf(t, "%s\t%.9f\t%.9f\t%.9f\t%.1e\n", dataset.Printable(i.File), i.ONNXRuntime, i.Gorgonia, i.Served, i.Difference())
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	graph := map[bool]string{true: "read back and exported again, the bytes are the same", false: "READ BACK AND EXPORTED AGAIN, THE BYTES DIFFER"}[r.SameGraph]
	word := map[bool]string{true: "agrees", false: "DOES NOT AGREE"}[r.Agrees]
	_, err := fmt.Fprintf(w, "%s; largest relative difference %.1e, allowed %.1e: %s\n", graph, r.Largest, r.Tolerance, word)
	return err
}

func verificationStatus(r *verification.Result) error {
	for _, i := range r.Images {
		if i.Scores == nil {
			return exitStatus(exitError)
		}
	}
	if !r.Agrees {
		return exitStatus(exitAnomaly)
	}
	return nil
}

// fileProgress returns a function that counts a file. It draws a bar on a terminal,
// and nothing elsewhere.
func fileProgress(w io.Writer, n int) func() {
	if n < 2 || !isTerminal(w) {
		return func() {}
	}
	bar := progressBar(w, n)
	_ = bar.RenderBlank() // the first image takes a while
	return func() { _ = bar.Add(1) }
}
