package main

import (
	"image"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
)

const side = 64

// writeImages writes n textured images with noise into a folder, from a number on.
func writeImages(folder string, from, n int) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for i := from; i < from+n; i++ {
		f, err := os.Create(filepath.Join(folder, strconv.Itoa(1_000_000+i)+".png"))
		if err != nil {
			return err
		}
		if err := png.Encode(f, texture(uint64(i))); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func texture(seed uint64) image.Image {
	r := rand.New(rand.NewPCG(seed, 1))
	phase, m := 6*r.Float64(), image.NewRGBA(image.Rect(0, 0, side, side))
	for y := range side {
		for x := range side {
			v := 120 + 30*math.Sin(0.3*float64(x)+phase) + 20*math.Sin(0.23*float64(y)+2*phase) + 16*r.Float64()
			m.SetRGBA(x, y, color.RGBA{uint8(v), uint8(v + 20), uint8(v - 10), 255})
		}
	}
	return m
}
