package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
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
		Short: "Train or judge images in a running service, without an open request",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(submitJobCommand(), listJobsCommand(), watchJobCommand(), getJobCommand(), jobResultsCommand(), cancelJobCommand())
	return c
}

// job sends a request that is answered with a job.
func (s *serviceClient) job(ctx context.Context, method, path string, header http.Header, body io.Reader) (job jobs.Job, err error) {
	err = s.json(ctx, method, path, header, body, &job)
	return job, err
}

// jobPath returns the path of a job.
func jobPath(id string) string { return "/jobs/" + url.PathEscape(id) }

// submission are the flags of jobs submit.
type submission struct {
	options           trainer.Options
	preparation       preparationFlags
	kind              string
	calibration, from string
	name, callback    string
	model             string
	threshold         float64
}

// trainingFlags are the flags of jobs submit and the fields of a training, and detectFlags
// those of a detection.
var (
	trainingFlags = map[string]string{"level": "level", "image-size": "image_size", "fit": "fit", "window": "window", "tile": "tile", "overlap": "overlap",
		"longest-side": "longest_side", "tiles": "tiles", "false-alarm-rate": "false_alarm_rate", "max-time": "max_seconds"}
	detectFlags = []string{"model", "threshold"}
)

func submitJobCommand() *cobra.Command {
	var (
		client serviceClient
		s      submission
		watch  bool
	)
	c := &cobra.Command{
		Use:   "submit ZIP|FOLDER",
		Short: "Submit a training or a detection and print the id of its job",
		Long: "Uploads a zip or a folder, of normal images to train on, or with --kind detect of images to judge, and prints the id of\n" +
			"the job when the service has stored the upload. The job then ends even if the service is restarted. With --watch,\n" +
			"submit goes on as watch.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			fields, paths, err := s.form(c, args[0])
			if err != nil {
				return err
			}
			if err := client.open(); err != nil {
				return err
			}
			body, kind := uploadForm(fields, paths)
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
	addTrainingFlags(c, &s.options, &s.preparation)
	_ = f.MarkHidden("seed") // the service's
	f.StringVar(&s.kind, "kind", kindTrain, "what to do with the images: train or detect")
	f.StringVar(&s.calibration, "calibration", "", "zip or folder of normal images that are not trained on, to set the threshold from (default: none)")
	f.StringVar(&s.from, "from", "", "model to continue from, at its image size, instead of random weights")
	f.StringVar(&s.name, "name", "", "name under which the service stores the model (default: none)")
	f.StringVar(&s.model, "model", "", "with --kind detect: name of the model of the service that judges")
	f.Float64Var(&s.threshold, "threshold", 0, "with --kind detect: threshold of the model's own measure to judge by, 0 or more (default: the model's)")
	f.StringVar(&s.callback, "callback", "", "`URL` to which the service posts the job when it has ended (default: none)")
	f.BoolVar(&watch, "watch", false, "wait for the end of the job, as watch does")
	return c
}

// form returns the fields and the paths of the files of the job's form.
func (s *submission) form(c *cobra.Command, images string) (fields, paths [][2]string, err error) {
	// reject returns an error if a flag of the other kind is set.
	reject := func(flags ...string) error {
		for _, flag := range flags {
			if c.Flags().Changed(flag) {
				return fmt.Errorf("--%s is not for --kind %s", flag, s.kind)
			}
		}
		return nil
	}
	switch s.kind {
	case kindDetect:
		flags := append(slices.Sorted(maps.Keys(trainingFlags)), "calibration", "from", "name", "roi")
		if err := reject(flags...); err != nil {
			return nil, nil, err
		}
		if s.model == "" {
			return nil, nil, errors.New("--kind detect needs --model, the name of a model of the service")
		}
		var threshold *float64
		if c.Flags().Changed("threshold") {
			if err := usableThreshold(s.threshold); err != nil {
				return nil, nil, err
			}
			threshold = &s.threshold
		}
		return append(detectFields(s.model, threshold), [2]string{"callback_url", s.callback}), [][2]string{{"images", images}}, nil
	case kindTrain:
	default:
		return nil, nil, fmt.Errorf("--kind is %q, expected train or detect", s.kind)
	}
	if err := reject(detectFlags...); err != nil {
		return nil, nil, err
	}
	if _, _, err := settle(c, s.options, &s.preparation); err != nil {
		return nil, nil, err
	}
	fields = [][2]string{{"name", s.name}, {"callback_url", s.callback}}
	values := map[string]string{
		"level": strconv.Itoa(s.options.Level), "image-size": s.preparation.Size,
		"fit": s.preparation.Fit, "window": s.preparation.Window, "tile": s.preparation.Tile, "overlap": s.preparation.Overlap,
		"longest-side": s.preparation.LongestSide, "tiles": s.preparation.Statistics,
		"false-alarm-rate": strconv.FormatFloat(s.options.FalseAlarmRate, 'f', -1, 64), "max-time": strconv.FormatFloat(s.options.MaxTime.Seconds(), 'f', -1, 64),
	}
	for flag, field := range trainingFlags {
		if c.Flags().Changed(flag) {
			fields = append(fields, [2]string{field, values[flag]})
		}
	}
	paths = [][2]string{{"zipFile", images}, {"calibrationFile", s.calibration}, {"baseModel", s.from}}
	var region trainer.Preparation
	if err := s.preparation.readRegion(&region); err != nil {
		return nil, nil, err
	}
	if region.Boxes != "" {
		fields = append(fields, [2]string{"roi", region.Boxes})
	} else {
		paths = append(paths, [2]string{"roiFile", s.preparation.region})
	}
	return fields, paths, nil
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
			fmt.Fprintln(w, "id\tkind\tstate\tcreated\tdone\tname")
			for _, j := range list.Jobs {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.0f %%\t%s\n", escaped(j.ID), escaped(j.Kind), escaped(string(j.State)), j.CreatedAt.Format(time.RFC3339), 100*j.Progress.Fraction, escaped(j.Name))
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

// watch prints the progress of a job until it ends.
func (s *serviceClient) watch(c *cobra.Command, id string) error {
	line := ""
	job, err := s.await(c.Context(), id, func(job jobs.Job) {
		if text := describeJob(job); text != line {
			line = text
			fmt.Fprintln(c.ErrOrStderr(), line)
		}
	})
	if err != nil {
		return err
	}
	return jobOutcome(c, job)
}

// await calls changed with each change of a job, and returns the job when it has ended. It
// connects again when the stream ends early, or the service cannot be reached.
func (s *serviceClient) await(ctx context.Context, id string, changed func(jobs.Job)) (jobs.Job, error) {
	last := ""
	for first := true; ; first = false {
		job, err := s.follow(ctx, id, &last, changed)
		var answered *serviceError
		switch {
		case err == nil && job.State.Final():
			return job, nil
		case ctx.Err() != nil:
			return job, context.Cause(ctx)
		case err != nil && (first || errors.As(err, &answered) && answered.status < http.StatusInternalServerError):
			return job, err
		}
		select {
		case <-ctx.Done():
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
			return client.download(c.Context(), jobPath(args[0])+"/model", out.path)
		},
	}
	client.add(c)
	out.add(c, "out", exporter.BundleFile, "zip to write")
	return c
}

// resultFormats are the formats of the results of a job.
var resultFormats = []string{"jsonl", "csv"}

func jobResultsCommand() *cobra.Command {
	var (
		client serviceClient
		out    outputFlags
		format string
	)
	c := &cobra.Command{
		Use:   "results ID --out FILE",
		Short: "Download the results of a job of kind detect",
		Long: "Writes a line for each image, in the order of the zip: an object as in the output of detect --json (jsonl), or a row of\n" +
			"a table (csv).",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains(resultFormats, format) {
				return fmt.Errorf("--format is %q, expected one of %s", format, strings.Join(resultFormats, ", "))
			}
			if err := errors.Join(client.open(), out.check()); err != nil {
				return err
			}
			return client.download(c.Context(), jobPath(args[0])+"/results?format="+format, out.path)
		},
	}
	client.add(c)
	out.add(c, "out", "", "file to write")
	c.Flags().StringVar(&format, "format", "jsonl", "format of the file: "+strings.Join(resultFormats, ", "))
	_ = c.MarkFlagRequired("out") // fails only for an unknown flag
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
