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

// truthFolder has a folder for each defect, with a mask for each of its images.
const truthFolder = "ground_truth"

// ErrMask is returned when a mask is missing beside others, cannot be read or
// does not fit its image.
var ErrMask = errors.New("unusable mask")

// masks finds the masks of a defect's images: ground_truth/<defect>/<stem>_mask.png,
// as MVTec AD names them, or <stem>.png. It gives none when there is no such
// folder, and ErrMask, wrapped, when it has not one for each image.
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

// mask says of each pixel which region it belongs to.
type mask struct {
	width, height int
	// region of each pixel, counted from 1; 0 where the image is normal.
	region []int32
	sizes  []int // of the regions, in pixels
}

// readMask reads a mask: what is not black is defective. It must have the size of
// the image, in pixels.
func readMask(file string, width, height int) (*mask, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMask, err)
	}
	img, err := imagefile.Decode(data, imagefile.DefaultLimits())
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

// newMask finds the connected regions; pixels that touch at a corner are
// connected, as in the evaluation that comes with MVTec AD.
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
