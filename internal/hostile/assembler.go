package hostile

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// This file is a small assembler for pickles. Each function returns the instructions
// that push one value.

// Stop is the instruction that ends a pickle.
const Stop = "."

// Asm returns a pickle of protocol 2 with these instructions.
func Asm(parts ...string) []byte { return []byte("\x80\x02" + strings.Join(parts, "")) }

// Str returns instructions that push a string.
func Str(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

// Num returns instructions that push an integer.
func Num(n int) string {
	return "\x8a\x08" + string(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

// Name returns instructions that push a global of a module.
func Name(module, name string) string { return "c" + module + "\n" + name + "\n" }

// Tuple returns instructions that push a tuple.
func Tuple(parts ...string) string { return "(" + strings.Join(parts, "") + "t" }

// Dict returns instructions that push a dict of alternating keys and values.
func Dict(parts ...string) string { return "}(" + strings.Join(parts, "") + "u" }

// Nums returns instructions that push a tuple of integers.
func Nums(ns ...int) string {
	s := "("
	for _, n := range ns {
		s += Num(n)
	}
	return s + "t"
}

// Storage returns instructions that push a storage of numel elements of a kind, such as
// Float, whose bytes are in the file data/<key>.
func Storage(kind, key string, numel int) string {
	return Tuple(Str("storage"), Name("torch", kind+"Storage"), Str(key), Str("cpu"), Num(numel)) + "Q"
}

// Rebuild returns instructions that push a tensor, a view of a storage.
func Rebuild(storage string, offset int, size, stride string) string {
	return Name("torch._utils", "_rebuild_tensor_v2") +
		Tuple(storage, Num(offset), size, stride, "\x89", Name("collections", "OrderedDict")+")R") + "R"
}

// Tensor returns instructions that push a dense float32 tensor with its own storage.
func Tensor(key string, shape ...int) string {
	n, stride := 1, make([]int, len(shape))
	for i := len(shape) - 1; i >= 0; i-- {
		stride[i] = n
		n *= shape[i]
	}
	return Rebuild(Storage("Float", key, n), 0, Nums(shape...), Nums(stride...))
}

// Parameter is a weight or bias of the smallest network, 3-1 and back.
type Parameter struct {
	Name  string
	Shape []int
}

// Size returns the number of elements.
func (p Parameter) Size() int {
	n := 1
	for _, d := range p.Shape {
		n *= d
	}
	return n
}

// Parameters are the parameters of the smallest network, with 58 elements.
var Parameters = []Parameter{
	{"encoder.0.weight", []int{1, 3, 3, 3}},
	{"encoder.0.bias", []int{1}},
	{"decoder.0.weight", []int{1, 3, 3, 3}},
	{"decoder.0.bias", []int{3}},
}

// State returns instructions that push the state dict of the smallest network, with one
// storage for each parameter.
func State() string {
	var parts []string
	for i, p := range Parameters {
		parts = append(parts, Str(p.Name), Tensor(fmt.Sprint(i), p.Shape...))
	}
	return Dict(parts...)
}

// Config returns instructions that push a checkpoint's config for images of 64×64
// pixels.
func Config() string { return Dict(Str("image_size"), Num(64), Str("input_channels"), Num(3)) }
