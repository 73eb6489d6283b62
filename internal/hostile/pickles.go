package hostile

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// ExtensionCode is the code in pickles with EXT instructions. Python must register
// os.system under it.
const ExtensionCode = 0x7f

// pickles returns the files with a malicious or damaged pickle, in an otherwise valid
// checkpoint.
func pickles(canary string) []File {
	var files []File
	for _, f := range slices.Concat(executing(canary), naming(), wrongTensors(), exhausting(), damaged(), truncated()) {
		f.Class = Pickle
		if f.Data == nil {
			f.Data = Checkpoint(f.Pickle)
		}
		files = append(files, f)
	}
	return files
}

// executing returns pickles that run code when Python loads them.
func executing(canary string) []File {
	command := Str("touch '" + canary + "'")
	system := Name("os", "system")
	python := fmt.Sprintf("open(%q, 'w').close()", canary)
	call := system + Tuple(command) + "R"
	lazily := Name("builtins", "map") + "(" + system + "]" + command + "at"
	var files []File
	add := func(name string, pickle []byte) {
		files = append(files, File{Name: name, Want: Unsafe, Pickle: pickle, RunsCode: true})
	}
	add("os.system by GLOBAL", Asm(call, Stop))
	add("os.system by STACK_GLOBAL", []byte("\x80\x04\x8c\x02os\x8c\x06system\x93"+Tuple(command)+"R."))
	add("os.system in protocol 0", []byte("cos\nsystem\n(S\"touch '"+canary+"'\"\ntR."))
	add("eval", Asm(Name("builtins", "eval"), Tuple(Str(python)), "R", Stop))
	add("exec by its name in Python 2", Asm(Name("__builtin__", "exec"), Tuple(Str(python)), "R", Stop))
	add("a file opened for writing", Asm(Name("io", "open"), Tuple(Str(canary), Str("w")), "R", Stop))
	add("subprocess.call", Asm(Name("subprocess", "call"), Tuple("]("+Str("touch")+Str(canary)+"e"), "R", Stop))
	add("timeit.timeit", Asm(Name("timeit", "timeit"), Tuple(Str(python), Str("pass"), Name("time", "perf_counter"), Num(1)), "R", Stop))
	add("runpy", Asm(Name("runpy", "_run_code"), Tuple(Str(python), "}"), "R", Stop))
	add("a partial function that is called", Asm(Name("functools", "partial"), Tuple(system, command), "R", ")R", Stop))
	add("an attribute of a module by getattr", Asm(Name("builtins", "getattr"),
		Tuple(Name("builtins", "__import__")+Tuple(Str("os"))+"R", Str("system")), "R", Tuple(command), "R", Stop))
	add("INST", Asm("(", command, "ios\nsystem\n", Stop))
	add("OBJ", Asm("(", system, command, "o", Stop))
	add("NEWOBJ of an iterator that calls", Asm(Name("builtins", "bytes"), "(", lazily, "\x81t\x81", Stop))
	add("NEWOBJ_EX of an iterator that calls", Asm(Name("builtins", "bytes"), "(", lazily, "}\x92t}\x92", Stop))
	add("BUILD by a __setstate__ that BUILD has set", Asm(Name("argparse", "Namespace"), ")\x81",
		Dict(Str("__setstate__"), system), "b", command, "b", Stop))
	add("EXT1", Asm("\x82", string([]byte{ExtensionCode}), Tuple(command), "R", Stop))
	add("EXT2", Asm("\x83", string([]byte{ExtensionCode, 0}), Tuple(command), "R", Stop))
	add("EXT4", Asm("\x84", string([]byte{ExtensionCode, 0, 0, 0}), Tuple(command), "R", Stop))

	// These leave no trace in the result, so a check of the result cannot detect them.
	good := Dict(Str("model_state_dict"), "}", Str("config"), "}")
	add("a call whose result is dropped", Asm(call, "0", good, Stop))
	add("a call in a config", Asm(Dict(Str("model_state_dict"), "}", Str("config"), Dict(Str("image_size"), call)), Stop))
	add("a call in an ignored entry", Asm(Dict(Str("model_state_dict"), "}", Str("optimizer"), "]"+call+"a"), Stop))
	add("a call in the memo", Asm(call, "q\x07", "0", good, Stop))
	add("a call in a frame", []byte("\x80\x04\x95"+string(binary.LittleEndian.AppendUint64(nil, uint64(len(call)+1)))+call+Stop))
	add("a call in a key", Asm("}", call, "Ns", Stop))

	bare := Asm(call, Stop)
	files = append(files,
		File{Name: "os.system without a zip around it", Want: Format, Data: bare, Pickle: bare, RunsCode: true},
		File{Name: "os.system in the checkpoint of a training's zip", Want: Unsafe, Pickle: bare, RunsCode: true,
			Data: Pack(Entry{Name: "autoencoder.pt", Data: Checkpoint(bare)}, Entry{Name: "metadata.json", Data: []byte(`{"threshold":1}`)})})
	return files
}

