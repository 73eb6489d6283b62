package imagefile

import (
	"bytes"
	"errors"
	"image"
	"image/jpeg"
	"image/png"
	"testing"

	"github.com/deepmed/anomaly/models"
)

func TestPrepare_MatchesPillow(t *testing.T) {
	for _, g := range goldens(t) {
		if g.w != 16 || g.h != 16 || exempt[g.input] != "" {
			continue
		}
		got, err := Prepare(readInput(t, g.input), models.Square(16), g.options())
		if err != nil {
			t.Errorf("%s: %v", g.input, err)
			continue
		}
		if largest, _, _ := difference(got, g.pix); len(got) != len(g.pix) || largest > bound(g.input) {
			t.Errorf("%s: %d bytes that differ by up to %d", g.input, len(got), largest)
		}
	}
}

func TestDecode_ScalesSixteenBitGrey(t *testing.T) {
	for _, name := range []string{"grey16.png", "grey16.tif"} {
		img, err := Decode(readInput(t, name), Options{})
		if err != nil {
			t.Fatal(err)
		}
		// make_images.py stores the red of the RGB image in the high byte.
		want, err := Decode(readInput(t, "rgb.png"), Options{})
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(want.Pix); i += 3 {
			r := want.Pix[i]
			if !bytes.Equal(img.Pix[i:i+3], []byte{r, r, r}) {
				t.Fatalf("%s: pixel %d is %v, expected %d", name, i/3, img.Pix[i:i+3], r)
			}
		}
	}
}

func TestPreparePooled_ReturnsThePixelsOfPrepareAndTheOriginalSize(t *testing.T) {
	for _, name := range []string{"rgb.png", "grey16.png", "jpeg_420_48x32.jpg", "plain.gif"} {
		data := readInput(t, name)
		want, err := Prepare(data, models.Square(16), Options{})
		if err != nil {
			t.Fatal(err)
		}
		img, err := Decode(data, Options{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := PreparePooled(data, models.Square(16), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p.Pix, want) || p.W != img.W || p.H != img.H {
			t.Errorf("%s: %d×%d pixels, expected %d×%d", name, p.W, p.H, img.W, img.H)
		}
		p.Release()
		p.Release() // the second call has no effect
		if p.Pix != nil {
			t.Errorf("%s: Pix is set after Release", name)
		}
	}
	if p, err := PreparePooled([]byte("prose"), models.Square(16), Options{}); p != nil || !errors.Is(err, ErrImage) {
		t.Errorf("%v, %v, expected ErrImage", p, err)
	}
}

func TestPrepare_RefusesSidesOutsideTheRange(t *testing.T) {
	data := readInput(t, "rgb.png")
	for _, side := range []int{-1, 0, models.MaxImageSize + 1} {
		if _, err := Prepare(data, models.Square(side), Options{}); !errors.Is(err, ErrSide) {
			t.Errorf("side %d: %v, expected ErrSide", side, err)
		}
	}
	if _, err := Prepare(data[:20], models.Square(16), Options{}); !errors.Is(err, ErrImage) {
		t.Errorf("%v, expected ErrImage", err)
	}
}

func TestNormalize_ReturnsPlanesOfExactFractions(t *testing.T) {
	pixels := make([]byte, 3*256)
	for i := range 256 {
		pixels[3*i], pixels[3*i+1], pixels[3*i+2] = byte(i), byte(255-i), byte(i/2)
	}
	dst := make([]float32, len(pixels))
	Normalize(dst, pixels)
	for i := range 256 {
		for c := range 3 {
			if want := float32(pixels[3*i+c]) / 255; dst[c*256+i] != want {
				t.Errorf("channel %d of pixel %d is %v, expected %v", c, i, dst[c*256+i], want)
			}
		}
	}
}

func TestNormalize_PanicsIfTheLengthsDiffer(t *testing.T) {
	for _, c := range [][2]int{{11, 12}, {12, 11}, {10, 10}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v did not panic", c)
				}
			}()
			Normalize(make([]float32, c[0]), make([]byte, c[1]))
		}()
	}
}

func BenchmarkPrepare(b *testing.B) {
	img := noise(1024, 768)
	m := image.NewNRGBA(image.Rect(0, 0, img.W, img.H))
	smooth := img.Resize(64, 48).Resize(img.W, img.H) // noise compresses worse than a photograph
	for i := range img.W * img.H {
		copy(m.Pix[4*i:], append(smooth.Pix[3*i:3*i+3:3*i+3], 255))
	}
	var asJPEG, asPNG bytes.Buffer
	if err := jpeg.Encode(&asJPEG, m, &jpeg.Options{Quality: 85}); err != nil {
		b.Fatal(err)
	}
	if err := png.Encode(&asPNG, m); err != nil {
		b.Fatal(err)
	}
	for name, data := range map[string][]byte{"JPEG": asJPEG.Bytes(), "PNG": asPNG.Bytes()} {
		b.Run(name+" 1024x768 to 256", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Prepare(data, models.Square(256), Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNormalize(b *testing.B) {
	pixels := noise(256, 256).Pix
	dst := make([]float32, len(pixels))
	for b.Loop() {
		Normalize(dst, pixels)
	}
}

// Training keeps the pixels of thousands of images, so the result must not be in a
// larger buffer of the pool.
func TestPrepare_AllocatesNoMoreThanThePixels(t *testing.T) {
	for _, size := range []int{512, 64, 32} {
		var file bytes.Buffer
		if err := png.Encode(&file, image.NewNRGBA(image.Rect(0, 0, size, size))); err != nil {
			t.Fatal(err)
		}
		pixels, err := Prepare(file.Bytes(), models.Square(64), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if most := 64*64*3 + 2048; cap(pixels) > most { // the allocator rounds up
			t.Errorf("%d×%d pixels: a capacity of %d bytes, expected at most %d", size, size, cap(pixels), most)
		}
	}
}
