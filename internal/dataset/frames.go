package dataset

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/deepmed/anomaly/internal/imagefile"
	"golang.org/x/sync/errgroup"
)

// dicomExtensions are those of DICOM files.
var dicomExtensions = []string{".dcm", ".dicom"}

// MayBeDICOM reports whether a file of images is a DICOM file by its name, or may be one
// by its content.
func MayBeDICOM(name string) bool {
	return slices.Contains(dicomExtensions, strings.ToLower(path.Ext(name))) || classify(name) == unclearFile
}

// expand returns the images with an entry for each frame of the DICOM files of several
// frames. It reads DICOM files, and the first bytes of files that may be DICOM, but decodes
// no pixels: the frames must be counted before the images can be stored.
func (d *Dataset) expand(ctx context.Context, src *Source, images []entry, o Options) ([]entry, error) {
	counts := make([]int, len(images))
	var unpacked atomic.Int64
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(max(o.Workers.Threads, 1))
	for i, e := range images {
		if counts[i] = 1; !MayBeDICOM(e.name) {
			continue
		}
		group.Go(o.Workers.Wrap(func() error {
			if running.Err() != nil {
				return context.Cause(running)
			}
			n, read := countFrames(e, o.Images)
			if n > 1 {
				counts[i] = n
			}
			return src.withinRatio(unpacked.Add(read), o.Limits)
		}))
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	total, files, frames := 0, 0, 0
	for _, n := range counts {
		if total += n; n > 1 {
			files, frames = files+1, frames+n
		}
	}
	if files == 0 {
		return images, nil
	}
	if total > o.Limits.Entries {
		return nil, fmt.Errorf("%w: %d images with all frames of the DICOM files, at most %d are allowed", ErrTooLarge, total, o.Limits.Entries)
	}
	d.Warn("%d of the %d images are frames of %d DICOM files: frames of one file resemble each other, so a false alarm rate is that of frames of such files, and other files may exceed it",
		frames, total, files)
	expanded := make([]entry, 0, total)
	for i, e := range images {
		for k := range counts[i] {
			if counts[i] > 1 {
				e.frame, e.frames = k, counts[i]
			}
			expanded = append(expanded, e)
		}
	}
	return expanded, nil
}

// countFrames returns the number of images in a file that may be DICOM, 0 for a file that
// cannot be read, and the number of bytes that it read.
func countFrames(e entry, o imagefile.Options) (count int, read int64) {
	if classify(e.name) == unclearFile {
		f, err := e.open()
		if err != nil {
			return 0, 0
		}
		head := make([]byte, imagefile.SniffBytes)
		n, _ := io.ReadFull(f, head)
		f.Close()
		if format, _ := imagefile.Sniff(head[:n]); format != imagefile.DICOM {
			return 1, int64(n)
		}
	}
	data, err := e.read(o.MaxBytes)
	if err != nil {
		return 0, 0
	}
	f, err := imagefile.OpenFrames(data, o)
	if err != nil {
		return 0, int64(len(data))
	}
	return f.Len(), int64(len(data))
}

// title returns the name of an image for a user: of a frame, the file's name with the
// frame's number from 1.
func (e entry) title() string {
	if e.frames == 0 {
		return shortened(e.name)
	}
	return fmt.Sprintf("%s#%d", shortened(e.name), e.frame+1)
}

// eachImage calls f for each image that which returns true for, with the content of its file
// and the options to decode it, or the error of reading the file. It reads a file once for
// all its frames, and files concurrently. It returns the first error of f, or the context's
// cause.
func eachImage(ctx context.Context, images []entry, o Options, which func(i int) bool, f func(i int, data []byte, images imagefile.Options, err error) error) error {
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(max(o.Workers.Threads, 1))
	for first := 0; first < len(images); first += max(images[first].frames, 1) {
		var wanted []int
		for i := range max(images[first].frames, 1) {
			if which(first + i) {
				wanted = append(wanted, first+i)
			}
		}
		if wanted == nil {
			continue
		}
		group.Go(o.Workers.Wrap(func() error {
			if running.Err() != nil {
				return context.Cause(running)
			}
			data, frames, err := images[first].frameOptions(o.Images)
			for _, i := range wanted {
				if running.Err() != nil {
					return context.Cause(running)
				}
				options := o.Images
				if err == nil {
					options = frames.Options(images[i].frame)
				}
				if err := f(i, data, options, err); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	err := group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// frameOptions reads a file and opens its images.
func (e entry) frameOptions(o imagefile.Options) ([]byte, *imagefile.Frames, error) {
	data, err := e.read(o.MaxBytes)
	if err != nil {
		return nil, nil, err
	}
	frames, err := imagefile.OpenFrames(data, o)
	switch {
	case err != nil:
	case e.frames > 0 && frames.Len() != e.frames:
		err = fmt.Errorf("it changed while it was read: it had %d frames and has %d", e.frames, frames.Len())
	case e.frames == 0 && frames.Len() > 1:
		err = fmt.Errorf("it is a DICOM file of %d frames with the name of another kind of file: rename it to end with .dcm", frames.Len())
	}
	return data, frames, err
}
