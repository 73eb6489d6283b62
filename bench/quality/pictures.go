package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"image"
	"image/color"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/evaluation"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/ort"
	"github.com/deepmed/anomaly/models"
	"github.com/deepmed/anomaly/trainer"
	"github.com/disintegration/imaging"
	"github.com/spf13/cobra"
	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// The layout of a sheet, in pixels.
const (
	pictureSide = 150
	perRow      = 5
	gap         = 8
	seam        = 2 // between an image and its heatmap
	captionSize = 15
	lineHeight  = 22
)

func picturesCommand() *cobra.Command {
	var (
		o                    trainer.Options
		model, found, missed string
		count                int
	)
	c := &cobra.Command{
		Use:   "pictures DATASET DEFECT",
		Short: "Draw the heatmaps of the detected defects with the highest scores, and of the missed ones with the lowest",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			e, err := ort.Open(ort.Options{})
			if err != nil {
				return err
			}
			m, err := toDraw(c.Context(), e, model, filepath.Join(args[0], evaluation.TrainFolder), o)
			if err != nil {
				return err
			}
			return judge(e, m, func(d *inference.Detector) error {
				return pictures(c.Context(), d, args[0], args[1], count, e.Threads(), found, missed, c.OutOrStdout())
			})
		},
	}
	f := c.Flags()
	f.StringVar(&model, "model", "", "model ZIP to use instead of training one")
	f.IntVar(&o.Level, "level", trainer.DefaultLevel, "training level")
	f.IntVar(&o.ImageSize, "image-size", 128, "image side, in pixels")
	f.IntVar(&count, "count", 10, "images per sheet")
	f.StringVar(&found, "found", "found.jpg", "sheet of detected defects")
	f.StringVar(&missed, "missed", "missed.jpg", "sheet of missed defects")
	return c
}

// toDraw reads a model, or trains one.
func toDraw(ctx context.Context, e *ort.Engine, file, folder string, o trainer.Options) (*models.Model, error) {
	if file == "" {
		l, err := train(ctx, e, folder, o, true)
		if err != nil {
			return nil, err
		}
		return l.model, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return models.Read(data, models.DefaultLimits())
}

// pictures writes both sheets of a kind of defect.
func pictures(ctx context.Context, d *inference.Detector, dataset, defect string, count, threads int, found, missed string, out io.Writer) error {
	s, err := evaluation.Open(dataset)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(s.Defects, func(k evaluation.Defect) bool { return k.Name == defect })
	if i < 0 {
		return fmt.Errorf("%s has no images of the defect %q", dataset, defect)
	}
	judged, err := evaluation.Score(ctx, d, s.Defects[i].Files, threads)
	if err != nil {
		return err
	}
	hits, misses := sortOut(judged)
	_, threshold := d.Model().Metadata.Measure()
	for _, sheet := range []struct {
		file, what string
		of         []evaluation.Judged
	}{
		{found, "found, the highest scores first", hits},
		{missed, "not found, the lowest scores first", misses},
	} {
		title := fmt.Sprintf("%s: %d of %d %s; the threshold is %.2f", defect, len(sheet.of), len(judged), sheet.what, threshold)
		img, err := montage(ctx, d, title, sheet.of[:min(count, len(sheet.of))])
		if err != nil {
			return err
		}
		if err := writeJPEG(sheet.file, img); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %s\n", sheet.file, title)
	}
	return nil
}

// sortOut separates detected defects, in descending order of score, from missed ones,
// in ascending order.
func sortOut(judged []evaluation.Judged) (hits, misses []evaluation.Judged) {
	for _, j := range judged {
		if j.IsAnomaly {
			hits = append(hits, j)
		} else {
			misses = append(misses, j)
		}
	}
	slices.SortStableFunc(hits, func(a, b evaluation.Judged) int { return cmp.Compare(b.Score, a.Score) })
	slices.SortStableFunc(misses, func(a, b evaluation.Judged) int { return cmp.Compare(a.Score, b.Score) })
	return hits, misses
}

// montage draws each image, as resized for the network, next to its heatmap, with its
// score below.
func montage(ctx context.Context, d *inference.Detector, title string, judged []evaluation.Judged) (*image.NRGBA, error) {
	parsed, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return nil, err
	}
	face, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: captionSize, DPI: 72})
	if err != nil {
		return nil, err
	}
	defer face.Close()
	const width, height = 2*pictureSide + seam + 2*gap, pictureSide + lineHeight + gap
	rows := (len(judged) + perRow - 1) / perRow
	sheet := imaging.New(gap+perRow*width, gap+lineHeight+rows*height, color.White)
	write := func(text string, x, y int) {
		pen := font.Drawer{Dst: sheet, Src: image.NewUniform(color.Gray{Y: 0x20}), Face: face, Dot: fixed.P(x, y)}
		pen.DrawString(text)
	}
	write(title, gap, gap+captionSize)
	for i, j := range judged {
		data, err := os.ReadFile(j.File)
		if err != nil {
			return nil, err
		}
		pixels, err := imagefile.Prepare(data, d.Size(), d.ImageOptions(imagefile.DefaultLimits()))
		if err != nil {
			return nil, err
		}
		x, err := d.Explain(ctx, data, nil, imagefile.DefaultLimits())
		if err != nil {
			return nil, err
		}
		heat, err := imaging.Decode(bytes.NewReader(x.Heatmap))
		if err != nil {
			return nil, err
		}
		at := image.Pt(gap+i%perRow*width, gap+lineHeight+i/perRow*height)
		for k, img := range []image.Image{opaque(d.Layout().Colours(pixels), d.Size().W, d.Size().H), heat} {
			small := imaging.Resize(img, pictureSide, pictureSide, imaging.Lanczos)
			sheet = imaging.Paste(sheet, small, at.Add(image.Pt(k*(pictureSide+seam), 0)))
		}
		write(fmt.Sprintf("%.2f  %s", j.Score, filepath.Base(j.File)), at.X, at.Y+pictureSide+captionSize+1)
	}
	return sheet, nil
}

// opaque converts w×h×3 bytes to an image.
func opaque(pixels []byte, w, h int) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		copy(img.Pix[4*i:4*i+3], pixels[3*i:3*i+3])
		img.Pix[4*i+3] = 255
	}
	return img
}

// writeJPEG writes an image to a JPEG file.
func writeJPEG(file string, img image.Image) error {
	return files.WriteAtomic(file, func(w io.Writer) error {
		return imaging.Encode(w, img, imaging.JPEG, imaging.JPEGQuality(85))
	})
}
