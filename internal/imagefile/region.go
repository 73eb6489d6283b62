package imagefile

import (
	"fmt"

	"github.com/deepmed/anomaly/models"
)

// ReadRegion reads the mask of a region from an untrusted image file, and reduces it to that
// size by its nearest pixels. Pixels brighter than half of the brightest are inside. It
// returns ErrImage and ErrTooLarge, wrapped; a mask that is black everywhere is unusable.
func ReadRegion(data []byte, size models.Size, lim Limits) (*models.Region, error) {
	img, err := Decode(data, Options{Limits: lim, Upright: true})
	if err != nil {
		return nil, err
	}
	brightness := func(i int) int {
		p := img.Pix[channels*i:][:channels]
		return int(p[0]) + int(p[1]) + int(p[2])
	}
	brightest := 0
	for i := range img.W * img.H {
		brightest = max(brightest, brightness(i))
	}
	mask := make([]bool, size.Area())
	any := false
	for i := range mask {
		x, y := (2*(i%size.W)+1)*img.W/(2*size.W), (2*(i/size.W)+1)*img.H/(2*size.H)
		mask[i] = 2*brightness(y*img.W+x) > brightest
		any = any || mask[i]
	}
	if !any {
		return nil, fmt.Errorf("%w: the mask is black everywhere: paint the part to judge white", ErrImage)
	}
	return models.NewRegion(size, mask), nil
}
