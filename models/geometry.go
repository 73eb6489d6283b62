package models

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a width and a height, in pixels or patches.
type Size struct{ W, H int }

// Square returns the size of a square.
func Square(side int) Size { return Size{side, side} }

// IsSquare reports whether width and height are equal.
func (s Size) IsSquare() bool { return s.W == s.H }

// Area returns width times height.
func (s Size) Area() int { return s.W * s.H }

// Side returns the side of a square, and 0 for any other size.
func (s Size) Side() int {
	if s.IsSquare() {
		return s.W
	}
	return 0
}

// String returns the size in the form "512×128".
func (s Size) String() string { return fmt.Sprintf("%d×%d", s.W, s.H) }

// ParseSize parses the side of a square, such as "256", or a width and a height, such as
// "512x128".
func ParseSize(text string) (Size, error) {
	w, h, oblong := strings.Cut(strings.ReplaceAll(strings.ToLower(text), "×", "x"), "x")
	if !oblong {
		h = w
	}
	var s Size
	for _, side := range []struct {
		text string
		to   *int
	}{{w, &s.W}, {h, &s.H}} {
		n, err := strconv.Atoi(strings.TrimSpace(side.text))
		if err != nil {
			return Size{}, fmt.Errorf("%.20q, expected a side such as 256 or a width and a height such as 512x128", text)
		}
		*side.to = n
	}
	return s, nil
}

// Fit is how an image is brought to the input's width and height.
type Fit string

// The fits. FitSquash changes the aspect ratio. FitPad keeps it, and adds a border on two
// sides, which is neither learned from nor judged. FitCrop keeps it, and cuts off what does
// not fit on two sides.
const (
	FitSquash Fit = "squash"
	FitPad    Fit = "pad"
	FitCrop   Fit = "crop"
)

// ParseFit returns the fit of that name; "" means FitSquash.
func ParseFit(text string) (Fit, error) {
	switch f := Fit(text); f {
	case "":
		return FitSquash, nil
	case FitSquash, FitPad, FitCrop:
		return f, nil
	}
	return "", fmt.Errorf("%.20q, expected squash, pad or crop", text)
}

// Box is a rectangle in pixels. Min is inside, Max outside.
type Box struct{ X0, Y0, X1, Y1 int }

// Size returns the box's width and height.
func (b Box) Size() Size { return Size{b.X1 - b.X0, b.Y1 - b.Y0} }

// Frame describes how an image is placed in the network's input: the part From of the
// image is resized to the part To of the input. Either is whole for every fit.
type Frame struct {
	// Input is the size of the input, Whole that of the image.
	Input, Whole Size
	From, To     Box
}

// FrameOf returns the frame of an image of width×height pixels. Without a fit it is that of
// FitSquash.
func FrameOf(input Size, fit Fit, width, height int) Frame {
	f := Frame{Input: input, Whole: Size{width, height}, From: Box{0, 0, width, height}, To: Box{0, 0, input.W, input.H}}
	// Products of at most 65535·4096: no overflow. Rounded to the nearest.
	scaled := func(a, times, by, limit int) int { return min(limit, max((a*times+by/2)/by, 1)) }
	switch fit {
	case FitPad:
		w, h := scaled(width, input.H, height, input.W), scaled(height, input.W, width, input.H)
		f.To.X0, f.To.Y0 = (input.W-w)/2, (input.H-h)/2
		f.To.X1, f.To.Y1 = f.To.X0+w, f.To.Y0+h
	case FitCrop:
		w, h := scaled(height, input.W, input.H, width), scaled(width, input.H, input.W, height)
		f.From.X0, f.From.Y0 = (width-w)/2, (height-h)/2
		f.From.X1, f.From.Y1 = f.From.X0+w, f.From.Y0+h
	}
	return f
}

// Original returns the smallest box of whole pixels of the image that covers a box of the
// input.
func (f Frame) Original(b Box) Box {
	axis := func(from0, from1, to0, to1, b0, b1 int) (int, int) {
		b0, b1 = min(max(b0, to0), to1)-to0, min(max(b1, to0), to1)-to0
		n, m := from1-from0, to1-to0
		return from0 + b0*n/m, from0 + (b1*n+m-1)/m
	}
	var out Box
	out.X0, out.X1 = axis(f.From.X0, f.From.X1, f.To.X0, f.To.X1, b.X0, b.X1)
	out.Y0, out.Y1 = axis(f.From.Y0, f.From.Y1, f.To.Y0, f.To.Y1, b.Y0, b.Y1)
	return out
}

// At returns the pixel of the input at the centre of a pixel of the image, as its index in
// rows, and reports whether the input has that pixel of the image.
func (f Frame) At(x, y int) (int, bool) {
	if x < f.From.X0 || x >= f.From.X1 || y < f.From.Y0 || y >= f.From.Y1 {
		return 0, false
	}
	from, to := f.From.Size(), f.To.Size()
	column := f.To.X0 + (2*(x-f.From.X0)+1)*to.W/(2*from.W)
	row := f.To.Y0 + (2*(y-f.From.Y0)+1)*to.H/(2*from.H)
	return row*f.Input.W + column, true
}

// Window is the range of sample values that becomes 0…1, the lowest value first. Values
// outside become 0 or 1. Sample values are those of the decoded file: 0 to 255 for 8 bits, 0
// to 65535 for 16 bits and any number for floating point. For DICOM of more than 8 bits they
// are 0 to 65535 after the file's own window or look-up tables, not Hounsfield units or other
// modality values; see docs/dicom.md.
type Window [2]float64

