package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// readModel reads a model file. It returns the metadata in the file named by
// metadata, which replaces the model's own, or nil when metadata is empty.
func readModel(path, metadata string) (*models.Model, *models.Metadata, error) {
	limits := models.DefaultLimits()
	data, err := files.ReadAtMost(path, limits.MaxBytes)
	if err != nil {
		return nil, nil, err
	}
	m, err := models.Read(data, limits)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if metadata == "" {
		return m, nil, nil
	}
	if data, err = files.ReadAtMost(metadata, models.MaxMetadataBytes); err != nil {
		return nil, nil, err
	}
	meta, err := models.ParseMetadata(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", metadata, err)
	}
	return m, &meta, nil
}

// readModelWith reads a model to be written in another format: with the metadata
// from the file named by metadata, and described by the current format version. It prints
// warnings about the metadata to w.
func readModelWith(path, metadata string, w io.Writer) (*models.Model, error) {
	m, meta, err := readModel(path, metadata)
	if err != nil {
		return nil, err
	}
	printRemarks(w, nil, models.OverrideWarnings(m, meta))
	if meta != nil {
		m.Describe(*meta)
	}
	// The file that the model came from may lack these keys or contradict them.
	m.Metadata.ModelType, m.Metadata.ImageSize = models.ModelType, m.ImageSize
	m.Metadata.Architecture = &m.Architecture
	m.Metadata.Preprocessing = m.Metadata.InputPreprocessing()
	m.Metadata.ClassNames = m.Metadata.Classes()
	m.Metadata.FormatVersion = m.Metadata.Preprocessing.FormatVersion()
	m.Metadata.Files = nil
	return m, nil
}

// input is a file that a command reads.
type input struct {
	path string
	// reason is why the file is known to be unreadable, or "".
	reason string
	// named is set for a file that the command line names. It may be a pipe.
	named bool
}

// read returns the content of an image file, of which it reads no more than what is
// enough to refuse it.
func (i input) read() ([]byte, error) {
	limit := imagefile.DefaultLimits().MaxBytes
	switch {
	case i.reason != "":
		return nil, errors.New(i.reason)
	case i.named:
		return files.ReadAtMost(i.path, limit)
	}
	f, err := files.OpenRegular(i.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// imageFiles returns the files named and the images below the folders named, and
// sentences about other files that were passed over. A path that does not exist is
// returned as it is, so that it has an entry in the output.
func imageFiles(args []string) (inputs []input, passedOver []string, err error) {
	var others []dataset.File
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil || !info.IsDir() {
			inputs = append(inputs, input{path: arg, named: true})
			continue
		}
		all, err := dataset.Images(arg)
		if err != nil {
			return nil, nil, err
		}
		for _, f := range all {
			if f.Image {
				inputs = append(inputs, input{path: f.Path, reason: f.Reason})
			} else {
				others = append(others, f)
			}
		}
	}
	passedOver = dataset.PassedOver(others)
	if len(inputs) == 0 {
		return nil, nil, errors.New(strings.Join(append([]string{fmt.Sprintf("no images in %q", args)}, passedOver...), "; "))
	}
	return inputs, passedOver, nil
}

// printable returns an error's text with a path in it quoted if need be.
func printable(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok && error(p) == err {
		return fmt.Sprintf("%s %s: %v", p.Op, dataset.Printable(p.Path), p.Err)
	}
	return err.Error()
}

// openSource opens a folder or a zip of images. The returned function closes it.
func openSource(path string, lim dataset.Limits) (*dataset.Source, func(), error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if info.IsDir() {
		src, err := dataset.OpenFolder(path, lim)
		return src, func() {}, err
	}
	file, err := files.OpenRegular(path)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", dataset.Printable(path), err)
	}
	src, err := dataset.OpenZip(file, info.Size(), lim)
	if err != nil {
		file.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return src, func() { file.Close() }, nil
}

// openSources opens folders, zips and single images as one source. The returned
// function closes them.
func openSources(paths []string, lim dataset.Limits) (*dataset.Source, func(), error) {
	var (
		sources []*dataset.Source
		single  []string
		closers []func()
	)
	closeAll := func() {
		for _, c := range closers {
			c()
		}
	}
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && !info.IsDir() && dataset.ImageFile(p) {
			single = append(single, p)
			continue
		}
		src, closer, err := openSource(p, lim)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		sources, closers = append(sources, src), append(closers, closer)
	}
	if len(single) > 0 {
		src, err := dataset.OpenFiles(single, lim)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		sources = append(sources, src)
	}
	src, err := dataset.JoinSources(sources, lim)
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return src, closeAll, nil
}
