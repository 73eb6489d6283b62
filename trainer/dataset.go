package trainer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/models"
	"golang.org/x/sync/errgroup"
)

// Dataset is the images of a Source, decoded and resized once, kept as bytes.
type Dataset struct {
	// Images are side×side×3 bytes each, in the order of their names.
	Images [][]byte
	Side   int
	// ClassNames are those of the YAML file; nil where there is none.
	ClassNames []string
	// Skipped are the images that could not be read, and why.
	Skipped []models.SkippedFile
	// Warnings tell what was wrong without stopping anything.
	Warnings []string
}

// Load reads the images of a source, each decoded and resized to side×side
// pixels, as many at a time as threads. An image that cannot be read is
// skipped. It returns ErrNoImages when none is left, ErrDatasetTooLarge when a
// limit is exceeded, and the context's cause when that ends first.
func Load(ctx context.Context, src *Source, side, threads int, lim Limits, img inference.ImageLimits) (*Dataset, error) {
	d := &Dataset{Side: side}
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
	if need := int64(len(images)) * int64(side) * int64(side) * models.InputChannels; need > lim.PreparedBytes {
		return nil, fmt.Errorf("%w: %d images at %d px take %d bytes of memory, at most %d are given; use fewer images or a smaller image size",
			ErrDatasetTooLarge, len(images), side, need, lim.PreparedBytes)
	}
	d.readClassNames(yamls)
	prepared := make([][]byte, len(images))
	reasons := make([]string, len(images))
	var unpacked atomic.Int64
	group, running := errgroup.WithContext(ctx)
	group.SetLimit(threads)
	for i, e := range images {
		group.Go(func() error {
			if running.Err() != nil {
				return context.Cause(running)
			}
			data, err := e.read(img.MaxBytes)
			if err == nil {
				if err := src.withinRatio(unpacked.Add(int64(len(data))), lim); err != nil {
					return err
				}
				prepared[i], err = inference.Prepare(data, side, img)
			}
			if err != nil {
				reasons[i] = err.Error()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	for i, e := range images {
		if prepared[i] == nil {
			d.Skipped = append(d.Skipped, models.SkippedFile{Name: e.name, Reason: reasons[i]})
		}
	}
	d.Images = slices.DeleteFunc(prepared, func(p []byte) bool { return p == nil })
	if len(d.Images) == 0 {
		return nil, fmt.Errorf("%w: none of its %d image files can be read, the first (%s) because %s",
			ErrNoImages, len(d.Skipped), d.Skipped[0].Name, d.Skipped[0].Reason)
	}
	return d, nil
}

// readClassNames takes the names from the first YAML file that has some. A
// file that cannot be read is a warning; one that holds other things is none.
func (d *Dataset) readClassNames(yamls []entry) {
	slices.SortStableFunc(yamls, func(a, b entry) int { return yamlRank(a.name) - yamlRank(b.name) })
	for _, e := range yamls {
		data, err := e.read(maxYAMLBytes)
		if err == nil {
			d.ClassNames, err = parseClassNames(data)
		}
		if err == nil {
			return
		}
		if !errors.Is(err, errNoClassNames) || yamlRank(e.name) < 2 {
			d.Warnings = append(d.Warnings, fmt.Sprintf("no class names were taken from %s: %v", e.name, err))
		}
	}
}
