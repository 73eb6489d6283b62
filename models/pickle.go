package models

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of a pickle. A checkpoint of the default network takes about 500
// instructions and 4 KB; class names and metadata add to that. maxPickleBytes and
// maxPickleOps together bound the memory: each instruction creates at most one value
// of fixed size, and a string is no longer than its bytes in the pickle.
const (
	maxPickleBytes = 2 * MaxMetadataBytes
	maxPickleOps   = 1 << 18
	maxPickleMarks = 1 << 10
	maxDims        = 16
	maxElements    = math.MaxInt32
)

// unpickler interprets a pickle in a flat loop over instructions. It never recurses,
// however deeply the values nest.
type unpickler struct {
	data  []byte
	pos   int
	start int // offset of the current instruction, for error messages
	stack []any
	marks []int
	memo  map[uint64]any
}

// unpickle interprets a pickle of protocol 1 to 5, as torch.save writes it, and
// returns plain data and descriptions of tensors. It returns ErrUnsafe, wrapped, when
// the pickle contains anything else, ErrTooLarge when it exceeds the limits above,
// and ErrFormat when it is damaged.
func unpickle(data []byte) (any, error) {
	if len(data) > maxPickleBytes {
		return nil, fmt.Errorf("%w: a pickle of %d bytes, at most %d are read", ErrTooLarge, len(data), maxPickleBytes)
	}
	p := &unpickler{data: data, memo: make(map[uint64]any)}
	for ops := 0; ; ops++ {
		if ops == maxPickleOps {
			return nil, fmt.Errorf("%w: a pickle of more than %d instructions", ErrTooLarge, maxPickleOps)
		}
		p.start = p.pos
		op, err := p.take(1)
		if err != nil {
			return nil, err
		}
		if op[0] == '.' {
			break
		}
		if err := p.execute(op[0]); err != nil {
			return nil, err
		}
	}
	if len(p.stack) != 1 || len(p.marks) != 0 {
		return nil, p.damaged("it ends with %d values and %d marks on the stack, expected one value", len(p.stack), len(p.marks))
	}
	if p.pos != len(data) {
		return nil, p.damaged("%d bytes follow its end", len(data)-p.pos)
	}
	return p.stack[0], nil
}

// damaged returns ErrFormat, wrapped with the offset of the current instruction.
func (p *unpickler) damaged(format string, args ...any) error {
	return fmt.Errorf("%w: the pickle is damaged at byte %d: %s", ErrFormat, p.start, fmt.Sprintf(format, args...))
}

// unsafe returns ErrUnsafe, wrapped with the offset of the current instruction.
func (p *unpickler) unsafe(format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d of the pickle, %s", ErrUnsafe, p.start, fmt.Sprintf(format, args...))
}

// take returns the next n bytes, without a copy.
func (p *unpickler) take(n uint64) ([]byte, error) {
	if left := uint64(len(p.data) - p.pos); n > left {
		return nil, p.damaged("expected %d more bytes, found %d", n, left)
	}
	b := p.data[p.pos : p.pos+int(n)]
	p.pos += int(n)
	return b, nil
}

// uint reads a little-endian number of size bytes, at most 8.
func (p *unpickler) uint(size uint64) (uint64, error) {
	b, err := p.take(size)
	if err != nil {
		return 0, err
	}
	var full [8]byte
	copy(full[:], b)
	return binary.LittleEndian.Uint64(full[:]), nil
}

// line returns the bytes up to the next line end, which it skips.
func (p *unpickler) line() (string, error) {
	n := bytes.IndexByte(p.data[p.pos:], '\n')
	if n < 0 {
		return "", p.damaged("a line without an end")
	}
	s := string(p.data[p.pos : p.pos+n])
	p.pos += n + 1
	return s, nil
}

// push pushes a value. Its error is always nil.
func (p *unpickler) push(v any) error {
	p.stack = append(p.stack, v)
	return nil
}

