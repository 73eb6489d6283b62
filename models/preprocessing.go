package models

import "fmt"

// Preprocessing describes how an image is converted to the network's input, so that
// another runtime can do the same.
type Preprocessing struct {
	ColorMode string  `json:"color_mode"` // "RGB"
	Resize    string  `json:"resize"`     // "pillow-bilinear": antialiased triangle filter
	Scale     float64 `json:"scale"`      // factor on the 8-bit value
	Layout    string  `json:"layout"`     // "NCHW"
	// Orientation is OrientationEXIF if images are turned upright before; empty if
	// their pixels are used as they are stored, as by models of earlier versions.
	Orientation string `json:"orientation,omitempty"`
	// MaxValue is the value of a 16-bit sample that becomes 255, for training images
	// of fewer bits in 16-bit files; 0 means 65535. Larger samples become 255.
	MaxValue int `json:"max_value,omitempty"`
	// Tiles is how the image is cut into tiles, which Resize then does not apply to; nil
	// if the network's input is the whole image.
	Tiles *Tiles `json:"tiles,omitempty"`

	// Width and Height are those of an input that is not square, else 0. The metadata's
	// image_size is 0 then.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	// Fit is FitPad or FitCrop; empty means FitSquash.
	Fit Fit `json:"fit,omitempty"`
	// Window is the range of sample values that becomes 0…1, without a conversion to 8
	// bits; nil if images are converted to 8 bits.
	Window *Window `json:"window,omitempty"`
	// Region is the part of every image that is learned from and judged; nil means all.
	Region *Region `json:"region,omitempty"`
}

// Upright reports whether the orientation in EXIF or XMP is applied.
func (p *Preprocessing) Upright() bool {
	return p != nil && (p.Orientation == OrientationEXIF || p.Orientation == orientationEXIF2)
}

// Masked reports whether parts of the network's input may be neither learned from nor
// judged: the border of FitPad, and what is outside of a region. Such pixels are -1 in the
// network's input.
func (p *Preprocessing) Masked() bool { return p != nil && (p.Fit == FitPad || p.Region != nil) }

// framed reports whether programs before version 2 of the format would prepare images in
// another way.
func (p *Preprocessing) framed() bool {
	return p != nil && (p.Width != 0 || p.Height != 0 || p.Fit != "" || p.Window != nil || p.Region != nil)
}

// FormatVersion returns the version of the metadata format for the preprocessing: the first
// that can express it.
func (p *Preprocessing) FormatVersion() int {
	if p.framed() {
		return FramedFormatVersion
	}
	return FormatVersion
}

// Settle sets the orientation to the value for the format version: programs of before
// version 2 refuse a model whose orientation they do not know, and would otherwise prepare
// its images in a wrong way.
func (p *Preprocessing) Settle() {
	upright := p.Upright()
	switch {
	case p.framed() && upright:
		p.Orientation = orientationEXIF2
	case p.framed():
		p.Orientation = orientationNone2
	case upright:
		p.Orientation = OrientationEXIF
	default:
		p.Orientation = ""
	}
}

// OrientationEXIF means that the orientation in EXIF or XMP is applied, as by Pillow's
// ImageOps.exif_transpose.
const OrientationEXIF = "exif"

// The orientations of version 2 of the format: that of EXIF or XMP is applied, or none is.
const (
	orientationEXIF2 = "exif, format 2"
	orientationNone2 = "none, format 2"
)

// StandardPreprocessing returns the preprocessing of a new model.
func StandardPreprocessing() *Preprocessing {
	return &Preprocessing{
		ColorMode: "RGB", Resize: "pillow-bilinear", Scale: 1.0 / 255, Layout: "NCHW", Orientation: OrientationEXIF,
	}
}

// Input returns the width and height of the network's input, 0×0 if they are not stated.
func (m Metadata) Input() Size {
	if p := m.Preprocessing; m.ImageSize == 0 && p != nil {
		return Size{p.Width, p.Height}
	}
	return Square(m.ImageSize)
}

// Framed reports whether images are prepared in a way that version 1 of the format does not
// have; see FramedFormatVersion.
func (m Metadata) Framed() bool { return m.Preprocessing.framed() }

// InputPreprocessing returns the complete preprocessing of the model: the standard one,
// with the orientation and the largest value that the model was trained with. Both are
// missing in models of earlier versions and of other services.
func (m Metadata) InputPreprocessing() *Preprocessing {
	p := StandardPreprocessing()
	p.Orientation = ""
	if own := m.Preprocessing; own != nil {
		p.Orientation, p.MaxValue = own.Orientation, own.MaxValue
		p.Width, p.Height, p.Fit, p.Window, p.Region = own.Width, own.Height, own.Fit, own.Window, own.Region
		p.Tiles = own.Tiles
	}
	return p
}

// Validate returns ErrMetadata, wrapped, for a preprocessing that this version does not
// support. p may be nil. Metadata.checkTiles validates the tiles.
func (p *Preprocessing) Validate() error {
	if p == nil {
		return nil
	}
	if p.framed() {
		return p.validateFramed()
	}
	if p.Orientation != "" && p.Orientation != OrientationEXIF {
		return fmt.Errorf("%w: preprocessing.orientation is %.60q, expected %q or none", ErrMetadata, p.Orientation, OrientationEXIF)
	}
	if p.MaxValue < 0 || p.MaxValue > 65535 {
		return fmt.Errorf("%w: preprocessing.max_value is %d, expected 1 to 65535 or none", ErrMetadata, p.MaxValue)
	}
	return nil
}

// validateFramed is validate for version 2 of the format.
func (p *Preprocessing) validateFramed() error {
	if p.Orientation != orientationEXIF2 && p.Orientation != orientationNone2 {
		return fmt.Errorf("%w: preprocessing.orientation is %.60q, expected %q or %q", ErrMetadata, p.Orientation, orientationEXIF2, orientationNone2)
	}
	if (p.Width != 0 || p.Height != 0) && (p.Width < 1 || p.Height < 1 || p.Width == p.Height || p.Width > MaxImageSize || p.Height > MaxImageSize) {
		return fmt.Errorf("%w: preprocessing.width and height are %d and %d, expected two different sides of 1 to %d", ErrMetadata, p.Width, p.Height, MaxImageSize)
	}
	if p.Fit != "" && p.Fit != FitPad && p.Fit != FitCrop {
		return fmt.Errorf("%w: preprocessing.fit is %.60q, expected %q, %q or none", ErrMetadata, p.Fit, FitPad, FitCrop)
	}
	if p.Window != nil {
		if err := p.Window.Check(); err != nil {
			return fmt.Errorf("%w: preprocessing: %w", ErrMetadata, err)
		}
	}
	if p.Region != nil {
		if _, err := p.Region.Mask(); err != nil {
			return err
		}
	}
	if p.MaxValue < 0 || p.MaxValue > 65535 {
		return fmt.Errorf("%w: preprocessing.max_value is %d, expected 1 to 65535 or none", ErrMetadata, p.MaxValue)
	}
	return nil
}
