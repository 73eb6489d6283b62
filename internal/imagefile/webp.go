package imagefile

import (
	"fmt"
	"image"
)

// webpToRGB converts an image of the WebP decoder and drops alpha. The luma of lossy
// WebP spans 16 to 235, unlike JFIF's and Go's, and libwebp interpolates chroma with a
// filter of its own. The result has the same bits as libwebp's.
func (o Options) webpToRGB(m image.Image) (*RGB, error) {
	switch m := m.(type) {
	case *image.YCbCr:
		return vp8ToRGB(m)
	case *image.NYCbCrA:
		return vp8ToRGB(&m.YCbCr)
	}
	return o.toRGB(m)
}

// vp8ToRGB converts the planes of lossy WebP.
func vp8ToRGB(m *image.YCbCr) (*RGB, error) {
	if m.SubsampleRatio != image.YCbCrSubsampleRatio420 {
		return nil, fmt.Errorf("%w: a WebP of unknown chroma subsampling %v", ErrImage, m.SubsampleRatio)
	}
	out := newRGB(m.Rect.Dx(), m.Rect.Dy())
	cw, ch := (out.W+1)/2, (out.H+1)/2
	u, v := make([]int32, out.W+1), make([]int32, out.W+1)
	for y := range out.H {
		// near and far are the chroma rows to interpolate between; equal at the top and
		// bottom edges.
		near := y / 2
		far := min(max(near+y%2*2-1, 0), ch-1)
		vp8Widen(u, m.Cb[near*m.CStride:][:cw], m.Cb[far*m.CStride:][:cw])
		vp8Widen(v, m.Cr[near*m.CStride:][:cw], m.Cr[far*m.CStride:][:cw])
		luma := m.Y[y*m.YStride:][:out.W]
		dst := out.Pix[3*y*out.W:]
		for x, l := range luma {
			s := int32(l) * 19077 >> 8
			d := dst[3*x : 3*x+3 : 3*x+3]
			d[0] = vp8Clip(s + v[x]*26149>>8 - 14234)
			d[1] = vp8Clip(s - u[x]*6419>>8 - v[x]*13320>>8 + 8708)
			d[2] = vp8Clip(s + u[x]*33050>>8 - 17685)
		}
	}
	return out, nil
}

// vp8Widen doubles the width of a chroma row. It weights the four samples around each
// output 9:3:3:1, with libwebp's rounding in two steps. The first output has two
// samples only, and so has the last if the width is even.
func vp8Widen(dst []int32, near, far []byte) {
	n := len(near)
	dst[0] = (3*int32(near[0]) + int32(far[0]) + 2) >> 2
	for i := 1; i < n; i++ {
		a, b := int32(near[i-1]), int32(near[i])
		c, d := int32(far[i-1]), int32(far[i])
		sum := a + b + c + d + 8
		dst[2*i-1] = ((sum+2*(b+c))>>3 + a) >> 1
		dst[2*i] = ((sum+2*(a+d))>>3 + b) >> 1
	}
	if 2*n-1 < len(dst) {
		dst[2*n-1] = (3*int32(near[n-1]) + int32(far[n-1]) + 2) >> 2
	}
}

// vp8Clip drops the six fractional bits.
func vp8Clip(v int32) byte { return clamp8(v >> 6) }