// floor returns the stack height at the last mark, below which no value may be popped.
func (p *unpickler) floor() int {
	if len(p.marks) == 0 {
		return 0
	}
	return p.marks[len(p.marks)-1]
}

// pop removes and returns the top value.
func (p *unpickler) pop() (any, error) {
	v, err := p.top()
	if err == nil {
		p.stack[len(p.stack)-1] = nil
		p.stack = p.stack[:len(p.stack)-1]
	}
	return v, err
}

// top returns the top value. It returns ErrFormat, wrapped, when there is none above
// the last mark.
func (p *unpickler) top() (any, error) {
	if len(p.stack) <= p.floor() {
		return nil, p.damaged("the stack is empty")
	}
	return p.stack[len(p.stack)-1], nil
}

// sinceMark removes the last mark and the values above it, and returns the values.
func (p *unpickler) sinceMark() ([]any, error) {
	if len(p.marks) == 0 {
		return nil, p.damaged("no mark on the stack")
	}
	return p.popN(len(p.stack)-p.floor(), true)
}

// popN removes and returns the last n values, and also removes the last mark when mark
// is set.
func (p *unpickler) popN(n int, mark bool) ([]any, error) {
	if n > len(p.stack)-p.floor() {
		return nil, p.damaged("expected %d values on the stack, found %d", n, len(p.stack)-p.floor())
	}
	at := len(p.stack) - n
	items := append([]any(nil), p.stack[at:]...)
	clear(p.stack[at:])
	p.stack = p.stack[:at]
	if mark {
		p.marks = p.marks[:len(p.marks)-1]
	}
	return items, nil
}

// execute executes one instruction.
func (p *unpickler) execute(op byte) error {
	switch op {
	case 0x80: // PROTO
		v, err := p.uint(1)
		if err == nil && v > 5 {
			err = p.damaged("protocol %d, expected at most 5", v)
		}
		return err
	case 0x95: // FRAME
		n, err := p.uint(8)
		if left := uint64(len(p.data) - p.pos); err == nil && n > left {
			err = p.damaged("a frame of %d bytes, found %d", n, left)
		}
		return err
	case '(': // MARK
		if len(p.marks) == maxPickleMarks {
			return fmt.Errorf("%w: a pickle with more than %d marks open", ErrTooLarge, maxPickleMarks)
		}
		p.marks = append(p.marks, len(p.stack))
		return nil
	case 'N':
		return p.push(nil)
	case 0x88: // NEWTRUE
		return p.push(true)
	case 0x89: // NEWFALSE
		return p.push(false)
	case '}':
		return p.push(&pickleDict{})
	case ']':
		return p.push(&pickleList{})
	case ')':
		return p.push(pickleTuple{})
	case 'J', 'K', 'M', 0x8a, 0x8b, 'G', 'I', 'L':
		return p.number(op)
	case 'X', 0x8c, 0x8d, 'C', 'B', 0x8e:
		return p.text(op)
	case 't', 0x85, 0x86, 0x87, 'a', 'e', 's', 'u':
		return p.collect(op)
	case 'q', 'r', 0x94, 'h', 'j':
		return p.memoize(op)
	case 'c', 0x93, 'R', 'b', 'Q':
		return p.construct(op)
	}
	if name, ok := refusedOps[op]; ok {
		return p.unsafe("%s creates an object, expected plain data and tensors", name)
	}
	return p.damaged("0x%02x is not an instruction of a checkpoint", op)
}