// naming returns pickles with names and objects other than plain data and tensors.
func naming() []File {
	var files []File
	add := func(name string, parts ...string) {
		files = append(files, File{Name: name, Want: Unsafe, Pickle: Asm(append(parts, Stop)...)})
	}
	dict := Name("collections", "OrderedDict")
	float := Name("torch", "FloatStorage")
	add("a name that is not called", Name("os", "system"))
	add("a dotted name into an allowed one", Name("torch._utils", "_rebuild_tensor_v2.__globals__"))
	add("an allowed name split differently", Name("torch", "_utils._rebuild_tensor"))
	add("torch.load from bytes", Name("torch.storage", "_load_from_bytes"), Tuple(Str("x")), "R")
	add("an empty name", Name("", ""))
	add("OBJ of an OrderedDict", "(", dict, "o")
	add("NEWOBJ of an OrderedDict", dict, ")\x81")
	add("NEWOBJ_EX of an OrderedDict", dict, ")}\x92")
	add("a set", "\x8f")
	add("a frozen set", "(\x91")
	add("items added to a set", "\x8f(\x90")
	add("a bytearray", "\x96\x00\x00\x00\x00\x00\x00\x00\x00")
	add("NEXT_BUFFER", "\x97")
	add("READONLY_BUFFER", "\x98")
	add("BUILD of a tensor", Tensor("0", 2), "}b")
	add("BUILD of a name", dict, "}b")
	add("BUILD by a tuple", "}", ")b")
	add("a str is called", Str("os.system"), ")R")
	add("a storage type is called", float, ")R")
	add("PERSID", "Pstorage\n")
	add("persistent id that is a str", Str("storage"), "Q")
	add("persistent id of a module", Tuple(Str("module"), float, Str("0"), Str("cpu"), Num(1)), "Q")
	add("persistent id of six parts", Tuple(Str("storage"), float, Str("0"), Str("cpu"), Num(1), "N"), "Q")
	add("persistent id with OrderedDict", Tuple(Str("storage"), dict, Str("0"), Str("cpu"), Num(1)), "Q")
	add("persistent id whose key is a list", Tuple(Str("storage"), float, "]", Str("cpu"), Num(1)), "Q")
	add("arguments that contain themselves", "(]q\x00h\x00ah\x00t", Name("os", "system"), "R")
	return files
}

