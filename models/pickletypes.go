package models

import "fmt"

// The types of unpickled values, in addition to nil, bool, int64, float64, string and
// []byte. Lists and dicts are pointers, as in Python. A pickle may add one to itself,
// so no code may traverse values recursively.
type (
	pickleList  struct{ items []any }
	pickleTuple []any
	// pickleDict stores entries with string keys, and counts entries with other keys,
	// which are never looked up.
	pickleDict struct {
		keys   []string
		values map[string]any
		others int
	}
	// pickleLong is an integer of more than 64 bits, whose value is not needed.
	pickleLong struct{}
	// pickleStorage refers to the file data/<key>, which holds numel elements.
	pickleStorage struct {
		dtype dtype
		key   string
		numel int64
	}
	// pickleTensor is a view of a storage. offset and stride count elements.
	pickleTensor struct {
		storage *pickleStorage
		dtype   dtype
		offset  int64
		shape   []int64
		stride  []int64
	}
	// pickleGlobal is an entry of allowedGlobals.
	pickleGlobal struct {
		name  string
		kind  globalKind
		dtype dtype
	}
)

// globalKind selects how construct handles a pickleGlobal.
type globalKind int

const (
	globalOrderedDict globalKind = iota
	globalTensorV2
	globalTensorV3
	globalParameter
	globalStorage
	globalDtype
)

// dtype is an element type of PyTorch. size is in bytes. Only floating-point types are
// converted to float32; tensors of other types, as in an optimizer's state, are
// skipped.
type dtype struct {
	name string
	size int64
}

// readable reports whether elements can be converted to float32.
func (d dtype) readable() bool {
	switch d.name {
	case "float16", "bfloat16", "float32", "float64":
		return true
	}
	return false
}

// allowedGlobals are the only names that a pickle may refer to. All of them describe
// data.
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

// refusedOps are the pickle instructions that build objects, call code or create
// values that no checkpoint needs.
var refusedOps = map[byte]string{
	'i': "INST", 'o': "OBJ", 'P': "PERSID", 0x81: "NEWOBJ", 0x92: "NEWOBJ_EX",
	0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4",
	0x8f: "EMPTY_SET", 0x90: "ADDITEMS", 0x91: "FROZENSET",
	0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}

// set adds an entry. It returns an error when the key is not hashable in Python.
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

// get returns the value of a string key.
func (d *pickleDict) get(key string) (any, bool) {
	v, ok := d.values[key]
	return v, ok
}

// typeName returns Python's name of a value's type, for error messages.
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
