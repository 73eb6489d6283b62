package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/spf13/cobra"
)

func modelsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "models",
		Short: "List, change and download the named models of a running service",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(listModelsCommand(), getModelCommand(), putModelCommand(), moveThresholdCommand(), calibrateModelCommand(),
		feedbackCommand(), listVersionsCommand(), restoreVersionCommand())
	return c
}

// modelPath returns the path of a named model.
func modelPath(name string) string { return "/models/" + url.PathEscape(name) }

// printEntry prints a model that was stored, or its entry as JSON.
func printEntry(w io.Writer, e registry.Entry, asJSON bool) error {
	if asJSON {
		return printJSON(w, e)
	}
	_, err := fmt.Fprintf(w, "%s: %s\n", escaped(e.Name), describeEntry(e))
	return err
}

func describeEntry(e registry.Entry) string {
	if e.Metadata == nil {
		return escaped(cmp.Or(e.Error, string(e.State)))
	}
	measure, threshold := e.Metadata.Measure()
	text := fmt.Sprintf("threshold %.6f (%s)", threshold, escaped(measure))
	if d := e.Metadata.Decision; d != nil && d.FalseAlarmRate > 0 {
		text += fmt.Sprintf(", for %.3g %% false alarms", 100*d.FalseAlarmRate)
	}
	return text
}

func listModelsCommand() *cobra.Command {
	var (
		client serviceClient
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "list",
		Short: "List the named models of a service",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := client.open(); err != nil {
				return err
			}
			var list struct{ Models []registry.Entry }
			if err := client.json(c.Context(), http.MethodGet, "/models", nil, nil, &list); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list.Models)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "name\tstate\tmodified\tdecision")
			for _, e := range list.Models {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", escaped(e.Name), escaped(string(e.State)), e.Modified.Local().Format(time.DateTime), describeEntry(e))
			}
			return w.Flush()
		},
	}
	client.add(c)
	addJSON(c, &asJSON)
	return c
}

// downloadFormats are the formats of a download.
var downloadFormats = []string{"zip", "pt", "onnx", "onnx-image", "triton"}

func getModelCommand() *cobra.Command {
	var (
		client serviceClient
		out    outputFlags
		format string
	)
	c := &cobra.Command{
		Use:   "get NAME --out FILE",
		Short: "Download a named model",
		Long: "Writes the current version of a model: the zip of a training, one of its files (pt, onnx, or onnx-image, which takes a\n" +
			"decoded image of any size and decides), or a zip of its entries in a Triton model repository (triton).",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains(downloadFormats, format) {
				return fmt.Errorf("--format is %q, expected one of %s", format, strings.Join(downloadFormats, ", "))
			}
			if err := errors.Join(client.open(), out.check()); err != nil {
				return err
			}
			return client.download(c.Context(), modelPath(args[0])+"/file?format="+format, out.path)
		},
	}
	client.add(c)
	out.add(c, "out", "", "file to write")
	c.Flags().StringVar(&format, "format", "zip", "format of the file: "+strings.Join(downloadFormats, ", "))
	_ = c.MarkFlagRequired("out") // fails only for an unknown flag
	return c
}

func putModelCommand() *cobra.Command {
	var (
		client serviceClient
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "put NAME MODEL",
		Short: "Store a model file under a name, as a new version",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client.open(); err != nil {
				return err
			}
			f, err := files.OpenRegular(args[1])
			if err != nil {
				return fmt.Errorf("%s: %w", args[1], err)
			}
			defer f.Close()
			var e registry.Entry
			if err := client.json(c.Context(), http.MethodPut, modelPath(args[0]), http.Header{"Content-Type": {"application/octet-stream"}}, f, &e); err != nil {
				return err
			}
			return printEntry(c.OutOrStdout(), e, asJSON)
		},
	}
	client.add(c)
	addJSON(c, &asJSON)
	return c
}

// versions returns the versions of a named model, the newest first.
func (s *serviceClient) versions(c *cobra.Command, name string) ([]registry.Version, error) {
	var list struct{ Versions []registry.Version }
	err := s.json(c.Context(), http.MethodGet, modelPath(name)+"/versions", nil, nil, &list)
	return list.Versions, err
}

// shownDigits is the number of digits of a SHA-256 in tables.
const shownDigits = 12

func listVersionsCommand() *cobra.Command {
	var (
		client serviceClient
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "versions NAME",
		Short: "List the versions of a named model, the newest first",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client.open(); err != nil {
				return err
			}
			list, err := client.versions(c, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "version\tcreated\tthreshold\t\treason")
			for _, v := range list {
				mark := ""
				if v.Current {
					mark = "current"
				}
				fmt.Fprintf(w, "%s\t%s\t%.6f\t%s\t%s\n", escaped(v.SHA256[:min(shownDigits, len(v.SHA256))]), v.CreatedAt.Local().Format(time.DateTime), v.Threshold, mark, escaped(v.Reason))
			}
			return w.Flush()
		},
	}
	client.add(c)
	addJSON(c, &asJSON)
	return c
}

func restoreVersionCommand() *cobra.Command {
	var (
		client serviceClient
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "restore NAME VERSION",
		Short: "Make a version of a named model the current one",
		Long:  "The version is its SHA-256, or the first digits of it that no other version has: see versions.",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client.open(); err != nil {
				return err
			}
			list, err := client.versions(c, args[0])
			if err != nil {
				return err
			}
			sha256, err := findVersion(list, args[1])
			if err != nil {
				return err
			}
			var e registry.Entry
			if err := client.json(c.Context(), http.MethodPost, modelPath(args[0])+"/versions/"+url.PathEscape(sha256)+"/restore", nil, nil, &e); err != nil {
				return err
			}
			return printEntry(c.OutOrStdout(), e, asJSON)
		},
	}
	client.add(c)
	addJSON(c, &asJSON)
	return c
}

// findVersion returns the SHA-256 of the only version that begins with digits.
func findVersion(list []registry.Version, digits string) (string, error) {
	found := slices.DeleteFunc(slices.Clone(list), func(v registry.Version) bool {
		return digits == "" || !strings.HasPrefix(v.SHA256, strings.ToLower(digits))
	})
	switch len(found) {
	case 0:
		return "", fmt.Errorf("there is no version %q; list them with anomaly models versions", digits)
	case 1:
		return found[0].SHA256, nil
	}
	return "", fmt.Errorf("%d versions begin with %q; use more digits", len(found), digits)
}
