package main

import (
	"archive/zip"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/api"
	"github.com/deepmed/anomaly/internal/files"
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

// jobsClient sends requests about jobs to a service.
type jobsClient struct {
	server, tokenFile string
	token             string
}

func (j *jobsClient) add(c *cobra.Command) {
	c.Flags().StringVar(&j.server, "server", "", "`URL` of the service (default: http://127.0.0.1:$PORT, http://127.0.0.1:"+defaultPort+" without PORT)")
	c.Flags().StringVar(&j.tokenFile, "token-file", "", "file with the service's token (default: no token)")
}

// open checks the flags. It must be called first.
func (j *jobsClient) open() (err error) {
	if j.server == "" {
		j.server = "http://" + address("")
	}
	if u, err := url.Parse(j.server); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("--server is %q, expected a URL such as http://127.0.0.1:%s", j.server, defaultPort)
	}
	j.server = strings.TrimSuffix(j.server, "/")
	if j.tokenFile != "" {
		j.token, err = api.ReadToken(j.tokenFile)
	}
	return err
}

// do sends a request. It returns the error of the service for a status of 400 and above.
// The caller must close the body.
func (j *jobsClient) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, j.server+path, body)
	if err != nil {
		return nil, err
	}
	if header != nil {
		r.Header = header
	}
	if j.token != "" {
		r.Header.Set("Authorization", "Bearer "+j.token)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode < http.StatusBadRequest {
		return res, nil
	}
	defer res.Body.Close()
	const maxError = 64 << 10
	var answer struct{ Error string }
	if err := json.NewDecoder(io.LimitReader(res.Body, maxError)).Decode(&answer); err != nil || answer.Error == "" {
		return nil, fmt.Errorf("%s responds with status %s", j.server, res.Status)
	}
	return nil, &serviceError{res.StatusCode, answer.Error}
}

// serviceError is an error that the service has answered.
type serviceError struct {
	status  int
	message string
}

func (e *serviceError) Error() string { return e.message }

// job sends a request that is answered with a job.
func (j *jobsClient) job(ctx context.Context, method, path string, header http.Header, body io.Reader) (job jobs.Job, err error) {
	res, err := j.do(ctx, method, path, header, body)
	if err != nil {
		return job, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&job); err != nil {
		return job, fmt.Errorf("unexpected response: %w", err)
	}
	return job, nil
}

// jobPath returns the path of a job.
func jobPath(id string) string { return "/jobs/" + url.PathEscape(id) }

func submitJobCommand() *cobra.Command {
	var (
		client            jobsClient
		options           trainer.Options
		calibration, from string
		name, callback    string
		watch             bool
	)
	c := &cobra.Command{
		Use:   "submit ZIP|FOLDER",
		Short: "Submit a training and print the id of its job",
		Long: "Uploads a zip or a folder of normal images, and prints the id of the job when the service has stored the upload.\n" +
			"The job then ends even if the service is restarted. With --watch, submit goes on as watch.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, _, err := settle(c, options); err != nil {
				return err
			}
			if err := client.open(); err != nil {
				return err
			}
			fields := [][2]string{{"name", name}, {"callback_url", callback}}
			for flag, field := range map[string][2]string{
				"level":            {"level", strconv.Itoa(options.Level)},
				"image-size":       {"image_size", strconv.Itoa(options.ImageSize)},
				"false-alarm-rate": {"false_alarm_rate", strconv.FormatFloat(options.FalseAlarmRate, 'f', -1, 64)},
				"max-time":         {"max_seconds", strconv.FormatFloat(options.MaxTime.Seconds(), 'f', -1, 64)},
			} {
				if c.Flags().Changed(flag) {
					fields = append(fields, field)
				}
			}
			body, kind := uploadJob(fields, [][2]string{{"zipFile", args[0]}, {"calibrationFile", calibration}, {"baseModel", from}})
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
	addTrainingFlags(c, &options)
	_ = f.MarkHidden("seed") // the service's
	f.StringVar(&calibration, "calibration", "", "zip or folder of normal images that are not trained on, to set the threshold from (default: none)")
	f.StringVar(&from, "from", "", "model to continue from, at its image size, instead of random weights")
	f.StringVar(&name, "name", "", "name under which the service stores the model (default: none)")
	f.StringVar(&callback, "callback", "", "`URL` to which the service posts the job when it has ended (default: none)")
	f.BoolVar(&watch, "watch", false, "wait for the end of the job, as watch does")
	return c
}

// uploadJob returns the body of a form and its content type. Files are read while they
// are sent; those without a path are left out. The caller must close the body.
func uploadJob(fields, paths [][2]string) (io.ReadCloser, string) {
	r, w := io.Pipe()
	form := multipart.NewWriter(w)
	go func() {
		err := func() error {
			for _, field := range fields {
				if err := form.WriteField(field[0], field[1]); err != nil {
					return err
				}
			}
			for _, path := range paths {
				if path[1] == "" {
					continue
				}
				part, err := form.CreateFormFile(path[0], filepath.Base(path[1]))
				if err == nil {
					err = sendFile(part, path[1])
				}
				if err != nil {
					return err
				}
			}
			return form.Close()
		}()
		w.CloseWithError(err)
	}()
	return r, form.FormDataContentType()
}

// sendFile writes a file, or a zip of the regular files in a folder.
func sendFile(w io.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		f, err := files.OpenRegular(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}
	z := zip.NewWriter(w)
	err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() {
			return nil
		}
		relative, err := filepath.Rel(path, name)
		if err != nil {
			return err
		}
		// Images are compressed already.
		entry, err := z.CreateHeader(&zip.FileHeader{Name: filepath.ToSlash(relative), Method: zip.Store, Modified: info.ModTime()})
		if err != nil {
			return err
		}
		f, err := files.OpenRegular(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(entry, f)
		return err
	})
	return errors.Join(err, z.Close())
}

func listJobsCommand() *cobra.Command {
	var (
		client jobsClient
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
			res, err := client.do(c.Context(), http.MethodGet, "/jobs", nil, nil)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			var list struct{ Jobs []jobs.Job }
			if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
				return fmt.Errorf("unexpected response: %w", err)
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
	var client jobsClient
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
func (j *jobsClient) watch(c *cobra.Command, id string) error {
	last, line := "", ""
	for first := true; ; first = false {
		job, err := j.follow(c.Context(), id, &last, func(job jobs.Job) {
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
func (j *jobsClient) follow(ctx context.Context, id string, last *string, changed func(jobs.Job)) (job jobs.Job, err error) {
	header := http.Header{}
	if *last != "" {
		header.Set("Last-Event-ID", *last)
	}
	res, err := j.do(ctx, http.MethodGet, jobPath(id)+"/events", header, nil)
	if err != nil {
		return job, err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNoContent {
		return j.job(ctx, http.MethodGet, jobPath(id), nil, nil)
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
		client jobsClient
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
			return files.WriteAtomic(out.path, func(w io.Writer) error {
				n, err := io.Copy(w, res.Body)
				if err == nil && res.ContentLength >= 0 && n != res.ContentLength {
					err = io.ErrUnexpectedEOF
				}
				return err
			})
		},
	}
	client.add(c)
	out.add(c, "out", exporter.BundleFile, "zip to write")
	return c
}

func cancelJobCommand() *cobra.Command {
	var client jobsClient
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
