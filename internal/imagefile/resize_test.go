package imagefile

import (
	"bytes"
	"fmt"
	"image"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/disintegration/imaging"
)

// noise returns an image of random bytes with a fixed seed, the hardest case for
// differences in rounding.
func noise(w, h int) *RGB {
	r := rand.New(rand.NewPCG(uint64(w), uint64(h)))
	img := newRGB(w, h)
	for i := range img.Pix {
		img.Pix[i] = byte(r.Uint32())
	}
	return img
}

// The Linear filter of imaging is the same filter in floating point.
func TestResize_MatchesAnIndependentImplementation(t *testing.T) {
	for _, c := range []struct{ w, h, toW, toH int }{
		{64, 48, 16, 16}, {100, 37, 33, 36}, {33, 31, 64, 64}, {200, 7, 16, 48}, {5, 300, 32, 32}, {256, 256, 255, 257}, {1, 1, 8, 8},
	} {
		t.Run(fmt.Sprintf("%dx%d to %dx%d", c.w, c.h, c.toW, c.toH), func(t *testing.T) {
			img := noise(c.w, c.h)
			src := image.NewNRGBA(image.Rect(0, 0, c.w, c.h))
			for i := range c.w * c.h {
				copy(src.Pix[4*i:], append(img.Pix[3*i:3*i+3:3*i+3], 255))
			}
			peer := imaging.Resize(src, c.toW, c.toH, imaging.Linear)
			got := img.Resize(c.toW, c.toH)
			for i := range c.toW * c.toH {
				for ch := range 3 {
					d := int(got.Pix[3*i+ch]) - int(peer.Pix[4*i+ch])
					if max(d, -d) > 1 {
						t.Fatalf("pixel %d, channel %d: %d, expected %d ± 1", i, ch, got.Pix[3*i+ch], peer.Pix[4*i+ch])
					}
				}
			}
		})
	}
}

func TestResize_ReturnsTheSameForGreyAndColour(t *testing.T) {
	for _, c := range [][4]int{{64, 48, 16, 16}, {101, 37, 33, 36}, {33, 31, 64, 64}, {200, 7, 16, 48}, {5, 301, 32, 32},
		{64, 40, 64, 21}, {41, 64, 16, 64}, {1, 1, 8, 8}, {8, 9, 8, 9}} {
		plane := image.NewGray(image.Rect(0, 0, c[0], c[1]))
		r := rand.New(rand.NewPCG(1, 2))
		for i := range plane.Pix {
			plane.Pix[i] = byte(r.Uint32())
		}
		img, err := Options{}.toRGB(plane)
		if err != nil || img.plane == nil {
			t.Fatalf("a grey image without a plane, %v", err)
		}
		got := img.Resize(c[2], c[3])
		img.spread().plane = nil
		if !bytes.Equal(got.Pix, img.Resize(c[2], c[3]).Pix) {
			t.Errorf("%v differs", c)
		}
	}
}

func TestResize_KeepsAFlatColour(t *testing.T) {
	for _, v := range []byte{0, 1, 127, 254, 255} {
		for _, c := range [][4]int{{300, 200, 16, 16}, {3, 3, 64, 64}, {1, 65535, 16, 16}, {65535, 1, 16, 16}, {64, 64, 7, 900}} {
			img := newRGB(c[0], c[1])
			img.fill([3]byte{v, v, v})
			out := img.Resize(c[2], c[3])
			if !bytes.Equal(out.Pix, bytes.Repeat([]byte{v}, len(out.Pix))) {
				t.Errorf("%v at %d is no longer flat", c, v)
			}
		}
	}
}

func TestResize_CopiesAnImageOfTheSameSize(t *testing.T) {
	img := noise(9, 7)
	out := img.Resize(9, 7)
	if !bytes.Equal(out.Pix, img.Pix) {
		t.Error("the pixels differ")
	}
	out.Pix[0]++
	if out.Pix[0] == img.Pix[0] {
		t.Error("the result shares memory with the image")
	}
}

func TestResize_PanicsForSizesBelowOne(t *testing.T) {
	for _, c := range [][2]int{{0, 5}, {5, 0}, {-1, -1}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v did not panic", c)
				}
			}()
			noise(4, 4).Resize(c[0], c[1])
		}()
	}
}

func TestResize_SharesNoBuffersBetweenGoroutines(t *testing.T) {
	images := []*RGB{noise(90, 70), noise(40, 200), noise(200, 40)}
	var want [][]byte
	for _, img := range images {
		want = append(want, img.Resize(32, 32).Pix)
	}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			if got := images[i%3].Resize(32, 32); !bytes.Equal(got.Pix, want[i%3]) {
				t.Errorf("image %d differs", i%3)
			}
		})
	}
	wg.Wait()
}

func BenchmarkResize(b *testing.B) {
	for _, c := range [][3]int{{640, 480, 256}, {1024, 1024, 256}, {4000, 3000, 256}, {128, 128, 256}} {
		b.Run(fmt.Sprintf("%dx%d to %d", c[0], c[1], c[2]), func(b *testing.B) {
			img := noise(c[0], c[1])
			b.SetBytes(int64(len(img.Pix)))
			b.ReportAllocs()
			for b.Loop() {
				img.Resize(c[2], c[2])
			}
		})
	}
}