// wrongTensors returns pickles with inconsistent tensors and storages.
func wrongTensors() []File {
	four := Storage("Float", "0", 4)
	var files []File
	add := func(name string, want Reason, parts ...string) {
		files = append(files, File{Name: name, Want: want, Pickle: Asm(append(parts, Stop)...)})
	}
	tensor := func(name string, want Reason, offset int, size, stride string) {
		add(name, want, Rebuild(four, offset, size, stride))
	}
	add("a storage of negative size", Format, Storage("Float", "0", -1))
	add("a storage of 2^62 elements", Format, Storage("Double", "0", 1<<62))
	tensor("a tensor beyond its storage", Format, 0, Nums(5), Nums(1))
	tensor("an offset beyond the storage", Format, 4, Nums(1), Nums(1))
	tensor("a negative offset", Format, -1, Nums(1), Nums(1))
	tensor("an offset near overflow", Format, 1<<63-1, Nums(2), Nums(1))
	tensor("a stride that overflows", Format, 0, Nums(3, 3), Nums(1<<62, 1<<62))
	tensor("strides that wrap to the start", Format, 0, Nums(1<<30, 1<<30), Nums(1<<30, 1<<30))
	tensor("a negative stride", Format, 3, Nums(2), Nums(-1))
	tensor("dimensions that overflow", Format, 0, Nums(1<<31-1, 1<<31-1, 1<<31-1), Nums(0, 0, 0))
	tensor("a negative dimension", Format, 0, Nums(-2, -2), Nums(1, 1))
	tensor("too many dimensions", Format, 0, Nums(make([]int, 17)...), Nums(make([]int, 17)...))
	tensor("fewer strides than dimensions", Format, 0, Nums(2, 2), Nums(1))
	add("a tensor without a storage", Format, Rebuild(Str("0"), 0, Nums(1), Nums(1)))
	add("a tensor of no arguments", Format, Name("torch._utils", "_rebuild_tensor_v2"), ")R")
	add("a tensor v3 without a dtype", Format, Name("torch._utils", "_rebuild_tensor_v3"),
		Tuple(four, Num(0), Nums(1), Nums(1), "\x89", "}", "N"), "R")
	add("a parameter of a dict", Format, Name("torch._utils", "_rebuild_parameter"), Tuple("}", "\x88", "}"), "R")
	add("an OrderedDict of something", Format, Name("collections", "OrderedDict"), Tuple("]"), "R")
	add("arguments that are a list", Format, Name("collections", "OrderedDict"), "]R")
	state := func(name string, want Reason, storage string, size, stride string) {
		parts := []string{Str(Parameters[0].Name), Rebuild(storage, 0, size, stride)}
		for i, p := range Parameters[1:] {
			parts = append(parts, Str(p.Name), Tensor(fmt.Sprint(i+1), p.Shape...))
		}
		add(name, want, Dict(parts...))
	}
	shape, stride := Nums(1, 3, 3, 3), Nums(27, 9, 3, 1)
	state("a storage of another type", Format, Storage("Double", "0", 27), shape, stride)
	state("a storage that declares more elements", Format, Storage("Float", "0", 1<<30), shape, stride)
	state("a storage of integers", Architecture, Storage("Int", "0", 27), shape, stride)
	state("a missing storage", Format, Storage("Float", "99", 27), shape, stride)
	state("a storage outside of the zip", Format, Storage("Float", "../../../../../../etc/passwd", 27), shape, stride)
	state("a huge shape with strides of 0", Architecture, Storage("Float", "0", 27), Nums(2048, 3, 3, 3), Nums(0, 0, 0, 0))
	// With strides of zero, a storage of four bytes has any number of weights: here 75
	// million.
	var wide []string
	for i, shape := range [][]int{{2048, 3, 3, 3}, {2048}, {2048, 2048, 3, 3}, {2048}, {2048, 2048, 3, 3}, {2048}, {2048, 3, 3, 3}, {3}} {
		name := fmt.Sprintf("%s.%d.%s", []string{"encoder", "decoder"}[i/4], i%4/2*2, []string{"weight", "bias"}[i%2])
		wide = append(wide, Str(name), Rebuild(Storage("Float", "1", 1), 0, Nums(shape...), Nums(make([]int, len(shape))...)))
	}
	add("75 million weights with strides of 0", TooLarge, Dict(wide...))
	return files
}

