package dataset

import (
	"bufio"
	"errors"
	"io"
	"math/bits"
)

// deflate64 is the zip method of Deflate64, by which Windows Explorer packs files above
// 2 GB.
const deflate64 = 9

// errDeflate64 is returned for a damaged stream.
var errDeflate64 = errors.New("damaged Deflate64 data")

const (
	// windowBytes is the largest distance of a match.
	windowBytes = 1 << 16
	// chunkBytes is the number of bytes that are decoded ahead of a Read.
	chunkBytes = 1 << 15

	maxCodeBits  = 15
	fastCodeBits = 9
	endOfBlock   = 256
	lengthCodes  = 286
	distCodes    = 32
)

// inflater64 decodes Deflate64: Deflate (RFC 1951) with a window of 64 KiB, two more
// codes for distances, and 16 extra bits for the last code for lengths. It takes about
// 100 KiB of memory, whatever the stream.
type inflater64 struct {
	in      *bufio.Reader
	pending uint64 // bits that were read from in
	n       uint   // number of them

	window  [windowBytes]byte
	written int64 // bytes decoded
	read    int64 // bytes returned by Read

	last   bool // the current block is the last
	block  func() error
	stored int // bytes left in a stored block
	length int // bytes left of a match
	dist   int
	err    error

	literals, distances huffman
}

func newInflater64(r io.Reader) io.ReadCloser {
	z := &inflater64{in: bufio.NewReader(r)}
	z.block = z.header
	return z
}

func (z *inflater64) Close() error { return nil }

func (z *inflater64) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for z.written == z.read {
		if z.err != nil {
			return 0, z.err
		}
		for z.err == nil && z.room() > 0 {
			z.err = z.block()
		}
	}
	at := int(z.read % windowBytes)
	n := copy(p, z.window[at:min(windowBytes, at+int(z.written-z.read))])
	z.read += int64(n)
	return n, nil
}

// room returns the number of bytes to decode before the next Read.
func (z *inflater64) room() int { return chunkBytes - int(z.written-z.read) }

func (z *inflater64) put(b byte) {
	z.window[z.written%windowBytes] = b
	z.written++
}

// load reads a byte of the input.
func (z *inflater64) load() error {
	b, err := z.in.ReadByte()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	z.pending |= uint64(b) << z.n
	z.n += 8
	return nil
}

// take returns the next n bits, at most 16.
func (z *inflater64) take(n uint) (int, error) {
	for z.n < n {
		if err := z.load(); err != nil {
			return 0, err
		}
	}
	v := int(z.pending & (1<<n - 1))
	z.pending >>= n
	z.n -= n
	return v, nil
}

// header begins a block.
func (z *inflater64) header() error {
	if z.last {
		return io.EOF
	}
	v, err := z.take(3)
	if err != nil {
		return err
	}
	z.last = v&1 != 0
	switch v >> 1 {
	case 0:
		return z.beginStored()
	case 1:
		z.literals.init(fixedLiterals)
		z.distances.init(fixedDistances)
		z.block = z.codes
		return nil
	case 2:
		z.block = z.codes
		return z.readCodes()
	}
	return errDeflate64
}

func (z *inflater64) beginStored() error {
	if _, err := z.take(z.n % 8); err != nil {
		return err
	}
	n, err := z.take(16)
	if err != nil {
		return err
	}
	complement, err := z.take(16)
	if err != nil {
		return err
	}
	if n != complement^0xffff {
		return errDeflate64
	}
	z.stored, z.block = n, z.copyStored
	return nil
}

func (z *inflater64) copyStored() error {
	for n := min(z.stored, z.room()); n > 0; n-- {
		b, err := z.take(8)
		if err != nil {
			return err
		}
		z.put(byte(b))
		z.stored--
	}
	if z.stored == 0 {
		z.block = z.header
	}
	return nil
}

