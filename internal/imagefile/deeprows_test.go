package imagefile

import (
	"bytes"
	"errors"
	"image"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/models"
)

// deepOf decodes an image as a whole and returns it at a size, within the window.
func deepOf(data []byte, o Options, longest int) ([]byte, models.Size, error) {
	img, err := decode(data, o)
	if err != nil {
		return nil, models.Size{}, err
	}
	var size models.Size
	size.W, size.H = tiling.Scaled(img.W, img.H, longest)
	pix := make([]byte, deepPixel*size.Area())
	img.deepTo(pix, models.FrameOf(size, "", img.W, img.H), *o.Window)
	return pix, size, nil
}

// colours16 returns a PNG of 16 bits per sample, opaque or not.
func colours16(t testing.TB, opaque bool) []byte {
	t.Helper()
	random := rand.New(rand.NewPCG(3, 4))
	m := image.NewNRGBA64(image.Rect(0, 0, 41, 33))
	for i := range m.Pix {
		if m.Pix[i] = byte(random.Uint32()); i%8 >= 6 && opaque {
			m.Pix[i] = 255
		}
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Whatever the format, tiles within a window have the values of the whole image.
func TestCutTiles_KeepsTheDepthOfTheWholeImage(t *testing.T) {
	files := encoded(t)
	files["colours of 16 bits"], files["colours of 16 bits, transparent"] = colours16(t, true), colours16(t, false)
	addImages(t, files, "testdata", filepath.Join("..", "..", "testdata", "golden"))
	const side = 32
	for name, data := range files {
		for _, longest := range []int{0, 50} {
			o := Options{Upright: true, Window: &models.Window{10, 30000}}
			want, size, wantErr := deepOf(data, o, longest)
			if size.Area() > 400_000 {
				continue // of the tests of limits
			}
			cut, err := CutTiles(data, side, models.Tiles{Overlap: 8, LongestSide: longest}, o, nil, func(i int, pix []byte) error {
				left, top := tiling.New(size.W, size.H, side, 8).At(i)
				for y := range side {
					for x := range side {
						at := deepPixel * (min(top+y, size.H-1)*size.W + min(left+x, size.W-1))
						if !bytes.Equal(pix[deepPixel*(y*side+x):][:deepPixel], want[at:at+deepPixel]) {
							t.Errorf("%s, %d: another pixel at %d, %d of tile %d", name, longest, x, y, i)
							return errors.New("stop")
						}
					}
				}
				ReleaseTile(pix)
				return nil
			})
			if (err == nil) != (wantErr == nil) {
				t.Errorf("%s, %d: error %v, expected %v", name, longest, err, wantErr)
			}
			if img, err := decode(data, o); err == nil && (cut.Deep != (img.samples != nil) || cut.Shallow == cut.Deep) {
				t.Errorf("%s: deep %v, shallow %v", name, cut.Deep, cut.Shallow)
			}
		}
	}
}

// Rows of deep images are read one by one where the format allows, so that tiles need no
// memory for the whole image.
func TestOpenRows_ReadsDeepImagesRowByRow(t *testing.T) {
	files := encoded(t)
	files["colours png"] = colours16(t, false)
	float, err := os.ReadFile(filepath.Join(deepDir, "float.tif"))
	if err != nil {
		t.Fatal(err)
	}
	files["float tiff"] = float
	o := Options{Window: &models.Window{0, 4095}}.orDefault()
	for name, read := range map[string]func([]byte, Options) (*rows, error){
		"deep png": pngRows, "deep png, stored": pngRows, "colours png": pngRows, "deep tiff": tiffRows, "float tiff": tiffRows,
	} {
		if r, err := read(files[name], o); r == nil || err != nil || !r.deep || !r.window {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// A probed image of floating-point samples has values and no tiles; one of 16 bits has both.
func TestCutTiles_ProbesValues(t *testing.T) {
	for name, c := range map[string]struct{ deep, float bool }{"float.tif": {true, true}, "grey12.png": {true, false}} {
		data, err := os.ReadFile(filepath.Join(deepDir, name))
		if err != nil {
			t.Fatal(err)
		}
		tiles := 0
		cut, err := CutTiles(data, 16, models.Tiles{}, Options{Probe: true}, nil, func(int, []byte) error { tiles++; return nil })
		if err != nil || cut.Deep != c.deep || cut.Float != c.float || len(cut.Values) == 0 || (tiles == 0) != c.float {
			t.Errorf("%s: %+v, %d tiles, %v", name, cut, tiles, err)
		}
	}
}

// Tiles have the region of the whole image, stretched over it; those wholly outside are left
// out, and every row is passed on.
func TestCutTiles_MarksWhatIsOutsideOfTheRegion(t *testing.T) {
	region := models.NewRegion(models.Size{W: 5, H: 3}, []bool{
		true, true, false, false, false,
		true, false, false, false, false,
		false, false, false, false, true})
	for _, window := range []*models.Window{nil, {0, 200}} {
		for _, longest := range []int{0, 40} {
			plain := Options{Window: window}
			o := plain.WithRegion(region)
			seen := 0
			o.TileRow = func(y int, row []byte) {
				if y != seen {
					t.Fatalf("row %d after %d", y, seen)
				}
				seen++
			}
			data := encoded(t)["opaque png"] // 75×53
			tiles := models.Tiles{Overlap: 4, LongestSide: longest}
			whole := map[int][]byte{}
			if _, err := CutTiles(data, 16, tiles, plain, nil, func(i int, pix []byte) error { whole[i] = pix; return nil }); err != nil {
				t.Fatal(err)
			}
			next := 0
			var grid tiling.Grid
			cut, err := CutTiles(data, 16, tiles, o, func(c Cut) error { grid = c.Grid; return nil }, func(i int, pix []byte) error {
				if i != next {
					t.Fatalf("tile %d after %d", i, next)
				}
				next++
				layout := o.Layout(models.Square(16))
				if len(pix) != layout.Bytes() {
					t.Fatalf("%d bytes of a tile, expected %d", len(pix), layout.Bytes())
				}
				mask, pixel := layout.Mask(pix), (len(pix)-256)/256
				left, top := grid.At(i)
				judged := 0
				for p, in := range mask {
					x, y := min(left+p%16, grid.W-1), min(top+p/16, grid.H-1)
					want, bit := make([]byte, pixel), byte(0)
					if column, row := (2*x+1)*5/(2*grid.W), (2*y+1)*3/(2*grid.H); row == 0 && column < 2 || row == 1 && column == 0 || row == 2 && column == 4 {
						want, bit = whole[grid.Place(i)][p*pixel:(p+1)*pixel], 1
						judged++
					}
					if in != bit || !bytes.Equal(pix[p*pixel:(p+1)*pixel], want) {
						t.Fatalf("tile %d: pixel %d is %v, judged %d, expected %v, %d", i, p, pix[p*pixel:(p+1)*pixel], in, want, bit)
					}
				}
				if judged == 0 {
					t.Errorf("tile %d is wholly outside", i)
				}
				return nil
			})
			if err != nil || next != cut.Grid.Len() || next >= cut.Grid.Places() || next < 3 || seen != cut.Grid.H {
				t.Errorf("%d tiles, %d rows, %d of %d, %v", next, seen, cut.Grid.Len(), cut.Grid.Places(), err)
			}
		}
	}
	between := make([]bool, 200*200)
	between[0] = true // none of 75 pixels has its centre there
	if _, err := CutTiles(encoded(t)["opaque png"], 16, models.Tiles{}, Options{}.WithRegion(models.NewRegion(models.Square(200), between)), nil, func(int, []byte) error { return nil }); !errors.Is(err, ErrImage) {
		t.Errorf("nothing inside: %v", err)
	}
}