// ParseWindow parses two numbers with a comma between them, such as "-1000,400".
func ParseWindow(text string) (*Window, error) {
	low, high, ok := strings.Cut(text, ",")
	var w Window
	if ok {
		for i, part := range []string{low, high} {
			v, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
			if err != nil {
				ok = false
			}
			w[i] = v
		}
	}
	if !ok {
		return nil, fmt.Errorf("%.40q, expected the lowest and the highest value, such as 0,4095", text)
	}
	if err := w.Check(); err != nil {
		return nil, err
	}
	return &w, nil
}

// maxWindow bounds the values of a window. Differences and ratios of such numbers are
// finite in float32.
const maxWindow = 1e15

// Check returns an error unless the window has two numbers, the lower first, that differ in
// float32 and are at most 1e15.
func (w Window) Check() error {
	if !(math.Abs(w[0]) <= maxWindow && math.Abs(w[1]) <= maxWindow && w[1]-w[0] >= 1e-15 && float32(w[0]) < float32(w[1])) {
		return fmt.Errorf("window %v to %v, expected two numbers of at most %g that differ in float32, the lower first", w[0], w[1], float64(maxWindow))
	}
	return nil
}

// maxRegionRuns bounds the text of a region, in bytes.
const maxRegionRuns = 1 << 20

// Region is the part of every image that is learned from and judged: a mask of
// Width×Height, stretched over the image.
type Region struct {
	Width  int `json:"width"`
	Height int `json:"height"`
	// Runs are the lengths of runs of pixels, row by row, in decimal with spaces between
	// them: outside of the region, inside, outside and so on. The first may be 0.
	Runs string `json:"runs"`
}

// NewRegion returns the region of a mask of size.W×size.H.
func NewRegion(size Size, mask []bool) *Region {
	var b strings.Builder
	at, run := false, 0
	flush := func() {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(strconv.Itoa(run))
	}
	for _, in := range mask {
		if in != at {
			flush()
			at, run = in, 0
		}
		run++
	}
	flush()
	return &Region{Width: size.W, Height: size.H, Runs: b.String()}
}

// Mask returns the mask, Width×Height values. It returns ErrMetadata, wrapped, for a
// region without pixels, a size above MaxImageSize, and runs that do not fit the size.
func (r *Region) Mask() ([]bool, error) {
	if r.Width < 1 || r.Height < 1 || r.Width > MaxImageSize || r.Height > MaxImageSize || len(r.Runs) > maxRegionRuns {
		return nil, fmt.Errorf("%w: a region of %d×%d pixels in %d bytes, expected sides of 1 to %d and at most %d bytes",
			ErrMetadata, r.Width, r.Height, len(r.Runs), MaxImageSize, maxRegionRuns)
	}
	mask := make([]bool, r.Width*r.Height)
	at, inside, any := 0, false, false
	for text := range strings.FieldsSeq(r.Runs) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > len(mask)-at {
			return nil, fmt.Errorf("%w: the run %.20q of the region, expected at most %d pixels", ErrMetadata, text, len(mask)-at)
		}
		if inside {
			for i := range mask[at : at+n] {
				mask[at+i] = true
			}
			any = any || n > 0
		}
		at, inside = at+n, !inside
	}
	if at != len(mask) || !any {
		return nil, fmt.Errorf("%w: the runs of the region have %d pixels, some of which must be inside, expected %d", ErrMetadata, at, len(mask))
	}
	return mask, nil
}

// Share returns the share of the image that is inside, 0 for an invalid region.
func (r *Region) Share() float64 {
	mask, err := r.Mask()
	if err != nil {
		return 0
	}
	n := 0
	for _, in := range mask {
		if in {
			n++
		}
	}
	return float64(n) / float64(len(mask))
}

// Place returns the mask of the input's pixels that are judged, for an image in that frame:
// those inside of f.To and, unless r is nil, of the region, whose mask is given. A pixel
// takes the value of the mask at its centre.
func (r *Region) Place(f Frame, mask []bool) []bool {
	out := make([]bool, f.Input.Area())
	to, from := f.To.Size(), f.From.Size()
	columns := make([]int, to.W)
	if r != nil {
		for x := range columns {
			columns[x] = centre(f.From.X0, from.W, x, to.W, f.Whole.W, r.Width)
		}
	}
	for y := range to.H {
		row := out[(f.To.Y0+y)*f.Input.W+f.To.X0:][:to.W]
		if r == nil {
			for x := range row {
				row[x] = true
			}
			continue
		}
		line := mask[centre(f.From.Y0, from.H, y, to.H, f.Whole.H, r.Height)*r.Width:][:r.Width]
		for x := range row {
			row[x] = line[columns[x]]
		}
	}
	return out
}

// centre returns the pixel of a mask of n pixels, stretched over `whole` pixels, that
// contains the centre of pixel i of `to` pixels, onto which the `from` pixels of the whole
// from first on are mapped. It computes with integers, so that every program gets the same.
func centre(first, from, i, to, whole, n int) int {
	// (first + (i+½)·from/to)/whole·n
	numerator := (int64(2*to)*int64(first) + int64(2*i+1)*int64(from)) * int64(n)
	return min(int(numerator/(int64(2*to)*int64(whole))), n-1)
}
