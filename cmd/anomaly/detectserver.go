package main

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
	"github.com/spf13/cobra"
)

// The kinds of jobs.
const (
	kindTrain  = "train"
	kindDetect = "detect"
)

// removeTime is the longest time to remove a job from the service at the end of a command.
const removeTime = 10 * time.Second

// detectFields returns the fields of a job that judges images by a named model.
func detectFields(model string, threshold *float64) [][2]string {
	fields := [][2]string{{"kind", kindDetect}, {"model", model}}
	if threshold != nil {
		fields = append(fields, [2]string{"threshold", strconv.FormatFloat(*threshold, 'g', -1, 64)})
	}
	return fields
}

// judgeThere lets a service judge the images of a folder.
func (o *detectOptions) judgeThere(c *cobra.Command, args []string) error {
	if info, err := os.Stat(args[0]); err != nil {
		return err
	} else if len(args) > 1 || !info.IsDir() {
		return errors.New("with --server, detect judges the images of one folder: name one")
	}
	inputs, remarks, err := imageFiles(args)
	if err != nil {
		return err
	}
	if err := o.client.open(); err != nil {
		return err
	}
	if !slices.ContainsFunc(inputs, func(in input) bool { return in.reason == "" }) {
		return errors.New("none of the images can be read: detect without --server names the reasons")
	}
	var e registry.Entry
	if err := o.client.json(c.Context(), http.MethodGet, modelPath(o.model), nil, nil, &e); err != nil {
		return err
	}
	if e.Metadata == nil {
		return fmt.Errorf("the model %s cannot be used: %s", quoted(o.model), describeEntry(e))
	}
	meta, threshold := e.Metadata, (*float64)(nil)
	if o.moved {
		if meta, err = o.moveThreshold(*meta); err != nil {
			return err
		}
		threshold = &o.threshold
	}
	job, err := o.submit(c.Context(), args[0], inputs, threshold)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), removeTime)
		defer cancel()
		_, _ = o.client.job(ctx, http.MethodDelete, jobPath(job.ID), nil, nil) // the service removes old jobs
	}()
	if job, err = o.await(c, job.ID, len(inputs)); err != nil {
		return err
	}
	if job.State != jobs.Succeeded {
		return jobOutcome(c, job)
	}
	results, err := o.fetch(c.Context(), job.ID, args[0], inputs)
	if err != nil {
		return err
	}
	return o.report(c, results, len(inputs), len(inputs), append(remarks, job.Warnings...), e.Metadata, meta)
}

// submit submits a job with the inputs of a folder. It sets the reasons of those that
// cannot be read.
func (o *detectOptions) submit(ctx context.Context, folder string, inputs []input, threshold *float64) (jobs.Job, error) {
	sent := make(chan struct{})
	body, kind := formOf(detectFields(o.model, threshold), []formFile{{"images", "images.zip", func(w io.Writer) error {
		defer close(sent)
		return sendInputs(w, folder, inputs)
	}}})
	defer body.Close()
	job, err := o.client.job(ctx, http.MethodPost, "/jobs", http.Header{"Content-Type": {kind}}, body)
	if err == nil {
		<-sent // the service has received all of it
	}
	return job, err
}

// sendInputs writes a zip of the inputs of a folder that can be read, in their order.
func sendInputs(w io.Writer, folder string, inputs []input) error {
	z := zip.NewWriter(w)
	for i := range inputs {
		in := &inputs[i]
		data, err := in.read()
		if err != nil {
			in.reason = printable(err)
			continue
		}
		name, err := sentName(folder, in.path)
		if err != nil {
			return err
		}
		// Images are compressed already.
		entry, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
		if err == nil {
			_, err = entry.Write(data)
		}
		if err != nil {
			return err
		}
	}
	return z.Close()
}

// sentName returns the name in the zip of a file in a folder.
func sentName(folder, path string) (string, error) {
	name, err := filepath.Rel(folder, path)
	return filepath.ToSlash(name), err
}

// await waits for the end of a job with a number of images and shows its progress on a
// terminal.
func (o *detectOptions) await(c *cobra.Command, id string, images int) (jobs.Job, error) {
	step, end := fileProgress(c.ErrOrStderr(), images)
	defer end()
	shown := 0
	job, err := o.client.await(c.Context(), id, func(j jobs.Job) {
		for ; shown < int(j.Progress.Fraction*float64(images)); shown++ {
			step()
		}
	})
	if c.Context().Err() != nil {
		return job, errors.New("interrupted; the job was cancelled")
	}
	return job, err
}

// fetch returns the results of a job for the inputs of a folder. The service has a line for
// each input without a reason, in their order.
func (o *detectOptions) fetch(ctx context.Context, id, folder string, inputs []input) ([]result, error) {
	res, err := o.client.do(ctx, http.MethodGet, jobPath(id)+"/results?format=jsonl", nil, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	lines := json.NewDecoder(res.Body)
	results := make([]result, 0, len(inputs))
	for _, in := range inputs {
		if in.reason != "" {
			results = append(results, result{File: in.path, Error: in.reason})
			continue
		}
		var r result
		if err := lines.Decode(&r); err != nil {
			return nil, fmt.Errorf("unexpected response: the results of %s: %w", quoted(in.path), err)
		}
		name, err := sentName(folder, in.path)
		if err != nil {
			return nil, err
		}
		if strings.ToValidUTF8(name, "") == name && strings.ReplaceAll(name, `\`, "/") != r.File {
			return nil, fmt.Errorf("unexpected response: the result of %s instead of that of %s", quoted(r.File), quoted(in.path))
		}
		r.File = in.path
		results = append(results, r.Images()...)
	}
	return results, nil
}

// usableThreshold returns an error for a threshold that no model can judge by.
func usableThreshold(v float64) error {
	_, err := (&detectOptions{threshold: v}).moveThreshold(models.Metadata{})
	return err
}
