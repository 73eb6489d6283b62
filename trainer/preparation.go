package trainer

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/models"
)

// ErrPreprocessing is returned, wrapped, for a fit, a window or a region that is unusable.
var ErrPreprocessing = errors.New("unusable preparation of images")

// NoWindow is the text of a window for the conversion of all images to 8 bits.
const NoWindow = "off"

// Preparation is how images are prepared, as a user states it. Empty fields mean the
// default.
type Preparation struct {
	// Size is the side of a square, such as "256", or a width and a height, such as
	// "512x128".
	Size string
	// Fit is squash, pad or crop.
	Fit string
	// Window is the lowest and the highest sample value, such as "0,4095", or NoWindow.
	Window string
	// Boxes are the rectangles to learn from and to judge: x,y,width,height as shares of
	// the image from 0 to 1, with semicolons between them.
	Boxes string
	// Mask is an image file, in which the brighter pixels are the part to learn from and
	// to judge. It excludes Boxes.
	Mask []byte

	// Tile is the side of the tiles that images are cut into, such as "256"; it excludes
	// Size. Overlap, LongestSide and Statistics describe them further; see models.Tiles.
	Tile, Overlap, LongestSide, Statistics string
}

// Prepared returns the options with a preparation. It returns ErrImageSize, ErrPreprocessing
// and ErrTiles, wrapped. Settle checks the mask and the boxes, which depend on the size.
func (o Options) Prepared(p Preparation) (Options, error) {
	if p.Size != "" {
		size, err := models.ParseSize(p.Size)
		if err != nil || size.W == 0 || size.H == 0 { // 0 means the default in Options
			return o, fmt.Errorf("%w: %.20q, expected a side such as 256 or a width and a height such as 512x128, multiples of %d from %d to %d",
				ErrImageSize, p.Size, models.DefaultArchitecture().Stride(), MinImageSize, MaxImageSize)
		}
		o.Input, o.ImageSize = size, size.Side()
	}
	if err := o.cutInto(p); err != nil {
		return o, err
	}
	if p.Fit != "" {
		var err error
		if o.Fit, err = models.ParseFit(p.Fit); err != nil {
			return o, fmt.Errorf("%w: fit is %w", ErrPreprocessing, err)
		}
	}
	switch p.Window {
	case "":
	case NoWindow:
		o.EightBits = true
	default:
		var err error
		if o.Window, err = models.ParseWindow(p.Window); err != nil {
			return o, fmt.Errorf("%w: window is %w", ErrPreprocessing, err)
		}
	}
	if p.Boxes != "" && len(p.Mask) > 0 {
		return o, fmt.Errorf("%w: both a mask and boxes of the region to judge, send one of them", ErrPreprocessing)
	}
	o.boxes, o.mask = p.Boxes, p.Mask
	return o, nil
}

// withRegion returns the options with the region of the mask or the boxes, if there are any.
// Its mask has the size of the network's input or, for an image of tiles, which has more
// pixels, the largest.
func (o Options) withRegion() (Options, error) {
	size := o.Input
	if o.Tiles != nil || o.Base != nil && o.Base.Tiles() != nil {
		size = models.Square(MaxImageSize)
	}
	switch {
	case len(o.mask) > 0:
		r, err := imagefile.ReadRegion(o.mask, size, o.Images)
		if err != nil {
			return o, fmt.Errorf("%w: the mask of the region: %w", ErrPreprocessing, err)
		}
		o.Region = r
	case o.boxes != "":
		mask, err := boxMask(o.boxes, size)
		if err != nil {
			return o, fmt.Errorf("%w: %w", ErrPreprocessing, err)
		}
		o.Region = models.NewRegion(size, mask)
	}
	return o, nil
}

// maxBoxes bounds the boxes of a region.
const maxBoxes = 100

// boxMask returns the mask of boxes; see Preparation.Boxes.
func boxMask(text string, size models.Size) ([]bool, error) {
	mask := make([]bool, size.Area())
	boxes := strings.Split(text, ";")
	if len(boxes) > maxBoxes {
		return nil, fmt.Errorf("%d boxes of the region, at most %d are read", len(boxes), maxBoxes)
	}
	for _, box := range boxes {
		var v [4]float64
		parts := strings.Split(box, ",")
		ok := len(parts) == len(v)
		for i := 0; ok && i < len(v); i++ {
			var err error
			v[i], err = strconv.ParseFloat(strings.TrimSpace(parts[i]), 64)
			ok = err == nil && v[i] >= 0 && v[i] <= 1
		}
		if !ok || v[2] == 0 || v[3] == 0 || v[0]+v[2] > 1+1e-9 || v[1]+v[3] > 1+1e-9 {
			return nil, fmt.Errorf("the box %.60q, expected x,y,width,height as shares of the image from 0 to 1, such as 0.1,0.2,0.5,0.5", box)
		}
		for i := range mask {
			x, y := (float64(i%size.W)+0.5)/float64(size.W), (float64(i/size.W)+0.5)/float64(size.H)
			mask[i] = mask[i] || x >= v[0] && x < v[0]+v[2] && y >= v[1] && y < v[1]+v[3]
		}
	}
	if !slices.Contains(mask, true) {
		return nil, fmt.Errorf("the boxes have no centre of a pixel of the %v that images are resized to: make them larger", size)
	}
	return mask, nil
}

// checkPreprocessing returns ErrPreprocessing, wrapped, for an unusable fit, window or region.
func (o Options) checkPreprocessing() error {
	if err := o.preprocessing(true).Validate(); err != nil {
		return fmt.Errorf("%w: %s", ErrPreprocessing, detail(err, models.ErrMetadata))
	}
	return nil
}

// preprocessing returns the preprocessing of a model trained with the options.
func (o Options) preprocessing(upright bool) *models.Preprocessing {
	p := models.StandardPreprocessing()
	if !upright {
		p.Orientation = "" // A base of an earlier version has none.
	}
	if o.ImageSize == 0 {
		p.Width, p.Height = o.Input.W, o.Input.H
	}
	p.Fit, p.Window, p.Region = o.recordedFit(), o.Window, o.Region
	p.Settle()
	return p
}

// recordedFit returns the fit as metadata have it: empty for FitSquash. Options keep
// FitSquash, so that settling them again does not take the fit of the base instead.
func (o Options) recordedFit() models.Fit {
	if o.Fit == models.FitSquash {
		return ""
	}
	return o.Fit
}
