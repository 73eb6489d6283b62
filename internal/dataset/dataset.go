package dataset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// Dataset holds the images of a Source as pixels, decoded and resized. It must be
// closed.
type Dataset struct {
	// Layout is the size of the images and how their bytes are laid out.
	Layout imagefile.Layout
	// Upright reports whether the EXIF orientation was applied, and MaxValue is the
	// value of a 16-bit sample that became 255.
	Upright  bool
	MaxValue int
	// Fit, Window and Region are those of the images; see imagefile.Options.
	Fit    models.Fit
	Window *models.Window
	Region *models.Region
	// ClassNames are the names in the YAML file; nil if there are none.
	ClassNames []string
	// Skipped are the images that could not be read.
	Skipped []models.SkippedFile
	// Warnings describe problems that are not errors.
	Warnings []string

	pixels *pixels
	kept   []int // indexes in pixels of the images that could be read
	deep   bool  // some images have 16-bit samples
	tiled  []Tiled
}

// Warn adds a warning, formatted as by fmt.Sprintf.
func (d *Dataset) Warn(format string, values ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, values...))
}

// Len returns the number of images that could be read.
func (d *Dataset) Len() int { return len(d.kept) }

// Image returns image i, in the order of the files' names, in the data set's layout. The
// caller must not change them. An image on disk is read into the buffer, which Image
// allocates if it is nil; the image is then valid until the next call with the same
// buffer. Image returns ErrStorage, wrapped, if the image cannot be read from disk.
func (d *Dataset) Image(i int, buffer *[]byte) ([]byte, error) {
	return d.pixels.get(d.kept[i], buffer)
}

// PreparedAs reports whether the images are what they would be with p.
func (d *Dataset) PreparedAs(p *models.Preprocessing) bool {
	o := imagefile.OptionsFor(p, imagefile.Limits{})
	return d.Upright == o.Upright && (!d.deep || d.MaxValue == cmp.Or(o.MaxValue, imagefile.DefaultMaxValue)) &&
		d.Fit == o.Fit && reflect.DeepEqual(d.Window, o.Window) && reflect.DeepEqual(d.Region, o.Region)
}

// Close releases the memory and the temporary file.
func (d *Dataset) Close() error { return d.pixels.Close() }

// Options of Load.
type Options struct {
	// Size is the size in pixels that images are resized to.
	Size models.Size
	// Limits bounds the data set, and Images each of its files.
	Limits Limits
	// Images is how its files are decoded. If Images.MaxValue is 0, Load computes the
	// value from the largest 16-bit sample of all images.
	Images imagefile.Options
	// KeepDepth chooses a window, if Images has none and all images have more than 8 bits
	// per sample.
	KeepDepth bool
	// TempDir is the folder for images beyond Limits.MemoryBytes; empty means the
	// system's folder for temporary files.
	TempDir string
	// Tiles is how images are cut into tiles of Side×Side pixels, each of which becomes an
	// image of the data set; nil means that whole images are resized.
	Tiles *models.Tiles
	// Workers decode images concurrently.
	Workers workers.Pool
}

