package evaluation

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/deepmed/anomaly/internal/imagefile"
)

// truthFolder has a subfolder for each defect, with a mask for each of its images.
const truthFolder = "ground_truth"

// ErrMask is returned when a mask is missing although others exist, cannot be read, does
// not have the size of its image, or when all masks of a defect are empty.
var ErrMask = errors.New("unusable mask")

// masks returns the masks of a defect's images: ground_truth/<defect>/<stem>_mask.png, as
// in MVTec AD, or <stem>.png. It returns nil when there is no such folder, and ErrMask,
// wrapped, when the mask of an image is missing.
func masks(folder, defect string, files []string) ([]string, error) {
	truth := filepath.Join(folder, truthFolder, defect)
	if info, err := os.Stat(truth); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil, nil
	}
	out := make([]string, len(files))
	for i, file := range files {
		rel, err := filepath.Rel(filepath.Join(folder, testFolder, defect), file)
		if err != nil {
			return nil, err
		}
		stem := filepath.Join(truth, strings.TrimSuffix(rel, filepath.Ext(rel)))
		for _, name := range []string{stem + "_mask.png", stem + ".png"} {
			if _, err := os.Stat(name); err == nil {
				out[i] = name
				break
			}
		}
		if out[i] == "" {
			return nil, fmt.Errorf("%w: %s has none; expected %s_mask.png", ErrMask, file, stem)
		}
	}
	return out, nil
}

// maskMaxValue is the scale of a mask of 16-bit samples: 1 is not black.
const maskMaxValue = 1

// mask is a ground-truth mask with its connected regions.
type mask struct {
	width, height int
	// region is the number of each pixel's region, from 1 on; 0 for a normal pixel.
	region []int32
	sizes  []int // number of pixels of each region
}

// readMask reads a mask of width×height pixels. Its orientation is applied if o applies
// that of the image. Pixels that are not black are defective. It returns ErrMask,
// wrapped.
func readMask(file string, width, height int, o imagefile.Options) (*mask, error) {
	o.MaxValue, o.Window = maskMaxValue, nil
	data, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMask, err)
	}
	img, err := imagefile.Decode(data, o)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrMask, file, err)
	}
	if img.W != width || img.H != height {
		return nil, fmt.Errorf("%w: %s has %d×%d pixels, its image %d×%d", ErrMask, file, img.W, img.H, width, height)
	}
	defective := make([]bool, width*height)
	for i := range defective {
		defective[i] = img.Pix[3*i]|img.Pix[3*i+1]|img.Pix[3*i+2] != 0
	}
	return newMask(defective, width, height), nil
}

// newMask finds the connected regions. Pixels are 8-connected, as in MVTec AD's
// evaluation code.
func newMask(defective []bool, width, height int) *mask {
	m := &mask{width: width, height: height, region: make([]int32, width*height)}
	var stack []int
	for start, is := range defective {
		if !is || m.region[start] != 0 {
			continue
		}
		id, size := int32(len(m.sizes)+1), 0
		m.region[start] = id
		stack = append(stack[:0], start)
		for len(stack) > 0 {
			at := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			size++
			for y := max(at/width-1, 0); y <= min(at/width+1, height-1); y++ {
				for x := max(at%width-1, 0); x <= min(at%width+1, width-1); x++ {
					if next := y*width + x; defective[next] && m.region[next] == 0 {
						m.region[next] = id
						stack = append(stack, next)
					}
				}
			}
		}
		m.sizes = append(m.sizes, size)
	}
	return m
}
