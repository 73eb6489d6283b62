package hostile

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// A little assembler for pickles. Each function gives the instructions that
// push one value.

// Stop ends a pickle.
const Stop = "."

// Asm is a pickle of protocol 2 of these instructions.
func Asm(parts ...string) []byte { return []byte("\x80\x02" + strings.Join(parts, "")) }

// Str pushes a string.
func Str(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

// Num pushes a whole number.
func Num(n int) string {
	return "\x8a\x08" + string(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

// Name pushes what a module has under a name.
func Name(module, name string) string { return "c" + module + "\n" + name + "\n" }

// Tuple pushes a tuple.
func Tuple(parts ...string) string { return "(" + strings.Join(parts, "") + "t" }

// Dict pushes a dict of keys and values in turn.
func Dict(parts ...string) string { return "}(" + strings.Join(parts, "") + "u" }

// Nums pushes a tuple of whole numbers.
func Nums(ns ...int) string {
	s := "("
	for _, n := range ns {
		s += Num(n)
	}
	return s + "t"
}

// Storage pushes a storage of so many elements of a kind, such as Float, whose
// bytes are the file of that key.
func Storage(kind, key string, numel int) string {
	return Tuple(Str("storage"), Name("torch", kind+"Storage"), Str(key), Str("cpu"), Num(numel)) + "Q"
}

// Rebuild pushes a tensor over a storage.
func Rebuild(storage string, offset int, size, stride string) string {
	return Name("torch._utils", "_rebuild_tensor_v2") +
		Tuple(storage, Num(offset), size, stride, "\x89", Name("collections", "OrderedDict")+")R") + "R"
}

// Tensor pushes a dense float32 tensor with a storage of its own.
func Tensor(key string, shape ...int) string {
	n, stride := 1, make([]int, len(shape))
	for i := len(shape) - 1; i >= 0; i-- {
		stride[i] = n
		n *= shape[i]
	}
	return Rebuild(Storage("Float", key, n), 0, Nums(shape...), Nums(stride...))
}

// Parameter is a weight or bias of the smallest network there is, 3-1 and back.
type Parameter struct {
	Name  string
	Shape []int
}

// Size is the number of its elements.
func (p Parameter) Size() int {
	n := 1
	for _, d := range p.Shape {
		n *= d
	}
	return n
}

// Parameters are those of the smallest network, 58 numbers in all.
var Parameters = []Parameter{
	{"encoder.0.weight", []int{1, 3, 3, 3}},
	{"encoder.0.bias", []int{1}},
	{"decoder.0.weight", []int{1, 3, 3, 3}},
	{"decoder.0.bias", []int{3}},
}

// State pushes the state dict of the smallest network, one storage each.
func State() string {
	var parts []string
	for i, p := range Parameters {
		parts = append(parts, Str(p.Name), Tensor(fmt.Sprint(i), p.Shape...))
	}
	return Dict(parts...)
}

// Config pushes the config of a checkpoint for images of 64×64 pixels.
func Config() string { return Dict(Str("image_size"), Num(64), Str("input_channels"), Num(3)) }
