package jpeg2000

// mqState is a row of the probability table of the arithmetic decoder (T.800, table C.2).
type mqState struct {
	qe         uint32
	mps, lps   uint8
	switchFlag uint8
}

var mqStates = [47]mqState{
	{0x5601, 1, 1, 1}, {0x3401, 2, 6, 0}, {0x1801, 3, 9, 0}, {0x0ac1, 4, 12, 0}, {0x0521, 5, 29, 0}, {0x0221, 38, 33, 0},
	{0x5601, 7, 6, 1}, {0x5401, 8, 14, 0}, {0x4801, 9, 14, 0}, {0x3801, 10, 14, 0}, {0x3001, 11, 17, 0}, {0x2401, 12, 18, 0},
	{0x1c01, 13, 20, 0}, {0x1601, 29, 21, 0}, {0x5601, 15, 14, 1}, {0x5401, 16, 14, 0}, {0x5101, 17, 15, 0}, {0x4801, 18, 16, 0},
	{0x3801, 19, 17, 0}, {0x3401, 20, 18, 0}, {0x3001, 21, 19, 0}, {0x2801, 22, 19, 0}, {0x2401, 23, 20, 0}, {0x2201, 24, 21, 0},
	{0x1c01, 25, 22, 0}, {0x1801, 26, 23, 0}, {0x1601, 27, 24, 0}, {0x1401, 28, 25, 0}, {0x1201, 29, 26, 0}, {0x1101, 30, 27, 0},
	{0x0ac1, 31, 28, 0}, {0x09c1, 32, 29, 0}, {0x08a1, 33, 30, 0}, {0x0521, 34, 31, 0}, {0x0441, 35, 32, 0}, {0x02a1, 36, 33, 0},
	{0x0221, 37, 34, 0}, {0x0141, 38, 35, 0}, {0x0111, 39, 36, 0}, {0x0085, 40, 37, 0}, {0x0049, 41, 38, 0}, {0x0025, 42, 39, 0},
	{0x0015, 43, 40, 0}, {0x0009, 44, 41, 0}, {0x0005, 45, 42, 0}, {0x0001, 45, 43, 0}, {0x5601, 46, 46, 0},
}

// Contexts of the arithmetic decoder: 9 of zero coding, 5 of signs, 3 of refinement, one
// of runs and a uniform one.
const (
	zeroContext, signContext, refineContext, runContext, uniformContext, contexts = 0, 9, 14, 17, 18, 19
)

// mq is the arithmetic decoder (T.800, annex C). Beyond its data it reads 1 bits, as the
// standard requires.
type mq struct {
	data   []byte
	at     int
	a, c   uint32
	ct     int
	states [contexts]uint8
	mps    [contexts]uint8
}

// resetContexts sets the states at the beginning of a block.
func (m *mq) resetContexts() {
	m.states, m.mps = [contexts]uint8{}, [contexts]uint8{}
	m.states[zeroContext], m.states[runContext], m.states[uniformContext] = 4, 3, 46
}

// start begins with the data of a segment.
func (m *mq) start(data []byte) {
	m.data, m.at = data, 0
	m.c = uint32(m.byteAt(0)) << 16
	m.byteIn()
	m.c <<= 7
	m.ct -= 7
	m.a = 0x8000
}

func (m *mq) byteAt(i int) byte {
	if i < len(m.data) {
		return m.data[i]
	}
	return 0xff
}

func (m *mq) byteIn() {
	if m.byteAt(m.at) == 0xff {
		if next := m.byteAt(m.at + 1); next > 0x8f {
			m.c += 0xff00
			m.ct = 8
		} else {
			m.at++
			m.c += uint32(next) << 9
			m.ct = 7
		}
		return
	}
	m.at++
	m.c += uint32(m.byteAt(m.at)) << 8
	m.ct = 8
}

// decode returns the next bit of a context.
func (m *mq) decode(context int) int {
	s := &mqStates[m.states[context]]
	bit := m.mps[context]
	m.a -= s.qe
	if m.c>>16 < s.qe {
		if m.a < s.qe {
			m.states[context] = s.mps
		} else {
			bit = m.less(context, s)
		}
		m.a = s.qe
		m.renormalize()
		return int(bit)
	}
	m.c -= s.qe << 16
	if m.a&0x8000 != 0 {
		return int(bit)
	}
	if m.a < s.qe {
		bit = m.less(context, s)
	} else {
		m.states[context] = s.mps
	}
	m.renormalize()
	return int(bit)
}

// less returns the less probable bit and changes the context's state.
func (m *mq) less(context int, s *mqState) uint8 {
	bit := 1 - m.mps[context]
	m.mps[context] ^= s.switchFlag
	m.states[context] = s.lps
	return bit
}

func (m *mq) renormalize() {
	for {
		if m.ct == 0 {
			m.byteIn()
		}
		m.a <<= 1
		m.c <<= 1
		m.ct--
		if m.a&0x8000 != 0 {
			return
		}
	}
}

// rawBits reads the bits of passes without arithmetic coding. After a byte 0xff comes one
// of 7 bits. Beyond its data it reads 1 bits.
type rawBits struct {
	data []byte
	cur  byte
	left int
}

func (r *rawBits) bit() int {
	if r.left == 0 {
		r.left = 8
		if r.cur == 0xff {
			r.left = 7
		}
		r.cur = 0xff
		if len(r.data) > 0 {
			r.cur, r.data = r.data[0], r.data[1:]
		}
	}
	r.left--
	return int(r.cur >> r.left & 1)
}