// codes decodes literals and matches.
func (z *inflater64) codes() error {
	for z.room() > 0 {
		if z.length > 0 {
			for n := min(z.length, z.room()); n > 0; n-- {
				z.put(z.window[(z.written-int64(z.dist))%windowBytes])
				z.length--
			}
			continue
		}
		symbol, err := z.decode(&z.literals)
		switch {
		case err != nil:
			return err
		case symbol < endOfBlock:
			z.put(byte(symbol))
		case symbol == endOfBlock:
			z.block = z.header
			return nil
		default:
			if err := z.match(symbol - endOfBlock - 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// match reads the rest of a match.
func (z *inflater64) match(code int) error {
	if code >= len(lengthBases) {
		return errDeflate64
	}
	extra, err := z.take(lengthBits[code])
	if err != nil {
		return err
	}
	symbol, err := z.decode(&z.distances)
	if err != nil {
		return err
	}
	far, err := z.take(distBits[symbol])
	if err != nil {
		return err
	}
	z.length, z.dist = lengthBases[code]+extra, distBases[symbol]+far
	if int64(z.dist) > z.written {
		return errDeflate64
	}
	return nil
}

// readCodes reads the Huffman codes of a block.
func (z *inflater64) readCodes() error {
	order := [...]int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	v, err := z.take(14)
	if err != nil {
		return err
	}
	literals, distances, n := 257+v&31, 1+v>>5&31, 4+v>>10
	if literals > lengthCodes {
		return errDeflate64
	}
	var sizes [len(order)]byte
	for _, at := range order[:n] {
		size, err := z.take(3)
		if err != nil {
			return err
		}
		sizes[at] = byte(size)
	}
	if !z.literals.init(sizes[:]) {
		return errDeflate64
	}
	var lengths [lengthCodes + distCodes]byte
	for i := 0; i < literals+distances; {
		symbol, err := z.decode(&z.literals)
		if err != nil {
			return err
		}
		if symbol < 16 {
			lengths[i] = byte(symbol)
			i++
			continue
		}
		width, least := uint(2), 3
		value := byte(0)
		switch symbol {
		case 16:
			if i == 0 {
				return errDeflate64
			}
			value = lengths[i-1]
		case 17:
			width = 3
		default:
			width, least = 7, 11
		}
		repeat, err := z.take(width)
		if err != nil {
			return err
		}
		if repeat += least; i+repeat > literals+distances {
			return errDeflate64
		}
		for ; repeat > 0; repeat-- {
			lengths[i] = value
			i++
		}
	}
	if lengths[endOfBlock] == 0 || !z.literals.init(lengths[:literals]) || !z.distances.init(lengths[literals:literals+distances]) {
		return errDeflate64
	}
	return nil
}

// huffman is a canonical Huffman code.
type huffman struct {
	count   [maxCodeBits + 1]int
	symbols [lengthCodes + 2]uint16
	// fast has symbol<<4 | length for the codes of up to fastCodeBits bits, by the next
	// bits of the input; 0 for longer codes.
	fast [1 << fastCodeBits]uint16
}

// init sets the code from the lengths of the symbols' codes. It reports whether they are
// a code: a complete one, one of a single symbol, or an empty one.
func (h *huffman) init(lengths []byte) bool {
	clear(h.count[:])
	clear(h.fast[:])
	for _, n := range lengths {
		h.count[n]++
	}
	used := len(lengths) - h.count[0]
	h.count[0] = 0
	left := 1
	var first, next [maxCodeBits + 2]int // first symbol and first code of each length
	for n := 1; n <= maxCodeBits; n++ {
		left = left<<1 - h.count[n]
		if left < 0 {
			return false
		}
		first[n+1] = first[n] + h.count[n]
		next[n+1] = (next[n] + h.count[n]) << 1
	}
	if left > 0 && used > 1 {
		return false
	}
	for symbol, n := range lengths {
		if n == 0 {
			continue
		}
		h.symbols[first[n]] = uint16(symbol)
		first[n]++
		code := next[n]
		next[n]++
		if n > fastCodeBits {
			continue
		}
		for i := int(bits.Reverse16(uint16(code)) >> (16 - n)); i < len(h.fast); i += 1 << n {
			h.fast[i] = uint16(symbol)<<4 | uint16(n)
		}
	}
	return true
}

// decode returns the next symbol.
func (z *inflater64) decode(h *huffman) (int, error) {
	for z.n < fastCodeBits {
		if z.load() != nil {
			break // the code may be shorter
		}
	}
	if e := h.fast[z.pending&(1<<fastCodeBits-1)]; e != 0 && uint(e&15) <= z.n {
		z.pending >>= e & 15
		z.n -= uint(e & 15)
		return int(e >> 4), nil
	}
	code, first, index := 0, 0, 0
	for n := 1; n <= maxCodeBits; n++ {
		bit, err := z.take(1)
		if err != nil {
			return 0, err
		}
		code |= bit
		if count := h.count[n]; code-first < count {
			return int(h.symbols[index+code-first]), nil
		}
		index += h.count[n]
		first = (first + h.count[n]) << 1
		code <<= 1
	}
	return 0, errDeflate64
}

// The bases and the numbers of extra bits of lengths and distances.
var (
	lengthBases = [...]int{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 3}
	lengthBits  = [...]uint{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 16}
	distBases   = [distCodes]int{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073,
		4097, 6145, 8193, 12289, 16385, 24577, 32769, 49153}
	distBits = [distCodes]uint{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14}

	fixedLiterals = func() []byte {
		lengths := make([]byte, lengthCodes+2)
		for i := range lengths {
			switch {
			case i < 144, i >= 280:
				lengths[i] = 8
			case i < 256:
				lengths[i] = 9
			default:
				lengths[i] = 7
			}
		}
		return lengths
	}()
	fixedDistances = func() []byte {
		lengths := make([]byte, distCodes)
		for i := range lengths {
			lengths[i] = 5
		}
		return lengths
	}()
)
