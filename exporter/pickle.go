package exporter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// pickler writes pickle protocol 2 with only the instructions that PyTorch 1.13, the first
// version with weights_only=True, accepts. That version rejects floats (PyTorch issue
// 94670), so floats are written as text. The memo, which is optional, is not used.
type pickler struct{ out bytes.Buffer }

func newPickler() *pickler {
	p := new(pickler)
	p.op(0x80, 2)
	return p
}

func (p *pickler) op(b ...byte) { p.out.Write(b) }

func (p *pickler) global(module, name string) {
	p.op('c')
	p.out.WriteString(module + "\n" + name + "\n")
}

func (p *pickler) text(s string) {
	s = strings.ToValidUTF8(s, "\uFFFD")
	p.op('X')
	p.op(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))...)
	p.out.WriteString(s)
}

// integer writes BININT1 for a byte and BININT, 32 bits, for other numbers. The limits on
// an architecture keep all sizes within 32 bits.
func (p *pickler) integer(v int) {
	if v >= 0 && v <= math.MaxUint8 {
		p.op('K', byte(v))
		return
	}
	p.op('J')
	p.op(binary.LittleEndian.AppendUint32(nil, uint32(int32(v)))...)
}

// decimal returns the shortest text that parses as v.
func decimal(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func (p *pickler) tuple(vs ...int) {
	p.op('(')
	for _, v := range vs {
		p.integer(v)
	}
	p.op('t')
}

// plain writes a value of a supported type: a number, text, or a list or dictionary of
// them.
func (p *pickler) plain(v any) {
	switch v := v.(type) {
	case int:
		p.integer(v)
	case float64:
		p.text(decimal(v))
	case string:
		p.text(v)
	case []int:
		p.op(']', '(')
		for _, e := range v {
			p.integer(e)
		}
		p.op('e')
	case []string:
		p.op(']', '(')
		for _, e := range v {
			p.text(e)
		}
		p.op('e')
	case [][2]any:
		p.op('}', '(')
		for _, e := range v {
			p.plain(e[0])
			p.plain(e[1])
		}
		p.op('u')
	default:
		panic(fmt.Sprintf("exporter: %T in a checkpoint's config", v))
	}
}

// tensor writes a call of torch._utils._rebuild_tensor_v2 for a contiguous float32 tensor
// with a storage of its own, the zip entry data/key.
func (p *pickler) tensor(key string, shape []int) {
	size, stride := 1, make([]int, len(shape))
	for i := len(shape) - 1; i >= 0; i-- {
		stride[i] = size
		size *= shape[i]
	}
	p.global("torch._utils", "_rebuild_tensor_v2")
	p.op('(', '(')
	p.text("storage")
	p.global("torch", "FloatStorage")
	p.text(key)
	p.text("cpu")
	p.integer(size)
	p.op('t', 'Q') // the persistent id of the storage
	p.integer(0)   // offset
	p.tuple(shape...)
	p.tuple(stride...)
	p.op(0x89) // requires_grad
	p.global("collections", "OrderedDict")
	p.op(')', 'R', 't', 'R') // backward_hooks, then the call
}