// Load decodes the images of a source and resizes them to o.Size. It skips
// images that cannot be read. It returns ErrNoImages if no image is left, ErrTooLarge if
// a limit is exceeded, ErrStorage if the prepared images cannot be stored, and the
// context's cause if ctx ends.
func Load(ctx context.Context, src *Source, o Options) (*Dataset, error) {
	o.Images.Limits = o.Images.OrDefault()
	d := &Dataset{Layout: o.Images.Layout(o.Size), Upright: o.Images.Upright, Fit: o.Images.Fit, Window: o.Images.Window, Region: o.Images.Region}
	images, yamls, err := d.candidates(src)
	if err != nil {
		return nil, err
	}
	if images, err = d.expand(ctx, src, images, o); err != nil {
		return nil, err
	}
	if o.Tiles != nil {
		if err := d.readClassNames(ctx, yamls); err != nil {
			return nil, err
		}
		size := d.Layout.Bytes()
		slots := int(o.Limits.PreparedBytes / int64(size))
		if d.pixels, err = newPixels(slots, size, o.Limits.MemoryBytes, o.TempDir); err != nil {
			return nil, err
		}
		if err := d.loadTiles(ctx, src, images, slots, o); err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.sortSkipped()
		return d, nil
	}
	if err := d.checkBytes(len(images), o.Limits); err != nil {
		return nil, err
	}
	if err := d.readClassNames(ctx, yamls); err != nil {
		return nil, err
	}
	if d.pixels, err = newPixels(len(images), d.Layout.Bytes(), o.Limits.MemoryBytes, o.TempDir); err != nil {
		return nil, err
	}
	if err := d.prepare(ctx, src, images, o); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// checkBytes returns ErrTooLarge, wrapped, if that number of images takes too many bytes.
func (d *Dataset) checkBytes(images int, lim Limits) error {
	if need := int64(images) * int64(d.Layout.Bytes()); need > lim.PreparedBytes {
		of := fmt.Sprint(d.Layout.Size)
		if side := d.Layout.Side(); side > 0 {
			of = fmt.Sprint(side)
		}
		return fmt.Errorf("%w: %d images at %s px take %d bytes, at most %d are allowed; use fewer images or a smaller image size",
			ErrTooLarge, images, of, need, lim.PreparedBytes)
	}
	return nil
}

// Check returns ErrNoImages, wrapped with what the source has instead, if none of its files
// can be an image. It reads no file.
func (s *Source) Check() error {
	_, _, err := new(Dataset).candidates(s)
	return err
}

// candidates returns the images and the YAML files of a source. It sets the warnings of the
// source, and the files that are skipped without reading them. It returns ErrNoImages,
// wrapped, if there is no image.
func (d *Dataset) candidates(src *Source) (images, yamls []entry, err error) {
	d.Warnings = slices.Concat(src.warnings, grouped(src.passedOver, 1))
	for _, e := range src.entries {
		switch {
		case e.yaml:
			yamls = append(yamls, e)
		case e.refusal != "":
			d.Skipped = append(d.Skipped, models.SkippedFile{Name: shortened(e.name), Reason: e.refusal})
		default:
			images = append(images, e)
		}
	}
	if len(images) == 0 {
		return nil, nil, d.noImages()
	}
	return images, yamls, nil
}

// prepare decodes and resizes the images. If the scale of 16-bit samples is not given, it
// decodes those images again when they need another scale than the default.
func (d *Dataset) prepare(ctx context.Context, src *Source, images []entry, o Options) error {
	reasons := make([]string, len(images))
	deep := make([]bool, len(images))
	var window windowFinder
	if o.KeepDepth && o.Images.Window == nil {
		o.Images.Probe, window.images = true, make([]probed, len(images))
	}
	var unpacked, largest, shallow atomic.Int64
	all := func(int) bool { return true }
	err := eachImage(ctx, images, o, all, func(i int, data []byte, options imagefile.Options, err error) error {
		if images[i].frame == 0 {
			if err := src.withinRatio(unpacked.Add(int64(len(data))), o.Limits); err != nil {
				return err
			}
		}
		if err == nil {
			var p *imagefile.Prepared
			if p, err = imagefile.PrepareSized(data, d.Layout.Size, options); err == nil {
				deep[i] = p.Largest > 0
				if p.Shallow {
					shallow.Add(1)
				}
				window.add(i, p)
				raise(&largest, int64(p.Largest))
				return d.pixels.put(i, p.Pix)
			}
		}
		reasons[i] = err.Error()
		return nil
	})
	if err != nil {
		return err
	}
	d.deep = largest.Load() > 0
	if n := shallow.Load(); n > 0 {
		d.Warn("%d of the %d images have 8 bits per sample and the window is %g to %g: give a window of their values, or leave out images of another depth",
			n, len(images), d.Window[0], d.Window[1])
	}
	if found := window.find(); found != nil {
		if err := d.deepen(ctx, images, reasons, found, o); err != nil {
			return err
		}
		d.MaxValue = imagefile.DefaultMaxValue
	} else if window.floating(reasons) && d.Window == nil {
		d.Warn("some images have floating-point samples and others have 8 bits: give the window of sample values to use both")
	}
	if d.Window != nil {
		d.MaxValue = imagefile.DefaultMaxValue
	} else if d.MaxValue = o.Images.MaxValue; d.MaxValue == 0 {
		d.MaxValue = imagefile.MaxValueFor(int(largest.Load()))
		if err := d.rescale(ctx, images, deep, o); err != nil {
			return err
		}
	}
	for i, e := range images {
		if reasons[i] == "" {
			d.kept = append(d.kept, i)
		} else {
			d.Skipped = append(d.Skipped, models.SkippedFile{Name: e.title(), Reason: reasons[i]})
		}
	}
	if d.Len() == 0 {
		return d.noImages()
	}
	d.sortSkipped()
	return nil
}

func (d *Dataset) sortSkipped() {
	slices.SortStableFunc(d.Skipped, func(a, b models.SkippedFile) int { return strings.Compare(a.Name, b.Name) })
}

// noImages returns ErrNoImages, wrapped with what the data set has instead.
func (d *Dataset) noImages() error {
	switch {
	case len(d.Skipped) > 0:
		return fmt.Errorf("%w: none of its %d image files can be read, the first (%s) because %s",
			ErrNoImages, len(d.Skipped), d.Skipped[0].Name, d.Skipped[0].Reason)
	case len(d.Warnings) > 0:
		return fmt.Errorf("%w: %s", ErrNoImages, d.Warnings[0])
	}
	return ErrNoImages
}

// rescale decodes the images of 16-bit samples again with the scale MaxValue, unless
// that is the default.
func (d *Dataset) rescale(ctx context.Context, images []entry, deep []bool, o Options) error {
	if d.MaxValue == imagefile.DefaultMaxValue {
		return nil
	}
	o.Images.MaxValue = d.MaxValue
	return d.again(ctx, images, deep, o)
}

// again decodes images again.
func (d *Dataset) again(ctx context.Context, images []entry, which []bool, o Options) error {
	o.Images.Probe = false
	wanted := func(i int) bool { return which[i] }
	return eachImage(ctx, images, o, wanted, func(i int, data []byte, options imagefile.Options, err error) error {
		var prepared []byte
		if err == nil {
			prepared, err = imagefile.Prepare(data, d.Layout.Size, options)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", images[i].title(), err)
		}
		return d.pixels.put(i, prepared)
	})
}

// raise sets v to at least value.
func raise(v *atomic.Int64, value int64) {
	for old := v.Load(); old < value && !v.CompareAndSwap(old, value); {
		old = v.Load()
	}
}

// readClassNames reads the class names from the first YAML file with names, of the first
// maxYAMLFiles. A file that cannot be parsed adds a warning; a file with other content
// does not, unless it is a data.yaml or classes.yaml. readClassNames returns the
// context's cause if ctx ends.
func (d *Dataset) readClassNames(ctx context.Context, yamls []entry) error {
	slices.SortStableFunc(yamls, func(a, b entry) int { return yamlRank(a.name) - yamlRank(b.name) })
	for i, e := range yamls {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if i == maxYAMLFiles {
			d.Warn("only the first %d of %d YAML files were searched for class names", maxYAMLFiles, len(yamls))
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
			d.Warn("no class names read from %s: %v", shortened(e.name), err)
		}
	}
	return nil
}
