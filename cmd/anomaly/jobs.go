package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

func jobsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "jobs",
		Short: "Train in a running service, without an open request",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(submitJobCommand(), listJobsCommand(), watchJobCommand(), getJobCommand(), cancelJobCommand())
	return c
}

// job sends a request that is answered with a job.
func (s *serviceClient) job(ctx context.Context, method, path string, header http.Header, body io.Reader) (job jobs.Job, err error) {
	err = s.json(ctx, method, path, header, body, &job)
	return job, err
}

// jobPath returns the path of a job.
func jobPath(id string) string { return "/jobs/" + url.PathEscape(id) }

func submitJobCommand() *cobra.Command {
	var (
		client            serviceClient
		options           trainer.Options
		calibration, from string
		name, callback    string
		watch             bool
		preparation       preparationFlags
	)
	c := &cobra.Command{
		Use:   "submit ZIP|FOLDER",
		Short: "Submit a training and print the id of its job",
		Long: "Uploads a zip or a folder of normal images, and prints the id of the job when the service has stored the upload.\n" +
			"The job then ends even if the service is restarted. With --watch, submit goes on as watch.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, _, err := settle(c, options, &preparation); err != nil {
				return err
			}
			if err := client.open(); err != nil {
				return err
			}
			fields := [][2]string{{"name", name}, {"callback_url", callback}}
			for flag, field := range map[string][2]string{
				"level":            {"level", strconv.Itoa(options.Level)},
				"image-size":       {"image_size", preparation.Size},
				"fit":              {"fit", preparation.Fit},
				"window":           {"window", preparation.Window},
				"false-alarm-rate": {"false_alarm_rate", strconv.FormatFloat(options.FalseAlarmRate, 'f', -1, 64)},
				"max-time":         {"max_seconds", strconv.FormatFloat(options.MaxTime.Seconds(), 'f', -1, 64)},
			} {
				if c.Flags().Changed(flag) {
					fields = append(fields, field)
				}
			}
			uploads := [][2]string{{"zipFile", args[0]}, {"calibrationFile", calibration}, {"baseModel", from}}
			var region trainer.Preparation
			if err := preparation.readRegion(&region); err != nil {
				return err
			}
			if region.Boxes != "" {
				fields = append(fields, [2]string{"roi", region.Boxes})
			} else {
				uploads = append(uploads, [2]string{"roiFile", preparation.region})
			}
			body, kind := uploadForm(fields, uploads)
			defer body.Close()
			job, err := client.job(c.Context(), http.MethodPost, "/jobs", http.Header{"Content-Type": {kind}}, body)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), job.ID)
			if watch {
				return client.watch(c, job.ID)
			}
			return nil
		},
	}
	f := c.Flags()
	client.add(c)
	addTrainingFlags(c, &options, &preparation)
	_ = f.MarkHidden("seed") // the service's
	f.StringVar(&calibration, "calibration", "", "zip or folder of normal images that are not trained on, to set the threshold from (default: none)")
	f.StringVar(&from, "from", "", "model to continue from, at its image size, instead of random weights")
	f.StringVar(&name, "name", "", "name under which the service stores the model (default: none)")
	f.StringVar(&callback, "callback", "", "`URL` to which the service posts the job when it has ended (default: none)")
	f.BoolVar(&watch, "watch", false, "wait for the end of the job, as watch does")
	return c
}

func listJobsCommand() *cobra.Command {
	var (
		client serviceClient
		asJSON bool
	)
	c := &cobra.Command{
		Use:   "list",
		Short: "List the jobs of a service, the newest first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := client.open(); err != nil {
				return err
			}
			var list struct{ Jobs []jobs.Job }
			if err := client.json(c.Context(), http.MethodGet, "/jobs", nil, nil, &list); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), list.Jobs)
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "id\tstate\tcreated\tdone\tname")
			for _, j := range list.Jobs {
				fmt.Fprintf(w, "%s\t%s\t%s\t%.0f %%\t%s\n", escaped(j.ID), escaped(string(j.State)), j.CreatedAt.Format(time.RFC3339), 100*j.Progress.Fraction, escaped(j.Name))
			}
			return w.Flush()
		},
	}
	client.add(c)
	addJSON(c, &asJSON)
	return c
}

