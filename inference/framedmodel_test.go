package inference

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"math"
	"slices"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// leftHalf returns a region: the left half of a size, without its upper quarter.
func leftHalf(size models.Size) *models.Region {
	mask := make([]bool, size.Area())
	for i := range mask {
		mask[i] = i%size.W < size.W/2 && i/size.W >= size.H/4
	}
	return models.NewRegion(size, mask)
}

// framedModel returns a small model of that size and preprocessing.
func framedModel(t testing.TB, heads bool, size models.Size, p models.Preprocessing) *models.Model {
	t.Helper()
	p.Orientation = models.OrientationEXIF
	if !size.IsSquare() {
		p.Width, p.Height = size.W, size.H
	}
	p.Settle()
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	return patchModelOf(heads, size, &p)
}

// wave returns the value of a test image at a pixel, 0…1.
func wave(x, y, c int) float64 {
	return 0.5 + 0.4*math.Sin(float64(x+3*c)/9)*math.Cos(float64(y)/7)
}

// waves returns a PNG of that size and depth, and its samples.
func waves(t testing.TB, w, h int, deep bool) (file []byte, samples []float32) {
	t.Helper()
	shallow, whole := image.NewNRGBA(image.Rect(0, 0, w, h)), image.NewNRGBA64(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			var v [3]uint16
			for c := range v {
				if v[c] = uint16(wave(x, y, c) * 255); deep {
					v[c] = uint16(wave(x, y, c) * 4095)
				}
				samples = append(samples, float32(v[c]))
			}
			shallow.SetNRGBA(x, y, color.NRGBA{uint8(v[0]), uint8(v[1]), uint8(v[2]), 255})
			whole.SetNRGBA64(x, y, color.NRGBA64{v[0], v[1], v[2], 0xffff})
		}
	}
	var m image.Image = shallow
	if deep {
		m = whole
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), samples
}

func TestFramedModel_HasTheSameScoresInEveryFormat(t *testing.T) {
	oblong, square := models.Size{W: 64, H: 32}, models.Square(32)
	for name, c := range map[string]struct {
		size models.Size
		p    models.Preprocessing
	}{
		"oblong":                     {oblong, models.Preprocessing{}},
		"upright oblong":             {models.Size{W: 48, H: 80}, models.Preprocessing{}},
		"padded":                     {square, models.Preprocessing{Fit: models.FitPad}},
		"padded oblong":              {oblong, models.Preprocessing{Fit: models.FitPad}},
		"cropped":                    {oblong, models.Preprocessing{Fit: models.FitCrop}},
		"region":                     {square, models.Preprocessing{Region: leftHalf(square)}},
		"region of another size":     {oblong, models.Preprocessing{Region: leftHalf(models.Size{W: 31, H: 47})}},
		"padded region":              {oblong, models.Preprocessing{Fit: models.FitPad, Region: leftHalf(oblong)}},
		"cropped region":             {models.Size{W: 48, H: 32}, models.Preprocessing{Fit: models.FitCrop, Region: leftHalf(square)}},
		"window":                     {square, models.Preprocessing{Window: &models.Window{100, 3000}}},
		"padded region and a window": {models.Size{W: 48, H: 64}, models.Preprocessing{Fit: models.FitPad, Region: leftHalf(square), Window: &models.Window{-100, 5000}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := framedModel(t, true, c.size, c.p)
			served, exported := servedAndExported(t, m)
			graph := newImageModel(t, m)
			for _, of := range [][2]int{{64, 32}, {90, 31}, {31, 90}, {7, 9}} {
				w, h := of[0], of[1]
				for _, deep := range []bool{false, c.p.Window != nil} {
					file, samples := waves(t, w, h, deep)
					want, err := served.Detect(t.Context(), file, nil, imagefile.DefaultLimits())
					if err != nil {
						t.Fatal(err)
					}
					got, err := exported.Detect(t.Context(), file, nil, imagefile.DefaultLimits())
					if err != nil || relativeDifference(got.ReconstructionError, want.ReconstructionError) > 1e-5 || relativeDifference(got.MSE, want.MSE) > 1e-5 {
						t.Errorf("%v: %+v, exported %+v, %v", of, want, got, err)
					}
					score, anomaly, perPixel := 0.0, false, []float32(nil)
					if c.p.Window != nil {
						score, anomaly, perPixel = runImage(t, graph, w, h, samples)
					} else {
						bytes := make([]byte, len(samples))
						for i, v := range samples {
							bytes[i] = byte(v)
						}
						score, anomaly, perPixel = runImage(t, graph, w, h, bytes)
					}
					if relativeDifference(score, want.ReconstructionError) > resizeTolerance || anomaly != (score > 1.5) {
						t.Errorf("%v: %v and %v of the image model, %v of Detect", of, score, anomaly, want.ReconstructionError)
					}
					prepared, err := imagefile.PrepareSized(file, c.size, served.ImageOptions(ImageLimits{}))
					if err != nil {
						t.Fatal(err)
					}
					values, _, err := served.Map(t.Context(), prepared.Pix)
					if err != nil || len(values) != len(perPixel) {
						t.Fatalf("%v: a map of %d values, %v", of, len(values), err)
					}
					mask := served.Layout().Mask(prepared.Pix)
					for k, v := range values {
						if math.Abs(float64(v-perPixel[k])) > 1e-2*max(1, math.Abs(float64(v))) {
							t.Fatalf("%v: pixel %d is %v in the map, %v in the image model's", of, k, v, perPixel[k])
						}
						if mask != nil && (mask[k] == 0) != (v == 0) {
							t.Fatalf("%v: pixel %d is %v in the map, and judged is %d", of, k, v, mask[k])
						}
					}
				}
			}
		})
	}
}

