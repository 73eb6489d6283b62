package dataset

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
	"math/rand/v2"
	"testing"

	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/internal/tiling"
	"github.com/deepmed/anomaly/internal/workers"
	"github.com/deepmed/anomaly/models"
)

// greyPNG returns a PNG of 16-bit samples of at most 12 bits, or of 8-bit ones.
func greyPNG(t *testing.T, seed uint64, w, h int, deep bool) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 3))
	var m image.Image
	if deep {
		g := image.NewGray16(image.Rect(0, 0, w, h))
		for i := 0; i < len(g.Pix); i += 2 {
			g.Pix[i], g.Pix[i+1] = byte(r.IntN(16)), byte(r.Uint32())
		}
		m = g
	} else {
		g := image.NewGray(image.Rect(0, 0, w, h))
		for i := range g.Pix {
			g.Pix[i] = byte(r.Uint32())
		}
		m = g
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Tiles are those of the decoded images, in memory and on disk, and belong to their images.
func TestLoad_CutsImagesIntoTiles(t *testing.T) {
	for _, deep := range []bool{false, true} {
		files := map[string][]byte{"broken.png": greyPNG(t, 9, 40, 40, false)[:60]}
		sizes := [][2]int{{40, 20}, {16, 16}, {33, 47}}
		for i, s := range sizes {
			files[fmt.Sprintf("%d.png", i)] = greyPNG(t, uint64(i), s[0], s[1], deep)
		}
		data := testkit.Zip(t, files)
		src, err := OpenZip(bytes.NewReader(data), int64(len(data)), DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		tiles := &models.Tiles{Overlap: 4}
		for _, memory := range []int64{DefaultLimits().MemoryBytes, 3 * 16 * 16 * 2, 0} {
			o := Options{Size: models.Square(16), Limits: DefaultLimits(), TempDir: t.TempDir(), Tiles: tiles, Workers: workers.Pool{Threads: 2}}
			o.Limits.MemoryBytes = memory
			d, err := Load(t.Context(), src, o)
			if err != nil {
				t.Fatal(err)
			}
			if d.Count() != len(sizes) || len(d.Skipped) != 1 || (d.MaxValue == 4095) != deep {
				t.Errorf("%d images, %d skipped, largest value %d", d.Count(), len(d.Skipped), d.MaxValue)
			}
			next := 0
			var buffer []byte
			for i, image := range d.Tiled() {
				g := tiling.New(sizes[i][0], sizes[i][1], 16, 4)
				if image.First != next || !image.Grid.Equal(g) {
					t.Fatalf("image %d: %+v, expected the grid %+v from %d", i, image, g, next)
				}
				next += g.Len()
				whole, err := imagefile.Decode(files[fmt.Sprintf("%d.png", i)], imagefile.Options{MaxValue: d.MaxValue})
				if err != nil {
					t.Fatal(err)
				}
				for k := range g.Len() {
					pixels, err := d.Image(image.First+k, &buffer)
					if err != nil {
						t.Fatal(err)
					}
					left, top := g.At(k)
					for y := range 16 {
						at := 3 * ((top+y)*whole.W + left)
						if !bytes.Equal(pixels[3*16*y:3*16*(y+1)], whole.Pix[at:at+3*16]) {
							t.Fatalf("image %d, tile %d: another row %d", i, k, y)
						}
					}
				}
			}
			if d.Len() != next {
				t.Errorf("%d tiles, expected %d", d.Len(), next)
			}
			part := d.Part([]int{next - 1, 0})
			want, _ := d.Image(0, new([]byte))
			if got, err := part.Image(1, new([]byte)); err != nil || part.Len() != 2 || !bytes.Equal(got, want) || part.Tiled() != nil {
				t.Errorf("a part of %d images, %v", part.Len(), err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestLoad_RejectsMoreTilesThanTheLimit(t *testing.T) {
	data := testkit.Zip(t, map[string][]byte{"a.png": greyPNG(t, 1, 64, 64, false)})
	src, err := OpenZip(bytes.NewReader(data), int64(len(data)), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Size: models.Square(16), Limits: DefaultLimits(), TempDir: t.TempDir(), Tiles: &models.Tiles{}}
	o.Limits.PreparedBytes = 3*16*16*16 - 1
	if _, err := Load(t.Context(), src, o); !errors.Is(err, ErrTooLarge) {
		t.Errorf("16 tiles where 15 fit: %v", err)
	}
	o.Limits.PreparedBytes++
	d, err := Load(t.Context(), src, o)
	if err != nil || d.Len() != 16 {
		t.Fatal(d, err)
	}
	d.Close()
	o.TempDir, o.Limits.MemoryBytes = "/nowhere/at/all", 0
	if _, err := Load(t.Context(), src, o); !errors.Is(err, ErrStorage) {
		t.Errorf("no folder for tiles: %v", err)
	}
}

// Tiles of images of more than 8 bits keep their depth, within the window that whole images
// have, in memory and on disk. With others of 8 bits, and if a scale is given, they do not.
func TestLoad_ChoosesTheWindowOfTilesAsOfWholeImages(t *testing.T) {
	files := map[string][]byte{"a.png": greyPNG(t, 1, 40, 20, true), "b.png": greyPNG(t, 2, 33, 47, true)}
	load := func(files map[string][]byte, memory int64, tiles *models.Tiles) *Dataset {
		o := Options{Size: models.Square(16), Limits: DefaultLimits(), TempDir: t.TempDir(), Tiles: tiles, KeepDepth: true, Workers: workers.Pool{Threads: 2}}
		o.Limits.MemoryBytes = memory
		d, err := Load(t.Context(), zipSource(t, files), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	whole := load(files, DefaultLimits().MemoryBytes, nil)
	for _, memory := range []int64{DefaultLimits().MemoryBytes, 20_000, 0} {
		d := load(files, memory, &models.Tiles{Overlap: 4})
		if d.Window == nil || *d.Window != *whole.Window || !d.Layout.Deep || d.MaxValue != imagefile.DefaultMaxValue || d.Count() != 2 {
			t.Fatalf("window %v, expected %v; %+v", d.Window, whole.Window, d.Layout)
		}
		var buffer []byte
		for i, name := range []string{"a.png", "b.png"} {
			seen := 0
			_, err := imagefile.CutTiles(files[name], 16, models.Tiles{Overlap: 4}, imagefile.Options{Window: d.Window}, nil, func(k int, pix []byte) error {
				got, err := d.Image(d.Tiled()[i].First+k, &buffer)
				if err != nil || !bytes.Equal(got, pix) {
					t.Errorf("%s: another tile %d, %v", name, k, err)
				}
				seen++
				return nil
			})
			if err != nil || seen != d.Tiled()[i].Grid.Len() {
				t.Errorf("%s: %d tiles, %v", name, seen, err)
			}
		}
	}
	files["c.png"] = greyPNG(t, 3, 20, 20, false)
	if d := load(files, 0, &models.Tiles{Overlap: 4}); d.Window != nil || d.Layout.Deep || d.MaxValue != 4095 {
		t.Errorf("with an image of 8 bits: %v, %+v, %d", d.Window, d.Layout, d.MaxValue)
	}
}