// number executes an instruction that pushes a number.
func (p *unpickler) number(op byte) error {
	switch op {
	case 'K', 'M', 'J': // BININT1, BININT2, BININT
		size := map[byte]uint64{'K': 1, 'M': 2, 'J': 4}[op]
		v, err := p.uint(size)
		if err != nil {
			return err
		}
		if op == 'J' {
			return p.push(int64(int32(v)))
		}
		return p.push(int64(v))
	case 0x8a, 0x8b: // LONG1, LONG4
		size := uint64(1)
		if op == 0x8b {
			size = 4
		}
		n, err := p.uint(size)
		if err != nil {
			return err
		}
		b, err := p.take(n)
		if err != nil {
			return err
		}
		if n > 8 {
			return p.push(pickleLong{})
		}
		var v int64
		for i, c := range b {
			v |= int64(c) << (8 * i)
		}
		if unused := 64 - 8*n; n > 0 && n < 8 {
			v = v << unused >> unused // extend the sign of the last byte
		}
		return p.push(v)
	case 'G': // BINFLOAT
		b, err := p.take(8)
		if err != nil {
			return err
		}
		return p.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	}
	// INT and LONG, in decimal digits; protocol 1 writes bools as 00 and 01.
	s, err := p.line()
	switch {
	case err != nil:
		return err
	case op == 'I' && (s == "00" || s == "01"):
		return p.push(s == "01")
	case len(s) > 20:
		return p.damaged("a number of %d digits", len(s))
	}
	v, err := strconv.ParseInt(strings.TrimSuffix(s, "L"), 10, 64)
	if err != nil {
		return p.damaged("%.30q is not a whole number of 64 bits", s)
	}
	return p.push(v)
}

// text executes an instruction that pushes a string or bytes.
func (p *unpickler) text(op byte) error {
	size := map[byte]uint64{'X': 4, 0x8c: 1, 0x8d: 8, 'C': 1, 'B': 4, 0x8e: 8}[op]
	n, err := p.uint(size)
	if err != nil {
		return err
	}
	b, err := p.take(n)
	if err != nil {
		return err
	}
	if op == 'C' || op == 'B' || op == 0x8e {
		return p.push(b)
	}
	if !utf8.Valid(b) {
		return p.damaged("a string of %d bytes is not UTF-8", n)
	}
	return p.push(string(b))
}

// memoize executes an instruction that stores the top value in the memo or pushes a
// value from it.
func (p *unpickler) memoize(op byte) error {
	var at uint64
	switch op {
	case 0x94: // MEMOIZE
		at = uint64(len(p.memo))
	default:
		size := uint64(1)
		if op == 'r' || op == 'j' {
			size = 4
		}
		var err error
		if at, err = p.uint(size); err != nil {
			return err
		}
	}
	if op == 'h' || op == 'j' { // BINGET, LONG_BINGET
		v, ok := p.memo[at]
		if !ok {
			return p.damaged("the memo has no entry %d", at)
		}
		return p.push(v)
	}
	v, err := p.top()
	if err == nil {
		p.memo[at] = v
	}
	return err
}

// collect executes an instruction that builds a tuple or adds values to a list or a
// dict.
func (p *unpickler) collect(op byte) error {
	var items []any
	var err error
	switch op {
	case 0x85, 0x86, 0x87: // TUPLE1, TUPLE2, TUPLE3
		items, err = p.popN(int(op-0x84), false)
	case 'a': // APPEND
		items, err = p.popN(1, false)
	case 's': // SETITEM
		items, err = p.popN(2, false)
	default: // TUPLE, APPENDS, SETITEMS
		items, err = p.sinceMark()
	}
	if err != nil {
		return err
	}
	switch op {
	case 't', 0x85, 0x86, 0x87:
		return p.push(pickleTuple(items))
	case 'a', 'e':
		v, err := p.top()
		if err != nil {
			return err
		}
		list, ok := v.(*pickleList)
		if !ok {
			return p.damaged("values are appended to a %s", typeName(v))
		}
		list.items = append(list.items, items...)
		return nil
	}
	v, err := p.top()
	if err != nil {
		return err
	}
	dict, ok := v.(*pickleDict)
	if !ok || len(items)%2 != 0 {
		return p.damaged("%d keys and values are set in a %s", len(items), typeName(v))
	}
	for i := 0; i < len(items); i += 2 {
		if err := dict.set(items[i], items[i+1]); err != nil {
			return p.damaged("%v", err)
		}
	}
	return nil
}
