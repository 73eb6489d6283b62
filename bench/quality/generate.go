package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"image"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/disintegration/imaging"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// drawing is the size of a generated data set.
type drawing struct {
	train, good, defects, side int
	seed                       uint64
}

// standard is the data sets of `make quality`.
var standard = drawing{train: 200, good: 60, defects: 60, side: 200, seed: 1}

func generateCommand() *cobra.Command {
	d := standard
	c := &cobra.Command{
		Use:   "generate FOLDER",
		Short: "Generate the data sets weave, flange and panel, with masks, in the layout of MVTec AD",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			_, err := generate(c.Context(), args[0], d)
			return err
		},
	}
	c.Flags().IntVar(&d.train, "train", d.train, "normal training images")
	c.Flags().IntVar(&d.good, "good", d.good, "normal test images")
	c.Flags().IntVar(&d.defects, "defects", d.defects, "test images with a defect")
	c.Flags().IntVar(&d.side, "side", d.side, "image side, in pixels")
	c.Flags().Uint64Var(&d.seed, "seed", d.seed, "random seed")
	return c
}

// generate generates all scenes in a folder, each atomically, and returns their
// folders.
func generate(ctx context.Context, dir string, d drawing) ([]string, error) {
	var folders []string
	for _, s := range scenes {
		folder := filepath.Join(dir, s.name)
		if err := s.generate(ctx, folder, d); err != nil {
			return nil, fmt.Errorf("generating %s: %w", s.name, err)
		}
		folders = append(folders, folder)
	}
	return folders, nil
}

func (s scene) generate(ctx context.Context, folder string, d drawing) error {
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(folder), "."+s.name+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temporary)
	if err := os.Chmod(temporary, 0o755); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for _, part := range []struct {
		folder    string
		n         int
		defective bool
	}{{"train/good", d.train, false}, {"test/good", d.good, false}, {filepath.Join("test", s.defect), d.defects, true}} {
		for i := range part.n {
			group.Go(func() error {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				img, mask := s.image(part.folder, i, part.defective, d)
				name := fmt.Sprintf("%03d", i)
				if mask != nil {
					if err := save(mask, filepath.Join(temporary, "ground_truth", s.defect, name+"_mask.png")); err != nil {
						return err
					}
				}
				return save(img, filepath.Join(temporary, part.folder, name+".png"))
			})
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	return os.Rename(temporary, folder)
}

// image returns an image, which depends only on its name and the seed, and the mask of
// a defective one.
func (s scene) image(folder string, i int, defective bool, d drawing) (*image.NRGBA, *image.Gray) {
	stream := func(what string) *rand.Rand {
		h := fnv.New64a()
		fmt.Fprint(h, s.name, "/", filepath.ToSlash(folder), "/", i, "/", what)
		return rand.New(rand.NewPCG(d.seed, h.Sum64()))
	}
	if defective {
		return s.draw(d.side, stream("image"), stream("defect"))
	}
	return s.draw(d.side, stream("image"), nil)
}

func save(img image.Image, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return imaging.Save(img, file)
}