func watchJobCommand() *cobra.Command {
	var client serviceClient
	c := &cobra.Command{
		Use:   "watch ID",
		Short: "Print the progress of a job until it ends",
		Long:  "Prints the progress on standard error until the job ends, also across restarts of the service. The exit status\nis 0 if the job succeeds and 2 otherwise.",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client.open(); err != nil {
				return err
			}
			return client.watch(c, args[0])
		},
	}
	client.add(c)
	return c
}

// watchPause is the pause before watch connects again.
const watchPause = time.Second

// watch prints the progress of a job until it ends. It connects again when the stream
// ends early, or the service cannot be reached.
func (s *serviceClient) watch(c *cobra.Command, id string) error {
	last, line := "", ""
	for first := true; ; first = false {
		job, err := s.follow(c.Context(), id, &last, func(job jobs.Job) {
			if text := describeJob(job); text != line {
				line = text
				fmt.Fprintln(c.ErrOrStderr(), line)
			}
		})
		var answered *serviceError
		switch {
		case err == nil && job.State.Final():
			return jobOutcome(c, job)
		case c.Context().Err() != nil:
			return context.Cause(c.Context())
		case err != nil && (first || errors.As(err, &answered) && answered.status < http.StatusInternalServerError):
			return err
		}
		select {
		case <-c.Context().Done():
		case <-time.After(watchPause):
		}
	}
}

// follow reads the events of a job after the event last, and updates last. It returns
// the job at the end of the stream.
func (s *serviceClient) follow(ctx context.Context, id string, last *string, changed func(jobs.Job)) (job jobs.Job, err error) {
	header := http.Header{}
	if *last != "" {
		header.Set("Last-Event-ID", *last)
	}
	res, err := s.do(ctx, http.MethodGet, jobPath(id)+"/events", header, nil)
	if err != nil {
		return job, err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNoContent {
		return s.job(ctx, http.MethodGet, jobPath(id), nil, nil)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20) // a job may have many warnings
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			*last = text
		}
		if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			job = jobs.Job{}
			if err := json.Unmarshal([]byte(text), &job); err != nil {
				return job, fmt.Errorf("unexpected response: %w", err)
			}
			changed(job)
		}
	}
	return job, lines.Err()
}

// describeJob returns a line about the progress of a job.
func describeJob(j jobs.Job) string {
	if j.State != jobs.Running || j.Progress.Phase == "" {
		return escaped(string(j.State))
	}
	text := fmt.Sprintf("%3.0f %% %s", 100*j.Progress.Fraction, escaped(j.Progress.Phase))
	if j.Progress.Loss != nil {
		text += fmt.Sprintf(", epoch %d/%d, loss %.6f", j.Progress.Epoch, j.Progress.Epochs, *j.Progress.Loss)
	}
	if left := j.Progress.SecondsLeft; left != nil {
		text += fmt.Sprintf(", %s left", time.Duration(*left*float64(time.Second)).Round(time.Second))
	}
	return text
}

// jobOutcome prints the warnings of a job that has ended, and returns an error unless it
// succeeded.
func jobOutcome(c *cobra.Command, j jobs.Job) error {
	printRemarks(c.ErrOrStderr(), nil, j.Warnings)
	switch {
	case j.State == jobs.Succeeded:
		return nil
	case j.Error != nil:
		return errors.New(*j.Error)
	}
	return fmt.Errorf("the job is %s", j.State)
}

func getJobCommand() *cobra.Command {
	var (
		client serviceClient
		out    outputFlags
	)
	c := &cobra.Command{
		Use:   "get ID",
		Short: "Download the model of a job",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client.open(); err != nil {
				return err
			}
			if err := out.check(); err != nil {
				return err
			}
			res, err := client.do(c.Context(), http.MethodGet, jobPath(args[0])+"/model", nil, nil)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			return download(res, out.path)
		},
	}
	client.add(c)
	out.add(c, "out", exporter.BundleFile, "zip to write")
	return c
}

func cancelJobCommand() *cobra.Command {
	var client serviceClient
	c := &cobra.Command{
		Use:   "cancel ID",
		Short: "Cancel a job, or remove one that has ended, with its model",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := client.open(); err != nil {
				return err
			}
			job, err := client.job(c.Context(), http.MethodDelete, jobPath(args[0]), nil, nil)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), escaped(string(job.State)))
			return nil
		},
	}
	client.add(c)
	return c
}
