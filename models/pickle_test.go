package models

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
)

// A little assembler for pickles.

const stop = "."

func asm(parts ...string) []byte { return []byte("\x80\x02" + strings.Join(parts, "")) }

func str(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

func num(n int) string {
	return "\x8a\x08" + string(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

func name(module, name string) string { return "c" + module + "\n" + name + "\n" }

func tuple(parts ...string) string { return "(" + strings.Join(parts, "") + "t" }

func dict(parts ...string) string { return "}(" + strings.Join(parts, "") + "u" }

func nums(ns ...int) string {
	s := "("
	for _, n := range ns {
		s += num(n)
	}
	return s + "t"
}

func storageID(kind, key string, numel int) string {
	return tuple(str("storage"), name("torch", kind+"Storage"), str(key), str("cpu"), num(numel)) + "Q"
}

func rebuild(storage string, offset int, size, stride string) string {
	return name("torch._utils", "_rebuild_tensor_v2") +
		tuple(storage, num(offset), size, stride, "\x89", name("collections", "OrderedDict")+")R") + "R"
}

func tensor(key string, shape ...int) string {
	n, stride := 1, make([]int, len(shape))
	for i := len(shape) - 1; i >= 0; i-- {
		stride[i] = n
		n *= shape[i]
	}
	return rebuild(storageID("Float", key, n), 0, nums(shape...), nums(stride...))
}

// bounded runs f and fails when it allocates more than limit bytes.
func bounded(t *testing.T, limit uint64, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > limit {
		t.Errorf("%d bytes were allocated, want at most %d", n, limit)
	}
}

func TestUnpickleRefusesAllButPlainDataAndTensors(t *testing.T) {
	okStorage := storageID("Float", "0", 4)
	huge := "\xff\xff\xff\xff"
	for what, c := range map[string]struct {
		data []byte
		want error
	}{
		"os.system":                          {asm(name("os", "system"), tuple(str("id")), "R", stop), ErrUnsafe},
		"posix.system by STACK_GLOBAL":       {asm("\x8c\x05posix\x8c\x06system\x93", tuple(str("id")), "R", stop), ErrUnsafe},
		"eval":                               {asm(name("__builtin__", "eval"), tuple(str("1")), "R", stop), ErrUnsafe},
		"a name only, never called":          {asm(name("os", "system"), stop), ErrUnsafe},
		"a dotted name into an allowed one":  {asm(name("torch._utils", "_rebuild_tensor_v2.__globals__"), stop), ErrUnsafe},
		"an allowed name split elsewhere":    {asm(name("torch", "_utils._rebuild_tensor"), stop), ErrUnsafe},
		"torch.load from bytes":              {asm(name("torch.storage", "_load_from_bytes"), tuple(str("x")), "R", stop), ErrUnsafe},
		"an empty name":                      {asm(name("", ""), stop), ErrUnsafe},
		"INST":                               {asm("(ios\nsystem\n", stop), ErrUnsafe},
		"OBJ":                                {asm("(", name("collections", "OrderedDict"), "o", stop), ErrUnsafe},
		"NEWOBJ":                             {asm(name("collections", "OrderedDict"), ")\x81", stop), ErrUnsafe},
		"NEWOBJ_EX":                          {asm(name("collections", "OrderedDict"), ")}\x92", stop), ErrUnsafe},
		"EXT1":                               {asm("\x82\x01", stop), ErrUnsafe},
		"EXT2":                               {asm("\x83\x01\x00", stop), ErrUnsafe},
		"EXT4":                               {asm("\x84\x01\x00\x00\x00", stop), ErrUnsafe},
		"a set":                              {asm("\x8f", stop), ErrUnsafe},
		"a bytearray":                        {asm("\x96\x00\x00\x00\x00\x00\x00\x00\x00", stop), ErrUnsafe},
		"an out-of-band buffer":              {asm("\x97", stop), ErrUnsafe},
		"BUILD of a tensor":                  {asm(tensor("0", 2), "}b", stop), ErrUnsafe},
		"BUILD of a name":                    {asm(name("collections", "OrderedDict"), "}b", stop), ErrUnsafe},
		"BUILD by a tuple":                   {asm("}", ")b", stop), ErrUnsafe},
		"a str is called":                    {asm(str("os.system"), ")R", stop), ErrUnsafe},
		"a storage type is called":           {asm(name("torch", "FloatStorage"), ")R", stop), ErrUnsafe},
		"PERSID":                             {asm("Pstorage\n", stop), ErrUnsafe},
		"persistent id is a str":             {asm(str("storage"), "Q", stop), ErrUnsafe},
		"persistent id is a module":          {asm(tuple(str("module"), name("torch", "FloatStorage"), str("0"), str("cpu"), num(1)), "Q", stop), ErrUnsafe},
		"persistent id of six parts":         {asm(tuple(str("storage"), name("torch", "FloatStorage"), str("0"), str("cpu"), num(1), "N"), "Q", stop), ErrUnsafe},
		"persistent id with OrderedDict":     {asm(tuple(str("storage"), name("collections", "OrderedDict"), str("0"), str("cpu"), num(1)), "Q", stop), ErrUnsafe},
		"persistent id whose key is a list":  {asm(tuple(str("storage"), name("torch", "FloatStorage"), "]", str("cpu"), num(1)), "Q", stop), ErrUnsafe},
		"a storage of negative size":         {asm(storageID("Float", "0", -1), stop), ErrFormat},
		"a storage of 2^62 elements":         {asm(storageID("Double", "0", 1<<62), stop), ErrFormat},
		"OrderedDict of something":           {asm(name("collections", "OrderedDict"), tuple("]"), "R", stop), ErrFormat},
		"arguments that are a list":          {asm(name("collections", "OrderedDict"), "]R", stop), ErrFormat},
		"a parameter of a dict":              {asm(name("torch._utils", "_rebuild_parameter"), tuple("}", "\x88", "}"), "R", stop), ErrFormat},
		"a tensor of no arguments":           {asm(name("torch._utils", "_rebuild_tensor_v2"), ")R", stop), ErrFormat},
		"a tensor without a storage":         {asm(rebuild(str("0"), 0, nums(1), nums(1)), stop), ErrFormat},
		"a tensor beyond its storage":        {asm(rebuild(okStorage, 0, nums(5), nums(1)), stop), ErrFormat},
		"an offset beyond the storage":       {asm(rebuild(okStorage, 4, nums(1), nums(1)), stop), ErrFormat},
		"a negative offset":                  {asm(rebuild(okStorage, -1, nums(1), nums(1)), stop), ErrFormat},
		"an offset near overflow":            {asm(rebuild(okStorage, 1<<63-1, nums(2), nums(1)), stop), ErrFormat},
		"a stride that overflows":            {asm(rebuild(okStorage, 0, nums(3, 3), nums(1<<62, 1<<62)), stop), ErrFormat},
		"strides that wrap to the start":     {asm(rebuild(okStorage, 0, nums(1<<30, 1<<30), nums(1<<30, 1<<30)), stop), ErrFormat},
		"a negative stride":                  {asm(rebuild(okStorage, 3, nums(2), nums(-1)), stop), ErrFormat},
		"dimensions that overflow":           {asm(rebuild(okStorage, 0, nums(1<<31-1, 1<<31-1, 1<<31-1), nums(0, 0, 0)), stop), ErrFormat},
		"a negative dimension":               {asm(rebuild(okStorage, 0, nums(-2, -2), nums(1, 1)), stop), ErrFormat},
		"too many dimensions":                {asm(rebuild(okStorage, 0, nums(make([]int, 17)...), nums(make([]int, 17)...)), stop), ErrFormat},
		"fewer strides than dimensions":      {asm(rebuild(okStorage, 0, nums(2, 2), nums(1)), stop), ErrFormat},
		"an empty stack":                     {asm("0", stop), ErrFormat},
		"nothing at all":                     {nil, ErrFormat},
		"a stop only":                        {[]byte(stop), ErrFormat},
		"two values":                         {asm("NN", stop), ErrFormat},
		"a mark left open":                   {asm("N(", stop), ErrFormat},
		"a mark that is not there":           {asm("Nt", stop), ErrFormat},
		"values from below a mark":           {asm("N(N\x86", stop), ErrFormat},
		"APPEND to a dict":                   {asm("}Na", stop), ErrFormat},
		"SETITEM in a list":                  {asm("]NNs", stop), ErrFormat},
		"SETITEMS of an odd number":          {asm("}(NNNu", stop), ErrFormat},
		"a dict as a key":                    {asm("}}Ns", stop), ErrFormat},
		"a memo entry that is not there":     {asm("h\x07", stop), ErrFormat},
		"PUT of nothing":                     {asm("q\x00", stop), ErrFormat},
		"protocol 6":                         {[]byte("\x80\x06N."), ErrFormat},
		"an unknown instruction":             {asm("\xf0", stop), ErrFormat},
		"data after the end":                 {asm("N", stop, "N"), ErrFormat},
		"a frame too long":                   {asm("\x95\xff\xff\xff\xff\xff\xff\xff\xff", "N", stop), ErrFormat},
		"BINUNICODE of 4 GB":                 {asm("X"+huge, stop), ErrFormat},
		"BINUNICODE8 of 2^64-1":              {asm("\x8d"+huge+huge, stop), ErrFormat},
		"BINBYTES of 4 GB":                   {asm("B"+huge, stop), ErrFormat},
		"BINBYTES8 of 2^63":                  {asm("\x8e\x00\x00\x00\x00\x00\x00\x00\x80", stop), ErrFormat},
		"LONG4 of 4 GB":                      {asm("\x8b"+huge, stop), ErrFormat},
		"a line without end":                 {asm("cos"), ErrFormat},
		"a whole number of many digits":      {asm("L"+strings.Repeat("9", 100_000)+"L\n", stop), ErrFormat},
		"a word as a number":                 {asm("Ione\n", stop), ErrFormat},
		"a str that is not UTF-8":            {asm("X\x01\x00\x00\x00\xff", stop), ErrFormat},
		"too many marks":                     {asm(strings.Repeat("(", 5000)), ErrTooLarge},
		"too many instructions":              {asm(strings.Repeat("]", maxPickleOps+1)), ErrTooLarge},
		"too many bytes":                     {make([]byte, maxPickleBytes+1), ErrTooLarge},
		"STACK_GLOBAL of numbers":            {asm("K\x01K\x01\x93", stop), ErrFormat},
		"a tensor v3 without a dtype":        {asm(name("torch._utils", "_rebuild_tensor_v3"), tuple(okStorage, num(0), nums(1), nums(1), "\x89", "}", "N"), "R", stop), ErrFormat},
		"the whole thing nested in its args": {asm("(]q\x00h\x00ah\x00t", name("os", "system"), "R", stop), ErrUnsafe},
	} {
		t.Run(what, func(t *testing.T) {
			bounded(t, 64<<20, func() {
				v, err := unpickle(c.data)
				if !errors.Is(err, c.want) {
					t.Errorf("gave %T, %v, want %v", v, err, c.want)
				}
				if err != nil && len(err.Error()) > 400 {
					t.Errorf("the error has %d characters", len(err.Error()))
				}
			})
		})
	}
}

func TestUnpickleBuildsPlainValues(t *testing.T) {
	data := asm("(", "N", "\x88", "\x89", "K\xff", "M\x01\x02", "J\xfe\xff\xff\xff", "\x8a\x00", "\x8a\x01\xff", "\x8a\x02\x00\x80",
		"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00", "I01\n", "I-7\n", "L12L\n", "G\x3f\xf0\x00\x00\x00\x00\x00\x00",
		"\x8c\x02\xc3\xa9", "C\x01\x00", "t", stop)
	v, err := unpickle(data)
	if err != nil {
		t.Fatal(err)
	}
	want := "[<nil> true false 255 513 -2 0 -1 -32768 {} true -7 12 1 é [0]]"
	if got := fmt.Sprint(v); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Values that contain themselves, and values that double with every
// instruction, cost what their instructions cost: nothing walks them.
func TestUnpickleIsNotCaughtByValuesThatContainThemselves(t *testing.T) {
	self := "]q\x00h\x00a"                 // a list that is its own element
	loop := "}q\x01" + str("x") + "h\x01s" // a dict that is its own value
	for what, value := range map[string]string{
		"a list in itself": self, "a dict in itself": loop,
		"a dict in itself as the state": loop + "h\x01b",
		"doubling tuples":               ")q\x02" + strings.Repeat("h\x02\x86q\x02", 60_000),
	} {
		bounded(t, 64<<20, func() {
			_, _ = unpickle(asm(value, stop))
			_, err := Read(zipOf(t, entry{name: "a/data.pkl", data: asm(value, stop)}), Limits{})
			if err == nil {
				t.Errorf("%s: read as a model", what)
			}
		})
	}
	// As the offset, the config or a weight of an otherwise good file.
	for what, data := range map[string][]byte{
		"offset":     asm(name("torch._utils", "_rebuild_tensor_v2"), "(", storageID("Float", "0", 1), self, nums(1), nums(1), "\x89}t", "R", stop),
		"config":     asm(dict(str("model_state_dict"), "}", str("config"), loop), stop),
		"image size": asm(dict(str("model_state_dict"), "}", str("config"), dict(str("image_size"), self)), stop),
		"class name": asm(dict(str("model_state_dict"), "}", str("config"), dict(str("class_names"), self)), stop),
		"weight":     asm(dict(str("model_state_dict"), dict(str("encoder.0.weight"), self)), stop),
		"root":       asm(self, stop),
	} {
		bounded(t, 1<<20, func() {
			if _, err := Read(zipOf(t, entry{name: "a/data.pkl", data: data}), Limits{}); err == nil {
				t.Errorf("%s: read as a model", what)
			}
		})
	}
}

func TestUnpickleOfAFileCutShortIsAFormatError(t *testing.T) {
	data := pickleOf(t, golden(t, "resumable.pt"))
	for n := range data {
		if _, err := unpickle(data[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(data), err)
		}
	}
}

// pickleOf takes data.pkl out of a checkpoint.
func pickleOf(t testing.TB, checkpoint []byte) []byte {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(checkpoint), int64(len(checkpoint)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		if strings.HasSuffix(f.Name, "/data.pkl") {
			rc, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(rc)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	t.Fatal("no data.pkl")
	return nil
}

func FuzzUnpickle(f *testing.F) {
	f.Add(asm(tensor("0", 2, 3), stop))
	f.Add(asm(name("os", "system"), tuple(str("id")), "R", stop))
	f.Add(asm("]q\x00h\x00a", stop))
	f.Add(asm(dict(str("model_state_dict"), dict(str("a"), tensor("1", 1)), str("config"), dict(str("image_size"), num(64))), stop))
	f.Add(pickleOf(f, golden(f, "protocol4.pt")))
	f.Add(pickleOf(f, golden(f, "protocol1.pt")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := unpickle(data); err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsafe) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("an error without a sentinel: %v", err)
		}
	})
}
