package jpegls

import (
	"fmt"

	"github.com/deepmed/anomaly/internal/jpegmarkers"
)

// context is the state of a regular context: the sum of absolute errors, the bias, its
// correction and the count.
type context struct{ a, b, c, n int }

// runContext is the state of a context of samples that end a run.
type runContext struct{ a, n, negative int }

// model is the adaptive state of a scan.
type model struct {
	maxVal, near, reset int
	span                int // RANGE of the standard
	codeBits, limit     int
	quantized           []int8 // region of each gradient, from -maxVal on
	contexts            [9 * 9 * 9]context
	runs                [2]runContext
}

// runLengths are the exponents J of T.87, A.2.1.
var runLengths = [32]int{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// scan decodes the components of one scan.
type scan struct {
	*model
	w, h, stride int
	components   []int
	samples      []uint16
	r            reader
}

// line is the memory of two rows of a component, with a sample before and after them.
type line struct {
	above, row []int
	run        int // RUNindex
}

func newLines(n, w int) []line {
	lines := make([]line, n)
	for i := range lines {
		lines[i] = line{above: make([]int, w+2), row: make([]int, w+2)}
	}
	return lines
}

// start sets the samples beside the row from the row above.
func (l *line) start(w int) {
	l.above[w+1] = l.above[w]
	l.row[0] = l.above[1]
}

// byLine decodes a scan of one component, or of components that alternate by rows.
func (s *scan) byLine() error {
	lines := newLines(len(s.components), s.w)
	for y := range s.h {
		for i, c := range s.components {
			l := &lines[i]
			l.start(s.w)
			for x := 1; x <= s.w; {
				n, err := s.sample(l, x)
				if err != nil {
					return fmt.Errorf("%w in row %d of %d", err, y, s.h)
				}
				x += n
			}
			at := y*s.w*s.stride + c
			for _, v := range l.row[1 : s.w+1] {
				s.samples[at] = uint16(v)
				at += s.stride
			}
			l.above, l.row = l.row, l.above
		}
	}
	return nil
}

// sample decodes the sample at x, or a run that begins there, and returns the number of
// samples.
func (s *scan) sample(l *line, x int) (int, error) {
	a, b, c, d := l.row[x-1], l.above[x], l.above[x-1], l.above[x+1]
	q := s.region(a, b, c, d)
	if q != 0 {
		v, err := s.regular(q, a, b, c)
		l.row[x] = v
		return 1, err
	}
	n, err := s.runLength(s.w-x+1, &l.run)
	if err != nil {
		return 0, err
	}
	for i := range n {
		l.row[x+i] = a
	}
	if x+n > s.w {
		return n, nil
	}
	v, err := s.endOfRun(a, l.above[x+n], l.run, true)
	if err != nil {
		return 0, err
	}
	l.row[x+n] = v
	l.run = max(l.run-1, 0)
	return n + 1, nil
}

// bySample decodes a scan of components that alternate by samples. A run is one of all
// components.
func (s *scan) bySample() error {
	lines := newLines(len(s.components), s.w)
	run := 0
	for y := range s.h {
		for i := range lines {
			lines[i].start(s.w)
		}
		for x := 1; x <= s.w; {
			n, err := s.pixel(lines, x, &run)
			if err != nil {
				return fmt.Errorf("%w in row %d of %d", err, y, s.h)
			}
			x += n
		}
		for i, c := range s.components {
			at := y*s.w*s.stride + c
			for _, v := range lines[i].row[1 : s.w+1] {
				s.samples[at] = uint16(v)
				at += s.stride
			}
			lines[i].above, lines[i].row = lines[i].row, lines[i].above
		}
	}
	return nil
}

// pixel decodes the samples of all components at x, or a run that begins there, and
// returns the number of pixels.
func (s *scan) pixel(lines []line, x int, run *int) (int, error) {
	var regions [jpegmarkers.MaxComponents]int
	flat := true
	for i := range lines {
		l := &lines[i]
		regions[i] = s.region(l.row[x-1], l.above[x], l.above[x-1], l.above[x+1])
		flat = flat && regions[i] == 0
	}
	if !flat {
		for i := range lines {
			l := &lines[i]
			v, err := s.regular(regions[i], l.row[x-1], l.above[x], l.above[x-1])
			if err != nil {
				return 0, err
			}
			l.row[x] = v
		}
		return 1, nil
	}
	n, err := s.runLength(s.w-x+1, run)
	if err != nil {
		return 0, err
	}
	for i := range lines {
		l := &lines[i]
		for j := range n {
			l.row[x+j] = l.row[x-1]
		}
		if x+n > s.w {
			continue
		}
		if l.row[x+n], err = s.endOfRun(l.row[x-1], l.above[x+n], *run, false); err != nil {
			return 0, err
		}
	}
	if x+n > s.w {
		return n, nil
	}
	*run = max(*run-1, 0)
	return n + 1, nil
}

// region returns the context of a sample by its neighbours on the left (a), above (b),
// above on the left (c) and above on the right (d): from -364 to 364, 0 for a run.
func (s *scan) region(a, b, c, d int) int {
	m := s.maxVal
	return 81*int(s.quantized[d-b+m]) + 9*int(s.quantized[b-c+m]) + int(s.quantized[c-a+m])
}

// regular decodes a sample in the regular mode (T.87, A.4 to A.6).
func (s *scan) regular(q, a, b, c int) (int, error) {
	sign := 1
	if q < 0 {
		q, sign = -q, -1
	}
	t := &s.contexts[q]
	var p int
	switch low, high := min(a, b), max(a, b); {
	case c >= high:
		p = low
	case c <= low:
		p = high
	default:
		p = a + b - c
	}
	p = min(max(p+sign*t.c, 0), s.maxVal)
	k := 0
	for t.n<<k < t.a {
		k++
	}
	mapped, err := s.r.golomb(k, s.limit, s.codeBits)
	if err != nil {
		return 0, err
	}
	e := mapped >> 1
	if mapped&1 != 0 {
		e = -e - 1
	}
	if k == 0 && s.near == 0 && 2*t.b <= -t.n {
		e = -e - 1
	}
	t.b += e * (2*s.near + 1)
	t.a += max(e, -e)
	if t.n == s.reset {
		t.a >>= 1
		t.b >>= 1
		t.n >>= 1
	}
	t.n++
	if t.b <= -t.n {
		t.b = max(t.b+t.n, 1-t.n)
		t.c = max(t.c-1, -128)
	} else if t.b > 0 {
		t.b = min(t.b-t.n, 0)
		t.c = min(t.c+1, 127)
	}
	return s.reconstruct(p, sign*e), nil
}

// reconstruct adds an error to a prediction, modulo the range.
func (s *scan) reconstruct(p, e int) int {
	step := 2*s.near + 1
	v := p + e*step
	if v < -s.near {
		v += s.span * step
	} else if v > s.maxVal+s.near {
		v -= s.span * step
	}
	return min(max(v, 0), s.maxVal)
}

// runLength decodes the length of a run of at most left samples (T.87, A.7.1).
func (s *scan) runLength(left int, index *int) (int, error) {
	n := 0
	for n < left {
		bit, err := s.r.bits(1)
		if err != nil {
			return 0, err
		}
		if bit == 0 {
			more, err := s.r.bits(runLengths[*index])
			if err != nil {
				return 0, err
			}
			if n += more; n >= left {
				return 0, fmt.Errorf("%w: a run is longer than its row", ErrDamaged)
			}
			return n, nil
		}
		step := 1 << runLengths[*index]
		if step <= left-n {
			*index = min(*index+1, len(runLengths)-1)
		}
		n = min(n+step, left)
	}
	return n, nil
}

// endOfRun decodes the sample that ends a run (T.87, A.7.2), with the value of the run (a)
// and the sample above (b). If equal is set, a sample for which both are equal has a
// context of its own.
func (s *scan) endOfRun(a, b, index int, equal bool) (int, error) {
	kind := 0
	if equal && max(a-b, b-a) <= s.near {
		kind = 1
	}
	t := &s.runs[kind]
	sum := t.a + kind*(t.n>>1)
	k := 0
	for t.n<<k < sum {
		k++
	}
	mapped, err := s.r.golomb(k, s.limit-runLengths[index]-1, s.codeBits)
	if err != nil {
		return 0, err
	}
	v := mapped + kind
	odd := v & 1
	e := (v + odd) / 2
	if (k != 0 || 2*t.negative >= t.n) == (odd == 1) {
		e = -e
	}
	if e < 0 {
		t.negative++
	}
	t.a += (mapped + 1 - kind) >> 1
	if t.n == s.reset {
		t.a >>= 1
		t.n >>= 1
		t.negative >>= 1
	}
	t.n++
	if kind == 1 {
		return s.reconstruct(a, e), nil
	}
	if a > b {
		e = -e
	}
	return s.reconstruct(b, e), nil
}

// reader reads the bits of a scan. After a byte 0xff comes one of 7 bits. It stops at a
// marker.
type reader struct {
	data []byte
	acc  uint64
	n    int
	full bool // the last byte was 0xff
}

func (r *reader) fill() {
	for r.n <= 48 && len(r.data) > 0 {
		b := r.data[0]
		width := 8
		if r.full {
			width = 7 // a byte above 0x7f was a marker
		}
		if b == 0xff && (len(r.data) < 2 || r.data[1] > 0x7f) {
			return
		}
		r.data = r.data[1:]
		r.acc = r.acc<<width | uint64(b)
		r.n += width
		r.full = b == 0xff
	}
}

// bits returns the next n bits, at most 16.
func (r *reader) bits(n int) (int, error) {
	if r.n < n {
		if r.fill(); r.n < n {
			return 0, failures.Truncated()
		}
	}
	r.n -= n
	return int(r.acc >> r.n & (1<<n - 1)), nil
}

// golomb decodes a number by a Golomb code of parameter k that is at most limit bits long
// (T.87, A.5.3).
func (r *reader) golomb(k, limit, codeBits int) (int, error) {
	zeros, most := 0, limit-codeBits-1
	for {
		bit, err := r.bits(1)
		if err != nil {
			return 0, err
		}
		if bit == 1 {
			break
		}
		if zeros++; zeros > most {
			return 0, fmt.Errorf("%w: a code is too long", ErrDamaged)
		}
	}
	if zeros == most {
		v, err := r.bits(codeBits)
		return v + 1, err
	}
	if k > 16 {
		return 0, fmt.Errorf("%w: a code is too long", ErrDamaged)
	}
	v, err := r.bits(k)
	return zeros<<k | v, err
}

// rest returns the file from the next marker on.
func (r *reader) rest() []byte {
	d := r.data
	for len(d) >= 2 && (d[0] != 0xff || d[1] < 0x80 || d[1] == 0xff) {
		d = d[1:]
	}
	return d
}