// exhausting returns pickles that try to exhaust memory, stack or time.
func exhausting() []File {
	huge := "\xff\xff\xff\xff"
	var files []File
	add := func(name string, want Reason, parts ...string) {
		files = append(files, File{Name: name, Want: want, Pickle: Asm(append(parts, Stop)...)})
	}
	add("BINUNICODE of 4 GB", Format, "X"+huge)
	add("BINUNICODE8 of 2^64-1 bytes", Format, "\x8d"+huge+huge)
	add("BINBYTES of 4 GB", Format, "B"+huge)
	add("BINBYTES8 of 2^63 bytes", Format, "\x8e\x00\x00\x00\x00\x00\x00\x00\x80")
	add("BINSTRING of -1 bytes", Format, "T"+huge)
	add("BYTEARRAY8 of 2^63 bytes", Unsafe, "\x96\x00\x00\x00\x00\x00\x00\x00\x80")
	add("LONG4 of -1 bytes", Format, "\x8b"+huge)
	add("a frame of 2^64-1 bytes", Format, "\x95"+huge+huge, "N")
	add("a frame that ends within an instruction", Format, "\x95\x01\x00\x00\x00\x00\x00\x00\x00", Str("frame"))
	add("frames in frames", Format, strings.Repeat("\x95\x01\x00\x00\x00\x00\x00\x00\x00", 10_000), "N")
	add("LONG_BINPUT at memo index 2^32-1", Architecture, "}r"+huge)
	add("200,000 entries in the memo", Format, "N"+strings.Repeat("\x94", 200_000))
	add("lists nested 80,000 deep", Format, strings.Repeat("]", 80_001)+strings.Repeat("a", 80_000))
	add("tuples nested 200,000 deep", Format, "N"+strings.Repeat("\x85", 200_000))
	add("tuples nested 200,000 deep, as a key", Architecture, "}N"+strings.Repeat("\x85", 200_000)+"Ns")
	add("a list in itself", Format, "]q\x00h\x00a")
	add("a dict in itself as a state dict", Architecture, "}q\x00"+Str("encoder.0.weight")+"h\x00s")
	add("tuples that double 60,000 times", Format, ")q\x02"+strings.Repeat("h\x02\x86q\x02", 60_000))
	add("DUP that doubles 60 times", Format, "]"+strings.Repeat("2a", 60))
	add("5,000 marks", TooLarge, strings.Repeat("(", 5000))
	add("too many instructions", TooLarge, strings.Repeat("]", 1<<18+1))
	add("an integer of 100,000 digits", Format, "L"+strings.Repeat("9", 100_000)+"L\n")
	return files
}

// damaged returns pickles that no pickler writes.
func damaged() []File {
	var files []File
	add := func(name string, pickle []byte) {
		files = append(files, File{Name: name, Want: Format, Pickle: pickle})
	}
	add("an empty stack", Asm("0", Stop))
	add("no bytes", []byte{})
	add("only STOP", []byte(Stop))
	add("two values", Asm("NN", Stop))
	add("an open mark", Asm("N(", Stop))
	add("a missing mark", Asm("Nt", Stop))
	add("values from below a mark", Asm("N(N\x86", Stop))
	add("APPEND to a dict", Asm("}Na", Stop))
	add("SETITEM in a list", Asm("]NNs", Stop))
	add("SETITEMS of an odd number", Asm("}(NNNu", Stop))
	add("a dict as a key", Asm("}}Ns", Stop))
	add("a missing memo entry", Asm("h\x07", Stop))
	add("PUT of nothing", Asm("q\x00", Stop))
	add("protocol 6", []byte("\x80\x06N."))
	add("an unknown instruction", Asm("\xf0", Stop))
	add("data after the end", Asm("N", Stop, "N"))
	add("a word as a number", Asm("Ione\n", Stop))
	add("a str that is not UTF-8", Asm("X\x01\x00\x00\x00\xff", Stop))
	add("STACK_GLOBAL of numbers", Asm("K\x01K\x01\x93", Stop))
	add("a list instead of a checkpoint", Asm("]", Stop))
	add("a list instead of a state dict", Asm(Dict(Str("model_state_dict"), "]"), Stop))
	add("a list instead of a config", Asm(Dict(Str("model_state_dict"), "}", Str("config"), "]"), Stop))
	for name, parts := range map[string]string{
		"an empty dict":                        "}",
		"a number in the state dict":           Dict(Str("encoder.0.weight"), Num(1)),
		"a nameless entry in a state dict":     State() + Num(1) + Tensor("0", 1) + "s",
		"a recursive list instead of a weight": Dict(Str("model_state_dict"), Dict(Str("encoder.0.weight"), "]q\x00h\x00a")),
		"a config for images of 1 channel":     Dict(Str("model_state_dict"), State(), Str("config"), Dict(Str("input_channels"), Num(1))),
		"a state dict of one weight":           Dict(Str("encoder.0.weight"), Tensor("0", 1, 3, 3, 3)),
		"an encoder of nine layers":            Dict(deep(9)...),
		"a layer of 4096 channels in 1 byte":   Dict(Str("encoder.0.weight"), Rebuild(Storage("Float", "1", 1), 0, Nums(4096, 3, 3, 3), Nums(0, 0, 0, 0))),
	} {
		files = append(files, File{Name: name, Want: Architecture, Pickle: Asm(parts, Stop)})
	}
	for name, config := range map[string]string{
		"an image size that is odd":               Dict(Str("image_size"), Num(65)),
		"an image size of a million":              Dict(Str("image_size"), Num(1_000_000)),
		"a negative image size":                   Dict(Str("image_size"), Num(-64)),
		"an image size that is a word":            Dict(Str("image_size"), Str("64")),
		"an image size that contains itself":      Dict(Str("image_size"), "]q\x00h\x00a"),
		"a negative threshold":                    Dict(Str("threshold"), Num(-1)),
		"a threshold that is NaN":                 Dict(Str("threshold"), "G\x7f\xf8\x00\x00\x00\x00\x00\x00"),
		"class names that are numbers":            Dict(Str("class_names"), Nums(1)),
		"class names that contain themselves":     Dict(Str("class_names"), "]q\x00h\x00a"),
		"another model type":                      Dict(Str("model_type"), Str("vae")),
		"metadata in a config that is not JSON":   Dict(Str("metadata_json"), Str("{")),
		"metadata in a config that is a number":   Dict(Str("metadata_json"), Num(1)),
		"metadata in a config of another network": Dict(Str("metadata_json"), Str(`{"threshold":1,"architecture":{"channels":[3,2]}}`)),
	} {
		files = append(files, File{Name: name, Want: Metadata, Pickle: CheckpointEntries(binary.LittleEndian, config)[0].Data})
	}
	slices.SortStableFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files
}

