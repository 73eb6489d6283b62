package models

import "fmt"

// The values an unpickled file is made of, beside nil, bool, int64, float64,
// string and []byte. Lists and dicts are pointers, as in Python: a pickle may
// put one into itself, so nothing here may walk values to the end.
type (
	pickleList  struct{ items []any }
	pickleTuple []any
	// pickleDict keeps string keys by name. Entries with other keys are only
	// counted: nothing here looks them up.
	pickleDict struct {
		keys   []string
		values map[string]any
		others int
	}
	// pickleLong is an integer beyond 64 bits, of no use here.
	pickleLong struct{}
	// pickleStorage is where a tensor's elements are to be found.
	pickleStorage struct {
		dtype dtype
		key   string
		numel int64
	}
	pickleTensor struct {
		storage *pickleStorage
		dtype   dtype
		offset  int64
		shape   []int64
		stride  []int64
	}
	// pickleGlobal is one of the few names a pickle may mention.
	pickleGlobal struct {
		name  string
		kind  globalKind
		dtype dtype
	}
)

type globalKind int

const (
	globalOrderedDict globalKind = iota
	globalTensorV2
	globalTensorV3
	globalParameter
	globalStorage
	globalDtype
)

// dtype is an element type of PyTorch's. Only floating-point ones that Go can
// widen to float32 are read; of the others, which an optimizer's state may
// hold, only the size matters.
type dtype struct {
	name string
	size int64
}

func (d dtype) readable() bool {
	switch d.name {
	case "float16", "bfloat16", "float32", "float64":
		return true
	}
	return false
}

// allowedGlobals is all that a pickle may name. None of them does more than
// describe data.
var allowedGlobals = func() map[string]pickleGlobal {
	m := map[string]pickleGlobal{
		"collections.OrderedDict":         {kind: globalOrderedDict},
		"torch._utils._rebuild_tensor_v2": {kind: globalTensorV2},
		"torch._utils._rebuild_tensor_v3": {kind: globalTensorV3},
		"torch._utils._rebuild_parameter": {kind: globalParameter},
	}
	for storage, d := range map[string]dtype{
		"Double": {"float64", 8}, "Float": {"float32", 4}, "Half": {"float16", 2}, "BFloat16": {"bfloat16", 2},
		"Long": {"int64", 8}, "Int": {"int32", 4}, "Short": {"int16", 2}, "Char": {"int8", 1}, "Byte": {"uint8", 1}, "Bool": {"bool", 1},
	} {
		m["torch."+storage+"Storage"] = pickleGlobal{kind: globalStorage, dtype: d}
		m["torch."+d.name] = pickleGlobal{kind: globalDtype, dtype: d}
	}
	for name, size := range map[string]int64{"uint16": 2, "uint32": 4, "uint64": 8} {
		m["torch."+name] = pickleGlobal{kind: globalDtype, dtype: dtype{name, size}}
	}
	m["torch.storage.UntypedStorage"] = pickleGlobal{kind: globalStorage, dtype: dtype{"untyped", 1}}
	for name, g := range m {
		g.name = name
		m[name] = g
	}
	return m
}()

// refusedOps are the instructions of pickle's that build objects, call code or
// make values no checkpoint needs.
var refusedOps = map[byte]string{
	'i': "INST", 'o': "OBJ", 'P': "PERSID", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX",
	0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4",
	0x8f: "EMPTY_SET", 0x90: "ADDITEMS", 0x91: "FROZENSET",
	0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}

func (d *pickleDict) set(key, value any) error {
	switch k := key.(type) {
	case string:
		if _, ok := d.values[k]; !ok {
			if d.values == nil {
				d.values = make(map[string]any)
			}
			d.keys = append(d.keys, k)
		}
		d.values[k] = value
		return nil
	case nil, bool, int64, float64, []byte, pickleTuple, pickleLong:
		d.others++
		return nil
	}
	return fmt.Errorf("a %s is the key of a dict", typeName(key))
}

// get finds the value of a string key.
func (d *pickleDict) get(key string) (any, bool) {
	v, ok := d.values[key]
	return v, ok
}

// typeName is Python's word for the type of a value, for an error message.
func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "None"
	case bool:
		return "bool"
	case int64, pickleLong:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case []byte:
		return "bytes"
	case *pickleList:
		return "list"
	case pickleTuple:
		return "tuple"
	case *pickleDict:
		return "dict"
	case *pickleTensor:
		return "tensor"
	case *pickleStorage:
		return "storage"
	}
	return "name"
}
