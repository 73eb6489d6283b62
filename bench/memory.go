package main

import (
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/disintegration/imaging"

	"github.com/deepmed/anomaly/models"
)

// memory trains on increasing numbers of images, augmented from the tiles, for
// several durations, and prints the peak memory.
func memory(ctx context.Context, _ options, _, dir string) error {
	t := table("images at 256 px", "epochs", "prepared MB", "peak resident MB", "seconds")
	for _, c := range []struct {
		images int
		time   time.Duration
	}{{1000, 20 * time.Second}, {1000, 60 * time.Second}, {10_000, 2 * time.Minute}, {10_000, 4 * time.Minute}} {
		folder := filepath.Join(dir, fmt.Sprint(c.images))
		if err := augmented(folder, c.images, 0, 0); err != nil {
			return err
		}
		model := filepath.Join(dir, "memory.zip")
		cmd := exec.CommandContext(ctx, "bin/anomaly", "train", folder, "--level", "2", "--image-size", "256", "--max-time", c.time.String(),
			"--out", model, "--force", "--quiet")
		began := time.Now()
		var log strings.Builder
		cmd.Stderr = &log
		peak, err := peakOf(cmd)
		if err != nil {
			return fmt.Errorf("training on %d images: %w\n%s", c.images, err, log.String())
		}
		described, err := output(ctx, "bin/anomaly", "inspect", "--json", model)
		if err != nil {
			return err
		}
		var m struct{ Metadata models.Metadata }
		if err := json.Unmarshal([]byte(described), &m); err != nil {
			return err
		}
		fmt.Fprintf(t, "%d\t%.2f\t%d\t%d\t%.0f\n", c.images, m.Metadata.Training.EpochsDone(), c.images*256*256*3>>20, int(peak), time.Since(began).Seconds())
	}
	return t.Flush()
}

// peakOf runs a program and returns its peak memory in MB. The peak that the system
// reports after its end (ru_maxrss) includes the memory of this process, from which
// it was forked.
func peakOf(cmd *exec.Cmd) (float64, error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	peak := 0.0
	for tick := time.Tick(100 * time.Millisecond); ; {
		select {
		case err := <-done:
			return peak, err
		case <-tick:
			peak = max(peak, memoryOf(cmd.Process.Pid, "VmHWM"))
		}
	}
}

// augmented fills a folder with n images, unless it exists: the tiles, flipped,
// cropped and with their brightness changed at random with a fixed seed, and resized
// if width is positive.
func augmented(folder string, n, width, height int) error {
	if _, err := os.Stat(folder); err == nil {
		return nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	var tiles []image.Image
	err := filepath.WalkDir("testdata/tiles/train", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".jpg") {
			return err
		}
		tile, err := imaging.Open(path)
		tiles = append(tiles, tile)
		return err
	})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		img := imaging.Clone(tiles[i%len(tiles)])
		b := img.Bounds()
		w, h := b.Dx()*(80+r.IntN(21))/100, b.Dy()*(80+r.IntN(21))/100
		at := image.Pt(r.IntN(b.Dx()-w+1), r.IntN(b.Dy()-h+1))
		img = imaging.Crop(img, image.Rectangle{at, at.Add(image.Pt(w, h))})
		if r.IntN(2) == 0 {
			img = imaging.FlipH(img)
		}
		if r.IntN(2) == 0 {
			img = imaging.FlipV(img)
		}
		if width > 0 {
			img = imaging.Resize(img, width, height, imaging.Linear)
		}
		brightness := r.IntN(41) - 20
		img = imaging.AdjustFunc(img, func(c color.NRGBA) color.NRGBA {
			shift := func(v uint8) uint8 { return uint8(min(max(int(v)+brightness, 0), 255)) }
			return color.NRGBA{shift(c.R), shift(c.G), shift(c.B), c.A}
		})
		if err := imaging.Save(img, filepath.Join(folder, fmt.Sprintf("%05d.jpg", i))); err != nil {
			return err
		}
	}
	return nil
}
