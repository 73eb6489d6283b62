package jpeg2000

// number is a coefficient: an integer of the reversible transform or a float of the
// irreversible one.
type number interface{ int32 | float32 }

// lifting reverses one level of a transform in place. The samples alternate between low
// and high frequencies; odd reports whether the first one is of high frequency.
type lifting[T number] func(s []T, odd bool)

// synthesize joins a resolution and the three bands of the next one. The result has area's
// samples.
func synthesize[T number](low []T, lowArea rect, bands *[3][]T, areas *[3]rect, area rect, lift lifting[T]) []T {
	w, h := area.w(), area.h()
	out := make([]T, w*h)
	oddX, oddY := area.x0&1, area.y0&1
	place := func(src []T, a rect, x0, y0 int) {
		for y := range a.h() {
			dst, row := out[(2*y+y0)*w:], src[y*a.w():(y+1)*a.w()]
			for x, v := range row {
				dst[2*x+x0] = v
			}
		}
	}
	// A band of high frequencies begins at the first odd sample, a low one at the first
	// even sample.
	place(low, lowArea, oddX, oddY)
	place(bands[0], areas[0], 1-oddX, oddY)
	place(bands[1], areas[1], oddX, 1-oddY)
	place(bands[2], areas[2], 1-oddX, 1-oddY)
	for y := range h {
		lift(out[y*w:(y+1)*w], oddX == 1)
	}
	// Columns are transformed a few at a time, for the cache.
	const together = 16
	block := make([]T, together*h)
	for x0 := 0; x0 < w; x0 += together {
		n := min(together, w-x0)
		for y := range h {
			for i, v := range out[y*w+x0 : y*w+x0+n] {
				block[i*h+y] = v
			}
		}
		for i := range n {
			lift(block[i*h:(i+1)*h], oddY == 1)
		}
		for y := range h {
			for i := range n {
				out[y*w+x0+i] = block[i*h+y]
			}
		}
	}
	return out
}

// mirrored calls step for every second sample from first on, with its neighbours; beyond
// the ends they are mirrored.
func mirrored[T number](s []T, first int, step func(v, left, right T) T) {
	n := len(s)
	for i := first; i < n; i += 2 {
		l, r := i-1, i+1
		if l < 0 {
			l = r
		}
		if r >= n {
			r = l
		}
		s[i] = step(s[i], s[l], s[r])
	}
}

// reverse53 is the inverse of the reversible 5/3 transform (T.800, F.3.8.2).
func reverse53(s []int32, odd bool) {
	even := 0
	if odd {
		even = 1
	}
	if len(s) == 1 {
		if odd {
			s[0] /= 2
		}
		return
	}
	mirrored(s, even, func(v, l, r int32) int32 { return v - (l+r+2)>>2 })
	mirrored(s, 1-even, func(v, l, r int32) int32 { return v + (l+r)>>1 })
}

// reverse97 is the inverse of the irreversible 9/7 transform (T.800, F.3.8.1).
func reverse97(s []float32, odd bool) {
	const (
		alpha, beta, gamma, delta = -1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971
		k                         = 1.230174104914001
	)
	even := 0
	if odd {
		even = 1
	}
	if len(s) == 1 {
		if odd {
			s[0] /= 2
		}
		return
	}
	for i := even; i < len(s); i += 2 {
		s[i] *= k
	}
	for i := 1 - even; i < len(s); i += 2 {
		s[i] *= 1 / k
	}
	for _, step := range [...]struct {
		first  int
		factor float32
	}{{even, delta}, {1 - even, gamma}, {even, beta}, {1 - even, alpha}} {
		mirrored(s, step.first, func(v, l, r float32) float32 { return v - step.factor*(l+r) })
	}
}
