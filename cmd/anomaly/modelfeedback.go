package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/internal/feedback"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

func moveThresholdCommand() *cobra.Command {
	var (
		client serviceClient
		rate   float64
		note   string
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "threshold NAME [THRESHOLD]",
		Short: "Move the threshold of a named model, as a new version",
		Long: "Sets the threshold itself, or with --false-alarm-rate the one for that rate, by the scores of the model's calibration\n" +
			"images. The model keeps its weights and scores.",
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			change := map[string]any{}
			byRate := c.Flags().Changed("false-alarm-rate")
			if byRate == (len(args) == 2) {
				return errors.New("name either a THRESHOLD or a --false-alarm-rate")
			}
			if byRate {
				change["false_alarm_rate"] = rate
			} else {
				threshold, err := strconv.ParseFloat(args[1], 64)
				if err != nil {
					return fmt.Errorf("the threshold is %q, expected a number", args[1])
				}
				change["threshold"] = threshold
			}
			if note != "" {
				change["note"] = note
			}
			body, err := json.Marshal(change)
			if err != nil { // infinity and NaN
				return fmt.Errorf("unusable number: %w", err)
			}
			if err := client.open(); err != nil {
				return err
			}
			var e registry.Entry
			if err := client.json(c.Context(), http.MethodPatch, modelPath(args[0]), http.Header{"Content-Type": {"application/json"}}, bytes.NewReader(body), &e); err != nil {
				return err
			}
			return printEntry(c.OutOrStdout(), e, asJSON)
		},
	}
	client.add(c)
	c.Flags().Float64Var(&rate, "false-alarm-rate", 0, "share of normal images above the threshold, between 0 and 1")
	c.Flags().StringVar(&note, "note", "", "note for the list of versions, at most 200 characters")
	addJSON(c, &asJSON)
	return c
}

func calibrateModelCommand() *cobra.Command {
	var (
		client serviceClient
		rate   float64
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "calibrate NAME ZIP|FOLDER",
		Short: "Calibrate a named model on normal images, as a new version",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client.open(); err != nil {
				return err
			}
			var fields [][2]string
			if c.Flags().Changed("false-alarm-rate") {
				fields = append(fields, [2]string{"false_alarm_rate", strconv.FormatFloat(rate, 'g', -1, 64)})
			}
			body, kind := uploadForm(fields, [][2]string{{"zipFile", args[1]}})
			defer body.Close()
			var answer struct {
				Model    registry.Entry         `json:"model"`
				Warnings []string               `json:"warnings"`
				Report   *trainer.Recalibration `json:"report"`
			}
			if err := client.json(c.Context(), http.MethodPost, modelPath(args[0])+"/calibrate", http.Header{"Content-Type": {kind}}, body, &answer); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), answer)
			}
			printRemarks(c.ErrOrStderr(), nil, answer.Warnings)
			if answer.Report == nil {
				return errors.New("unexpected response: it has no report")
			}
			return printRecalibration(c.OutOrStdout(), args[0], answer.Report)
		},
	}
	client.add(c)
	c.Flags().Float64Var(&rate, "false-alarm-rate", 0, "share of normal images above the threshold, between 0 and 1 (default: the model's own)")
	addJSON(c, &asJSON)
	return c
}

// feedbackAnswer is feedback that the service has answered.
type feedbackAnswer struct {
	ID        string           `json:"id"`
	Label     feedback.Label   `json:"label"`
	Filename  string           `json:"filename"`
	Score     *float64         `json:"anomaly_score"`
	IsAnomaly bool             `json:"is_anomaly"`
	CreatedAt time.Time        `json:"created_at"`
	Summary   feedback.Summary `json:"summary,omitzero"`
}

func feedbackCommand() *cobra.Command {
	var (
		client  serviceClient
		label   string
		removed []string
		asJSON  bool
	)
	c := &cobra.Command{
		Use:   "feedback NAME [IMAGE...]",
		Short: "Send images with their label, or list them",
		Long: "With images and --label, sends each image and whether it is normal. Without images, lists the images that were sent,\n" +
			"and how many of them the model decides wrongly.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (label != "") != (len(args) > 1) {
				return errors.New("images need a --label, and a --label needs images")
			}
			if label != "" {
				if _, err := feedback.ParseLabel(label); err != nil {
					return fmt.Errorf("--label: %w", err)
				}
			}
			if err := client.open(); err != nil {
				return err
			}
			path := modelPath(args[0]) + "/feedback"
			for _, id := range removed {
				res, err := client.do(c.Context(), http.MethodDelete, path+"/"+url.PathEscape(id), nil, nil)
				if err != nil {
					return err
				}
				res.Body.Close()
			}
			for _, image := range args[1:] {
				body, kind := uploadForm([][2]string{{"label", label}}, [][2]string{{"imageFile", image}})
				var a feedbackAnswer
				err := client.json(c.Context(), http.MethodPost, path, http.Header{"Content-Type": {kind}}, body, &a)
				body.Close()
				if err != nil {
					return fmt.Errorf("%s: %w", image, err)
				}
			}
			var list struct {
				Feedback []feedbackAnswer `json:"feedback"`
				Summary  feedback.Summary `json:"summary"`
			}
			if err := client.json(c.Context(), http.MethodGet, path, nil, nil, &list); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list)
			}
			return printFeedback(c.OutOrStdout(), list.Feedback, list.Summary)
		},
	}
	client.add(c)
	c.Flags().StringVar(&label, "label", "", "what the images are: normal or anomalous")
	c.Flags().StringArrayVar(&removed, "remove", nil, "id of feedback to remove; may be repeated")
	addJSON(c, &asJSON)
	return c
}

func printFeedback(out io.Writer, list []feedbackAnswer, s feedback.Summary) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(list) > 0 {
		fmt.Fprintln(w, "label\tscore\tverdict\tfile\tid")
	}
	for _, f := range list {
		score, verdict := "none", "normal"
		if f.Score != nil {
			score = fmt.Sprintf("%.6f", *f.Score)
		}
		if f.IsAnomaly {
			verdict = "anomaly"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", escaped(string(f.Label)), score, verdict, escaped(f.Filename), escaped(f.ID))
	}
	fmt.Fprintf(w, "threshold %.6f: %d false alarms of %d normal images, %d missed of %d anomalous ones\n", s.Threshold, s.FalseAlarms, s.Normal, s.Missed, s.Anomalous)
	if s.Suggested != nil && s.AtSuggested != nil {
		fmt.Fprintf(w, "suggested threshold %.6f: %d false alarms, %d missed\n", *s.Suggested, s.AtSuggested.FalseAlarms, s.AtSuggested.Missed)
	}
	return w.Flush()
}
