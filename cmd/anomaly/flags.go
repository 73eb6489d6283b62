package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/spf13/cobra"
)

// gcPercent is half of Go's default. A request leaves little garbage: under load the
// heap of a service of 131 MB is 7 MB smaller. The heap of a training is mostly
// images and features, which are kept, so collecting more often costs little.
const gcPercent = 50

// engineFlags are the flags of every command that computes.
type engineFlags struct {
	library  string
	provider string
	threads  int
}

func (f *engineFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.library, "onnxruntime", "", "ONNX Runtime's shared library, a `file` or its folder (default: "+ort.EnvLibrary+", the cache, the system)")
	c.Flags().StringVar(&f.provider, "provider", string(ort.Auto), "execution provider: auto, cpu or cuda")
	c.Flags().IntVar(&f.threads, "threads", 0, "number of compute threads (default: one per processor)")
}

// open opens the engine, and sets gcPercent unless the environment sets GOGC.
func (f *engineFlags) open() (*ort.Engine, error) {
	p, err := ort.ParseProvider(f.provider)
	if err != nil {
		return nil, err
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	return ort.Open(ort.Options{Library: f.library, Provider: p, Threads: f.threads})
}

// preparationFlags are the flags of how a training prepares images.
type preparationFlags struct {
	trainer.Preparation
	region string // a file or boxes
}

func (p *preparationFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&p.Size, "image-size", strconv.Itoa(trainer.DefaultImageSize), fmt.Sprintf("`side` in pixels of the square that images are resized to, or a width and a height such as 512x128: multiples of %d from %d to %d",
		models.DefaultArchitecture().Stride(), trainer.MinImageSize, trainer.MaxImageSize))
	f.StringVar(&p.Fit, "fit", "", "how images of another aspect ratio are brought to that size: squash changes it, pad adds a border that is not judged, crop cuts off two sides (default: squash)")
	f.StringVar(&p.Window, "window", "", "`LO,HI`: the lowest and the highest sample value, which become black and white without a conversion to 8 bits; or off for 8 bits (default: from the images, if all have more than 8 bits)")
	f.StringVar(&p.Tile, "tile", "", fmt.Sprintf("`side` in pixels of the tiles that large images are judged by, at their own scale: a multiple of %d from %d to %d; replaces --image-size (default: none, whole images are resized)",
		models.DefaultArchitecture().Stride(), models.MinTileSide, trainer.MaxImageSize))
	f.StringVar(&p.Overlap, "overlap", "", "`pixels` by which tiles overlap at least, up to half of their side (default: an eighth)")
	f.StringVar(&p.LongestSide, "longest-side", "", "`pixels` that the longest side of images is scaled to before they are cut into tiles (default: their own size)")
	f.StringVar(&p.Statistics, "tiles", "", "reference statistics of tiles: same, for textures, or places, for images of one layout (default: chosen by the images)")
	f.StringVar(&p.region, "roi", "", "image `file` in which the part of all images to learn from and to judge is white, or boxes x,y,width,height as shares of the image with ; between them (default: all)")
}

// of returns the options with the preparation. An image size on the command line counts;
// else it is that of the options' base, if there is one.
func (p *preparationFlags) of(c *cobra.Command, o trainer.Options) (trainer.Options, error) {
	given := p.Preparation
	if !c.Flags().Changed("image-size") {
		given.Size = ""
	}
	if err := p.readRegion(&given); err != nil {
		return o, err
	}
	return o.Prepared(given)
}

// rejectPreparation returns an error if a flag of how images are prepared is given with a
// model, which has a preparation of its own.
func rejectPreparation(c *cobra.Command) error {
	for _, name := range []string{"fit", "window", "tile", "overlap", "longest-side", "tiles", "roi"} {
		if c.Flags().Changed(name) {
			return fmt.Errorf("--%s with --model: the model prepares images as its training did; leave out one of the two", name)
		}
	}
	return nil
}

// readRegion sets the mask or the boxes.
func (p *preparationFlags) readRegion(to *trainer.Preparation) (err error) {
	if p.region == "" {
		return nil
	}
	if _, missing := os.Stat(p.region); missing != nil && strings.Contains(p.region, ",") {
		to.Boxes = p.region
		return nil
	}
	to.Mask, err = files.ReadAtMost(p.region, imagefile.DefaultLimits().MaxBytes)
	return err
}

// addTrainingFlags adds the flags of every command that trains.
func addTrainingFlags(c *cobra.Command, o *trainer.Options, p *preparationFlags) {
	f := c.Flags()
	f.IntVar(&o.Level, "level", trainer.DefaultLevel, "preset, from 1 (fastest) to 5 (most thorough)")
	p.add(c)
	f.Int64Var(&o.Seed, "seed", 0, "random seed; equal seeds make equal models")
	f.DurationVar(&o.MaxTime, "max-time", 0, "time budget of the training, such as 10m: it takes as many of the level's steps as fit (default: unlimited)")
	addFalseAlarmRate(c, o, trainer.DefaultFalseAlarmRate, "")
}

// addFalseAlarmRate adds --false-alarm-rate. remark is added to its help.
func addFalseAlarmRate(c *cobra.Command, o *trainer.Options, value float64, remark string) {
	c.Flags().Float64Var(&o.FalseAlarmRate, "false-alarm-rate", value, "target share of normal images above the threshold, between 0 and 1"+remark)
}

// checkFalseAlarmRate rejects a 0 on the command line, which trainer takes for the
// default.
func checkFalseAlarmRate(c *cobra.Command, o trainer.Options) error {
	if c.Flags().Changed("false-alarm-rate") && o.FalseAlarmRate == 0 {
		return fmt.Errorf("%w: 0, expected a number between 0 and 1", trainer.ErrFalseAlarmRate)
	}
	return nil
}

// settle checks the training flags and fills in defaults. It rejects a 0 on the
// command line, which trainer takes for the default.
func settle(c *cobra.Command, o trainer.Options, p *preparationFlags) (trainer.Options, trainer.Level, error) {
	if c.Flags().Changed("level") && o.Level == 0 {
		_, err := trainer.LevelOf(0)
		return o, trainer.Level{}, err
	}
	o, err := p.of(c, o)
	if err != nil {
		return o, trainer.Level{}, err
	}
	if err := checkFalseAlarmRate(c, o); err != nil {
		return o, trainer.Level{}, err
	}
	return o.Settle()
}

// outputFlags are a flag that names a file to write, and --force.
type outputFlags struct {
	flag, path string
	force      bool
}

func (o *outputFlags) add(c *cobra.Command, flag, value, usage string) {
	o.flag = flag
	c.Flags().StringVar(&o.path, flag, value, usage)
	c.Flags().BoolVar(&o.force, "force", false, "replace an existing file")
}

// check returns an error when the file cannot be written: it is a folder, it exists
// and --force is not set, or its folder is not writable. It accepts an empty path.
func (o *outputFlags) check() error {
	if o.path == "" {
		return nil
	}
	info, err := os.Stat(o.path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("--%s is the folder %s; name a file in it", o.flag, o.path)
	case err == nil && !o.force:
		return fmt.Errorf("%s exists; use --force to replace it", o.path)
	}
	if err := files.CheckWritable(o.path); err != nil {
		return fmt.Errorf("--%s %s cannot be written: %w", o.flag, o.path, err)
	}
	return nil
}

func addJSON(c *cobra.Command, asJSON *bool) {
	c.Flags().BoolVar(asJSON, "json", false, "print JSON")
}
