package synthetic

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"image"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/disintegration/imaging"
)

// tiles returns the first n photographs of the tiles data set, resized.
func tiles(t testing.TB, n, side int) [][]byte {
	t.Helper()
	names, err := filepath.Glob("../../testdata/tiles/train/good/*.jpg")
	if err != nil || len(names) < n {
		t.Fatalf("%d tiles: %v", len(names), err)
	}
	var out [][]byte
	for _, name := range names[:n] {
		img, err := imaging.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		resized := imaging.Resize(img, side, side, imaging.Linear)
		pixels := make([]byte, 0, side*side*channels)
		for i := 0; i < len(resized.Pix); i += 4 {
			pixels = append(pixels, resized.Pix[i:i+channels]...)
		}
		out = append(out, pixels)
	}
	return out
}

// uniformImage returns an image of independent uniform noise.
func uniformImage(seed uint64, side int) []byte {
	r, out := rand.New(rand.NewPCG(seed, 0)), make([]byte, side*side*channels)
	for i := range out {
		out[i] = byte(r.IntN(256))
	}
	return out
}

// generatorOf returns a Generator with a seed.
func generatorOf(seed uint64, side int) *Generator {
	return NewGenerator(rand.New(rand.NewPCG(seed, 1)), side, side, nil)
}

// Defect heads depend on every generated pixel, so a change here changes the models of a
// seed.
func TestGenerate_MatchesEarlierVersions(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("other architectures may fuse multiply and add, which rounds once")
	}
	pattern := func(phase, side int) []byte {
		out := make([]byte, 0, side*side*channels)
		for y := range side {
			for x := range side {
				for c := range channels {
					out = append(out, byte(64+(x*(phase+c)+3*y*phase)%128))
				}
			}
		}
		return out
	}
	for side, want := range map[int]string{
		48:  "01049da4ade1e375b96060581f6ac8fe441e3174eea6d9be961c620f38329f83",
		128: "bca40401c38220db4e90d358e397f62b795ce95f9dc8ebb2f14da8b635cd3ec3",
	} {
		sum, gen := sha256.New(), generatorOf(5, side)
		normal, other := pattern(1, side), pattern(2, side)
		out, mask := make([]byte, len(normal)), make([]float32, side*side)
		for range 100 {
			gen.Generate(out, mask, normal, other)
			sum.Write(out)
			if err := binary.Write(sum, binary.LittleEndian, mask); err != nil {
				t.Fatal(err)
			}
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != want {
			t.Errorf("side %d: SHA-256 %s, expected %s", side, got, want)
		}
	}
}

func TestGenerate_DependsOnlyOnSeed(t *testing.T) {
	const side = 96
	normal := tiles(t, 2, side)
	draw := func(seed uint64) (all []byte, masks []float32) {
		gen := generatorOf(seed, side)
		out, mask := make([]byte, len(normal[0])), make([]float32, side*side)
		for range 20 {
			gen.Generate(out, mask, normal[0], normal[1])
			all, masks = append(all, out...), append(masks, mask...)
		}
		return all, masks
	}
	a, masksA := draw(3)
	b, masksB := draw(3)
	c, _ := draw(4)
	if !bytes.Equal(a, b) || !slices.Equal(masksA, masksB) {
		t.Error("the same seed results in different images")
	}
	if bytes.Equal(a, c) {
		t.Error("different seeds result in the same images")
	}
}

// visibility returns the expected mask: the mean change around each pixel, computed with
// an integral image.
func visibility(before, after []byte, side int) []float32 {
	sums := make([]int, (side+1)*(side+1))
	for y := range side {
		row := 0
		for x := range side {
			for c := range 3 {
				i := (y*side+x)*3 + c
				row += max(int(before[i])-int(after[i]), int(after[i])-int(before[i]))
			}
			sums[(y+1)*(side+1)+x+1] = sums[y*(side+1)+x+1] + row
		}
	}
	reach := 3 * side / 128 / 2
	out := make([]float32, side*side)
	for y := range side {
		for x := range side {
			left, right, top, bottom := max(0, x-reach), min(side, x+reach+1), max(0, y-reach), min(side, y+reach+1)
			sum := sums[bottom*(side+1)+right] - sums[top*(side+1)+right] - sums[bottom*(side+1)+left] + sums[top*(side+1)+left]
			if m := float64(sum) / float64(3*(right-left)*(bottom-top)); m > 2 {
				out[y*side+x] = float32(min(1, m/6))
			}
		}
	}
	return out
}