// An image of 8 bits is probably not what a window of more bits is for.
func TestFramedModel_WarnsOfAnImageOfFewerBits(t *testing.T) {
	size := models.Square(32)
	d, err := NewDetector(orttest.Open(t), framedModel(t, false, size, models.Preprocessing{Window: &models.Window{100, 3000}}), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, deep := range []bool{false, true} {
		file, _ := waves(t, 40, 40, deep)
		v, err := d.Detect(t.Context(), file, nil, ImageLimits{})
		if err != nil || (len(v.Warnings) > 0) == deep {
			t.Errorf("16 bits %v: warnings %q, %v", deep, v.Warnings, err)
		}
	}
}

// A mask that has all pixels must not change anything.
func TestFramedModel_ScoresAWholeRegionLikeNoRegion(t *testing.T) {
	size := models.Size{W: 48, H: 32}
	all := slices.Repeat([]bool{true}, size.Area())
	var scores [2]Verdict
	for i, region := range []*models.Region{nil, models.NewRegion(size, all)} {
		d, err := NewDetector(orttest.Open(t), framedModel(t, true, size, models.Preprocessing{Region: region}), 1)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		file, _ := waves(t, 70, 60, false)
		if scores[i], err = d.Detect(t.Context(), file, nil, ImageLimits{}); err != nil {
			t.Fatal(err)
		}
	}
	a, b := scores[0], scores[1]
	if relativeDifference(a.ReconstructionError, b.ReconstructionError) > 1e-5 || relativeDifference(a.MSE, b.MSE) > 1e-5 {
		t.Errorf("%v and %v without a region, %v and %v with a region of all pixels", a.ReconstructionError, a.MSE, b.ReconstructionError, b.MSE)
	}
}

func TestFramedModel_IgnoresWhatIsOutsideOfTheRegion(t *testing.T) {
	size := models.Square(32)
	d, err := NewDetector(orttest.Open(t), framedModel(t, true, size, models.Preprocessing{Region: leftHalf(size)}), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	score := func(x, y int) (Verdict, *Explanation) {
		m := image.NewGray(image.Rect(0, 0, 320, 320))
		for i := range m.Pix {
			m.Pix[i] = uint8(255 * wave(i%320, i/320, 0))
		}
		for i := range 40 * 40 {
			m.SetGray(x+i%40, y+i/40, color.Gray{Y: 255})
		}
		var b bytes.Buffer
		if err := png.Encode(&b, m); err != nil {
			t.Fatal(err)
		}
		v, err := d.Detect(t.Context(), b.Bytes(), nil, ImageLimits{})
		if err != nil {
			t.Fatal(err)
		}
		e, err := d.Explain(t.Context(), b.Bytes(), nil, ImageLimits{})
		if err != nil {
			t.Fatal(err)
		}
		return v, e
	}
	outside, e := score(260, 200)
	above, _ := score(40, 10)
	inside, _ := score(40, 200)
	if outside.ReconstructionError != above.ReconstructionError || outside.MSE != above.MSE {
		t.Errorf("defects outside change the score: %v and %v", outside, above)
	}
	if inside.ReconstructionError == outside.ReconstructionError || inside.MSE == outside.MSE {
		t.Error("a defect inside does not change the score")
	}
	for _, r := range e.Regions {
		if r.X+r.Width > 160 || r.Y < 80 {
			t.Errorf("a region outside: %+v", r)
		}
	}
	heat, err := png.Decode(bytes.NewReader(e.Heatmap))
	if err != nil || heat.Bounds().Dx() != 320 || heat.Bounds().Dy() != 320 {
		t.Fatalf("a heatmap of %v, %v", heat.Bounds(), err)
	}
	// Outside, it is the image in grey.
	for _, p := range []image.Point{{300, 300}, {170, 100}, {10, 70}} {
		r, g, b, _ := heat.At(p.X, p.Y).RGBA()
		if want := uint32(255 * wave(p.X, p.Y, 0)); r != g || g != b || r>>8 != want {
			t.Errorf("the heatmap has %d, %d, %d at %v, the image %d", r>>8, g>>8, b>>8, p, want)
		}
	}
}

// The border of a padded image is not judged, wherever it is.
func TestFramedModel_ReturnsBoxesInTheOriginalImage(t *testing.T) {
	for _, fit := range []models.Fit{"", models.FitPad, models.FitCrop} {
		for _, of := range [][2]int{{1000, 200}, {200, 1000}, {640, 320}} {
			w, h := of[0], of[1]
			f := models.FrameOf(models.Size{W: 64, H: 32}, fit, w, h)
			values := make([]float32, f.Input.Area())
			x, y := w/2, h/2
			at, ok := f.At(x, y)
			if !ok {
				t.Fatalf("%s, %v: the middle is not in the input", fit, of)
			}
			values[at] = 2
			boxes := regions(values, f, 1)
			if len(boxes) != 1 {
				t.Fatalf("%s, %v: %v", fit, of, boxes)
			}
			b := boxes[0]
			step := max(float64(f.From.Size().W)/float64(f.To.Size().W), float64(f.From.Size().H)/float64(f.To.Size().H), 1) + 1
			if x < b.X || x >= b.X+b.Width || y < b.Y || y >= b.Y+b.Height || float64(max(b.Width, b.Height)) > step {
				t.Errorf("%s, %v: the pixel %d, %d is in %+v", fit, of, x, y, b)
			}
			size := heatmapSize(w, h)
			over := spread(values, f, size)
			if v := slices.Max(over); v <= 0 || over[y*size.W+x] < v/4 {
				t.Errorf("%s, %v: the map over the image is %v at the pixel, %v at most", fit, of, over[y*size.W+x], v)
			}
		}
	}
}

// A sample that is not a number is the lowest value of the window in every format: a score that
// is not a number would be above no threshold.
func TestImageModel_TakesNaNForTheLowestValue(t *testing.T) {
	orttest.Open(t)
	m := framedModel(t, false, models.Square(32), models.Preprocessing{Window: &models.Window{100, 3000}})
	graph := newImageModel(t, m)
	_, samples := waves(t, 40, 40, true)
	with := func(v float32) float64 {
		changed := slices.Clone(samples)
		for i := range 300 {
			changed[len(changed)/2+i] = v
		}
		score, _, _ := runImage(t, graph, 40, 40, changed)
		return score
	}
	lowest, none := with(100), with(float32(math.NaN()))
	if none != lowest {
		t.Errorf("a score of %v with NaN, %v with the lowest value", none, lowest)
	}
	if plain, _, _ := runImage(t, graph, 40, 40, samples); plain == lowest {
		t.Error("the samples make no difference")
	}
}

// Nothing of the image is judged, so it must not be called normal.
func TestImageModel_CallsNoImageNormalThatHasNothingInTheRegion(t *testing.T) {
	orttest.Open(t)
	size := models.Square(32)
	mask := make([]bool, size.Area())
	for i := range mask {
		mask[i] = i%size.W < 3
	}
	m := framedModel(t, false, size, models.Preprocessing{Fit: models.FitCrop, Region: models.NewRegion(size, mask)})
	m.Metadata.Decision.Threshold = 1e6
	graph := newImageModel(t, m)
	for w, want := range map[int]bool{20: false, 200: true} { // of 200 columns, the crop keeps the 20 in the middle
		if _, anomaly, _ := runImage(t, graph, w, 20, make([]byte, 3*20*w)); anomaly != want {
			t.Errorf("%d pixels wide: an anomaly is %t, expected %t", w, anomaly, want)
		}
	}
}
