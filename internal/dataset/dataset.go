package dataset

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/errgroup"
)

// Dataset is the images of a Source, decoded and resized once, kept as bytes.
// It must be closed.
type Dataset struct {
	Side int
	// ClassNames are those of the YAML file; nil where there is none.
	ClassNames []string
	// Skipped are the images that could not be read, and why.
	Skipped []models.SkippedFile
	// Warnings tell what was wrong without stopping anything.
	Warnings []string

	pixels *pixels
	kept   []int // of the images in pixels, those that could be read
}

// Warn adds a warning, formatted as by fmt.Sprintf.
func (d *Dataset) Warn(format string, values ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, values...))
}

// Len is the number of images.
func (d *Dataset) Len() int { return len(d.kept) }

// Image gives image i in the order of the names: side×side×3 bytes, which nobody
// may change. It may lie in the buffer, which is made when it is nil and serves
// one image at a time. It returns ErrStorage, wrapped.
func (d *Dataset) Image(i int, buffer *[]byte) ([]byte, error) {
	return d.pixels.get(d.kept[i], buffer)
}

// Close gives the memory and the temporary file back.
func (d *Dataset) Close() error { return d.pixels.Close() }

// Options say how a Source is read.
type Options struct {
	// Side is the side of the square that images are resized to, in pixels.
	Side int
	// Limits bounds the data set, and Images each of its files.
	Limits Limits
	Images imagefile.Limits
	// TempDir is where images are stored that exceed Limits.MemoryBytes; empty means
	// the system's folder for temporary files.
	TempDir string
	// Workers decode that many images at once.
	Workers workers.Pool
}

// Load reads the images of a source, decodes each and resizes it to
// o.Side×o.Side pixels. It skips images that cannot be read. It returns ErrNoImages
// when none is left, ErrTooLarge when a limit is exceeded, ErrStorage when the
// prepared images cannot be stored, and the context's cause when ctx ends first.
func Load(ctx context.Context, src *Source, o Options) (*Dataset, error) {
	o.Images = o.Images.OrDefault()
	d := &Dataset{Side: o.Side}
	var images []entry
	var yamls []entry
	for _, e := range src.entries {
		if isYAML(e.name) {
			yamls = append(yamls, e)
		} else {
			images = append(images, e)
		}
	}
	if len(images) == 0 {
		return nil, ErrNoImages
	}
	size := d.Side * d.Side * models.InputChannels
	if need := int64(len(images)) * int64(size); need > o.Limits.PreparedBytes {
		return nil, fmt.Errorf("%w: %d images at %d px take %d bytes, at most %d are given; use fewer images or a smaller image size",
			ErrTooLarge, len(images), d.Side, need, o.Limits.PreparedBytes)
	}
	if err := d.readClassNames(ctx, yamls); err != nil {
		return nil, err
	}
	var err error
	if d.pixels, err = newPixels(len(images), size, o.Limits.MemoryBytes, o.TempDir); err != nil {
		return nil, err
	}
	if err := d.prepare(ctx, src, images, o); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// prepare decodes and resizes the images into their places.
func (d *Dataset) prepare(ctx context.Context, src *Source, images []entry, o Options) error {
	reasons := make([]string, len(images))
	var unpacked atomic.Int64
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(max(o.Workers.Threads, 1))
	for i, e := range images {
		group.Go(o.Workers.Wrap(func() error {
			if running.Err() != nil {
				return context.Cause(running)
			}
			data, err := e.read(o.Images.MaxBytes)
			if err == nil {
				if err := src.withinRatio(unpacked.Add(int64(len(data))), o.Limits); err != nil {
					return err
				}
				var prepared []byte
				if prepared, err = imagefile.Prepare(data, d.Side, o.Images); err == nil {
					return d.pixels.put(i, prepared)
				}
			}
			reasons[i] = err.Error()
			return nil
		}))
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	for i, e := range images {
		if reasons[i] == "" {
			d.kept = append(d.kept, i)
		} else {
			d.Skipped = append(d.Skipped, models.SkippedFile{Name: shortened(e.name), Reason: reasons[i]})
		}
	}
	if d.Len() == 0 {
		return fmt.Errorf("%w: none of its %d image files can be read, the first (%s) because %s",
			ErrNoImages, len(d.Skipped), d.Skipped[0].Name, d.Skipped[0].Reason)
	}
	return nil
}

// readClassNames takes the names from the first YAML file that has some, of the
// first maxYAMLFiles. A file that cannot be read is a warning; one that holds other
// things is none. It returns the context's cause when that ends first.
func (d *Dataset) readClassNames(ctx context.Context, yamls []entry) error {
	slices.SortStableFunc(yamls, func(a, b entry) int { return yamlRank(a.name) - yamlRank(b.name) })
	for i, e := range yamls {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i == maxYAMLFiles {
			d.Warn("no class names were looked for in more than %d YAML files of %d", maxYAMLFiles, len(yamls))
			return nil
		}
		data, err := e.read(maxYAMLBytes)
		if err == nil {
			d.ClassNames, err = parseClassNames(data)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, errNoClassNames) || yamlRank(e.name) < 2 {
			d.Warn("no class names were taken from %s: %v", shortened(e.name), err)
		}
	}
	return nil
}

// shortened is a file's name as it is told of: a zip may have names of 64 KiB.
func shortened(name string) string {
	const most = 200
	if len(name) <= most {
		return name
	}
	return strings.ToValidUTF8(name[:most], "") + "…"
}