func TestGenerate_MaskMarksVisibleChanges(t *testing.T) {
	for _, side := range []int{16, 64, 100, 128, 256} {
		t.Run(fmt.Sprint(side), func(t *testing.T) {
			normal := tiles(t, 2, side)
			kept := slices.Clone(normal[0])
			gen := generatorOf(uint64(side), side)
			out, mask := make([]byte, len(normal[0])), make([]float32, side*side)
			for range 60 {
				gen.Generate(out, mask, normal[0], normal[1])
				if !bytes.Equal(normal[0], kept) {
					t.Fatal("the normal image was changed")
				}
				if n := len(gen.anomalies); n != 1 && n != 2 {
					t.Fatalf("%d anomalies", n)
				}
				for i := range side * side {
					at, in := image.Pt(i%side, i/side), false
					for _, a := range gen.anomalies {
						in = in || at.In(a.box)
					}
					if !in && !bytes.Equal(out[3*i:3*i+3], kept[3*i:3*i+3]) {
						t.Fatalf("pixel %v was changed, outside of %v", at, gen.anomalies)
					}
				}
				for i, want := range visibility(kept, out, side) {
					if math.Abs(float64(mask[i]-want)) > 1e-5 {
						t.Fatalf("the mask is %v at pixel %d, expected %v", mask[i], i, want)
					}
				}
			}
		})
	}
}

// All shapes and appearances are drawn, and nearly all are visible. This holds for any
// side, as sizes are relative to it.
func TestGenerate_CoversAllShapesAndAppearances(t *testing.T) {
	for _, side := range []int{64, 128, 256} {
		t.Run(fmt.Sprint(side), func(t *testing.T) {
			normal := tiles(t, 3, side)
			gen := generatorOf(7, side)
			out, mask := make([]byte, len(normal[0])), make([]float32, side*side)
			const draws = 800
			byShape, byAppearance := map[shape]int{}, map[appearance]int{}
			pairs := map[[2]int]int{}
			brighter, darker, coloured, two, visible := 0, 0, 0, 0, 0
			var areas []float64
			for i := range draws {
				normal := [][]byte{normal[i%3], normal[(i+1)%3]}
				gen.Generate(out, mask, normal[0], normal[1])
				area, saturated := 0, false
				for _, m := range mask {
					if m > 0 {
						area++
					}
					saturated = saturated || m == 1
				}
				if area > 0 {
					visible++
				}
				for _, a := range gen.anomalies {
					byShape[a.shape]++
					byAppearance[a.appearance]++
					pairs[[2]int{int(a.shape), int(a.appearance)}]++
				}
				if len(gen.anomalies) == 2 {
					two++
					continue
				}
				areas = append(areas, float64(area)/float64(side*side))
				if gen.anomalies[0].appearance != offset || !saturated {
					continue
				}
				var by [3]int
				for k, v := range out {
					by[k%3] += int(v) - int(normal[0][k])
				}
				switch {
				case by[0] > 0 && by[1] > 0 && by[2] > 0:
					brighter++
				case by[0] < 0 && by[1] < 0 && by[2] < 0:
					darker++
				default:
					coloured++
				}
			}
			slices.Sort(areas)
			t.Logf("shapes %v, appearances %v, brighter %d, darker %d, coloured %d, two %d, visible %d; areas %.4f %.4f %.4f %.4f %.4f", byShape, byAppearance,
				brighter, darker, coloured, two, visible, areas[0], areas[len(areas)/10], areas[len(areas)/2], areas[len(areas)*9/10], areas[len(areas)-1])
			if visible < draws*95/100 {
				t.Errorf("%d of %d are visible", visible, draws)
			}
			if two < draws*25/100 || two > draws*40/100 {
				t.Errorf("%d of %d have two anomalies", two, draws)
			}
			for k := range shapes {
				if byShape[k] < draws/6 {
					t.Errorf("shape %d was drawn %d times", k, byShape[k])
				}
				for _, c := range appearances {
					if pairs[[2]int{int(k), int(c)}] == 0 {
						t.Errorf("shape %d never had appearance %d", k, c)
					}
				}
			}
			for _, c := range appearances {
				if byAppearance[c] < draws/30 {
					t.Errorf("appearance %d was drawn %d times", c, byAppearance[c])
				}
			}
			if brighter < draws/40 || darker < draws/40 || coloured < draws/100 {
				t.Errorf("%d are brighter, %d darker, %d of another colour", brighter, darker, coloured)
			}
			// The areas range from a spot to a large part of the image.
			if least, most := areas[len(areas)/10], areas[len(areas)*9/10]; least > 0.004 || most < 0.035 {
				t.Errorf("the first and last deciles of the areas are %v and %v", least, most)
			}
			if middle := areas[len(areas)/2]; middle < 0.005 || middle > 0.03 {
				t.Errorf("the median of the areas is %v", middle)
			}
		})
	}
}