// deep returns the keys and values of an encoder with this number of layers.
func deep(layers int) []string {
	var parts []string
	for i := range layers {
		parts = append(parts, Str(fmt.Sprintf("encoder.%d.weight", 2*i)), Rebuild(Storage("Float", "1", 1), 0, Nums(3, 3, 3, 3), Nums(0, 0, 0, 0)))
	}
	return parts
}

// truncated returns pickles that end inside of each kind of instruction that has an
// operand.
func truncated() []File {
	four, eight := "\x05\x00\x00\x00", "\x05\x00\x00\x00\x00\x00\x00\x00"
	var files []File
	for _, c := range []struct{ name, instruction string }{
		{"PROTO", "\x80"}, {"FRAME", "\x95" + eight[:7]},
		{"INT", "I12"}, {"LONG", "L12L"}, {"FLOAT", "F1.5"}, {"BININT", "J\x01\x02\x03"}, {"BININT1", "K"}, {"BININT2", "M\x01"},
		{"LONG1", "\x8a\x05\x01"}, {"LONG4", "\x8b" + four + "\x01"}, {"BINFLOAT", "G\x3f\xf0\x00\x00"},
		{"STRING", "S'a"}, {"UNICODE", "Va"}, {"BINSTRING", "T" + four + "a"}, {"SHORT_BINSTRING", "U\x05a"},
		{"BINUNICODE", "X" + four + "a"}, {"SHORT_BINUNICODE", "\x8c\x05a"}, {"BINUNICODE8", "\x8d" + eight + "a"},
		{"BINBYTES", "B" + four + "a"}, {"SHORT_BINBYTES", "C\x05a"}, {"BINBYTES8", "\x8e" + eight + "a"},
		{"PUT", "Np1"}, {"BINPUT", "Nq"}, {"LONG_BINPUT", "Nr\x01\x00"}, {"GET", "g1"}, {"BINGET", "h"}, {"LONG_BINGET", "j\x01"},
		{"GLOBAL, in the module", "ccollec"}, {"GLOBAL, in the name", "ccollections\nOrdered"}, {"every instruction, at STOP", "}"},
	} {
		files = append(files, File{Name: "it ends within " + c.name, Want: Format, Pickle: Asm(c.instruction)})
	}
	for _, c := range []struct{ name, instruction string }{
		{"INST", "(ios\nsys"}, {"PERSID", "Pstor"}, {"EXT1", "\x82"}, {"EXT2", "\x83\x01"}, {"EXT4", "\x84\x01\x00"}, {"BYTEARRAY8", "\x96" + eight + "a"},
	} {
		files = append(files, File{Name: "it ends within " + c.name, Want: Unsafe, Pickle: Asm(c.instruction)})
	}
	return files
}