func TestGenerate_IsVisibleOnUniformImages(t *testing.T) {
	for _, side := range []int{16, 64, 100, 256} {
		for _, level := range []byte{0, 255} {
			gen := generatorOf(uint64(side), side)
			flat := bytes.Repeat([]byte{level}, side*side*3)
			out, mask := make([]byte, len(flat)), make([]float32, side*side)
			visible := 0
			const draws = 100
			for range draws {
				gen.Generate(out, mask, flat, flat)
				if slices.Max(mask) > 0 {
					visible++
				}
			}
			if visible < draws*95/100 {
				t.Errorf("side %d, level %d: %d of %d are visible", side, level, visible, draws)
			}
		}
	}
}

func TestGenerate_AcceptsAnySeedAndSide(t *testing.T) {
	for _, side := range []int{16, 17, 48, 100} {
		normal := [][]byte{uniformImage(1, side), uniformImage(2, side)}
		out, mask := make([]byte, len(normal[0])), make([]float32, side*side)
		for seed := range uint64(1500) {
			generatorOf(seed, side).Generate(out, mask, normal[0], normal[1])
			for i, m := range mask {
				if !(m >= 0 && m <= 1) {
					t.Fatalf("side %d, seed %d: the mask is %v at pixel %d", side, seed, m, i)
				}
			}
		}
	}
}

func TestNoise_HasUnitVariance(t *testing.T) {
	gen := generatorOf(1, 128)
	for _, size := range []float64{1.5, 2, 4, 7.3} {
		mean, std := 0.0, 0.0
		const n, fields = 128, 40
		for range fields {
			for _, v := range gen.noise(n, n, size) {
				mean += float64(v) / (fields * n * n)
				std += float64(v*v) / (fields * n * n)
			}
		}
		if std = math.Sqrt(std - mean*mean); math.Abs(mean) > 0.02 || math.Abs(std-1) > 0.05 {
			t.Errorf("size %v: mean %v, standard deviation %v", size, mean, std)
		}
	}
}

func BenchmarkGenerate(b *testing.B) {
	for _, side := range []int{128, 256, 1024} {
		b.Run(fmt.Sprintf("side=%d", side), func(b *testing.B) {
			normal := tiles(b, 2, side)
			gen := generatorOf(1, side)
			out, mask := make([]byte, side*side*channels), make([]float32, side*side)
			for b.Loop() {
				gen.Generate(out, mask, normal[0], normal[1])
			}
		})
	}
}
