package models

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

const pickleFile = "data.pkl"

// hintTorchScript tells how to turn a TorchScript program into a checkpoint.
const hintTorchScript = `expected a state dict; convert it with ` +
	`torch.save({"model_state_dict": torch.jit.load(f).state_dict(), "config": {"image_size": 256, "input_channels": 3}}, g)`

// checkpointRoot gives the folder that torch.save put everything in, named
// after the file, or "" when the zip is no PyTorch file.
func checkpointRoot(a *archive) (string, error) {
	root := ""
	for _, name := range a.names {
		dir, ok := strings.CutSuffix(name, "/"+pickleFile)
		if !ok || strings.Contains(dir, "/") {
			continue
		}
		if root != "" {
			return "", fmt.Errorf("%w: the zip has both %.80q and %.80q, expected one %s", ErrFormat, root+"/"+pickleFile, name, pickleFile)
		}
		root = dir
	}
	return root, nil
}

// checkpoint is a PyTorch zip checkpoint while it is read.
type checkpoint struct {
	archive  *archive
	root     string
	order    binary.ByteOrder
	storages map[string][]byte
}

// readCheckpoint reads a PyTorch zip checkpoint: the state dict under
// "model_state_dict" with a "config" beside it, or a bare state dict. Whatever
// else is in it is ignored, and storages that no weight lies in are not even
// unpacked.
func readCheckpoint(a *archive, root string, lim Limits) (contents, error) {
	if a.has(root + "/constants.pkl") {
		return contents{}, fmt.Errorf("%w: this is a TorchScript program, %s", ErrFormat, hintTorchScript)
	}
	c := &checkpoint{archive: a, root: root, order: binary.LittleEndian, storages: make(map[string][]byte)}
	if name := root + "/byteorder"; a.has(name) {
		b, err := a.read(name, 16)
		switch {
		case err != nil:
			return contents{}, err
		case string(b) == "big":
			c.order = binary.BigEndian
		case string(b) != "little":
			return contents{}, fmt.Errorf("%w: its byte order is %q, expected little or big", ErrFormat, b)
		}
	}
	data, err := a.read(root+"/"+pickleFile, maxPickleBytes)
	if err != nil {
		return contents{}, err
	}
	value, err := unpickle(data)
	if err != nil {
		return contents{}, err
	}
	top, ok := value.(*pickleDict)
	if !ok {
		return contents{}, fmt.Errorf("%w: the checkpoint is a %s, expected a dict with model_state_dict and config", ErrFormat, typeName(value))
	}
	out := contents{}
	state := top
	if v, ok := top.get("model_state_dict"); ok {
		if state, ok = v.(*pickleDict); !ok {
			return contents{}, fmt.Errorf("%w: model_state_dict is a %s, expected a dict of tensors", ErrFormat, typeName(v))
		}
		if v, ok := top.get("config"); ok {
			config, ok := v.(*pickleDict)
			if !ok {
				return contents{}, fmt.Errorf("%w: config is a %s, expected a dict", ErrFormat, typeName(v))
			}
			if out.said, err = configSays(config); err != nil {
				return contents{}, err
			}
		}
	}
	if out.architecture, out.weights, err = c.weights(state, lim); err != nil {
		return out, err
	}
	if v, ok := top.get(ReferenceKey); ok && state != top {
		normal, ok := v.(*pickleDict)
		if !ok {
			return contents{}, fmt.Errorf("%w: %s is a %s, expected a dict of tensors", ErrFormat, ReferenceKey, typeName(v))
		}
		out.normality, err = c.normality(normal, lim)
	}
	return out, err
}

// ReferenceKey is the key of a checkpoint under which the tensors of
// GaborParameters lie.
const ReferenceKey = "normality_state_dict"

// normality reads the tensors of normality, whose number and shapes are held
// against the image size later.
func (c *checkpoint) normality(state *pickleDict, lim Limits) (StateDict, error) {
	shapes, err := shapesOf(state)
	if err != nil {
		return nil, err
	}
	if err := lim.checkNormality(shapes); err != nil {
		return nil, err
	}
	for i, t := range shapes {
		v, _ := state.get(t.Name)
		if shapes[i].Data, err = c.floats(t.Name, v.(*pickleTensor)); err != nil {
			return nil, err
		}
	}
	return shapes, nil
}

// shapesOf gives names and shapes of a state dict's tensors.
func shapesOf(state *pickleDict) (StateDict, error) {
	shapes := make(StateDict, 0, len(state.keys))
	for _, name := range state.keys {
		v, _ := state.get(name)
		t, ok := v.(*pickleTensor)
		if !ok {
			return nil, fmt.Errorf("%w: %.80q is a %s, expected a state dict of tensors only", ErrArchitecture, name, typeName(v))
		}
		shape := make([]int, len(t.shape))
		for i, d := range t.shape {
			shape[i] = int(d)
		}
		shapes = append(shapes, Tensor{Name: name, Shape: shape})
	}
	if state.others > 0 {
		return nil, fmt.Errorf("%w: the state dict has %d keys that are no names", ErrArchitecture, state.others)
	}
	return shapes, nil
}

// weights reads the tensors of a state dict, once their names and shapes have
// turned out to be the autoencoder's.
func (c *checkpoint) weights(state *pickleDict, lim Limits) (Architecture, StateDict, error) {
	shapes, err := shapesOf(state)
	if err != nil {
		return Architecture{}, nil, err
	}
	a, err := lim.architectureOf(shapes)
	if err != nil {
		return Architecture{}, nil, err
	}
	weights := shapes.Ordered(a.Parameters())
	for i, w := range weights {
		v, _ := state.get(w.Name)
		if weights[i].Data, err = c.floats(w.Name, v.(*pickleTensor)); err != nil {
			return Architecture{}, nil, err
		}
	}
	return a, weights, nil
}

// floats reads the elements of a tensor in row-major order, whatever its
// strides. newPickleTensor has made sure that they lie within the storage.
func (c *checkpoint) floats(name string, t *pickleTensor) ([]float32, error) {
	if !t.dtype.readable() || t.dtype != t.storage.dtype {
		return nil, fmt.Errorf("%w: %s holds %s, expected float32, float16, bfloat16 or float64", ErrArchitecture, name, t.dtype.name)
	}
	data, err := c.storage(t.storage)
	if err != nil {
		return nil, err
	}
	n := 1
	for _, d := range t.shape {
		n *= int(d)
	}
	out := make([]float32, n)
	decode, size := c.decoder(t.dtype), int(t.dtype.size)
	index := make([]int64, len(t.shape))
	at := t.offset
	for i := range out {
		out[i] = decode(data[int(at)*size:])
		for d := len(index) - 1; d >= 0; d-- {
			at += t.stride[d]
			if index[d]++; index[d] < t.shape[d] {
				break
			}
			at -= t.stride[d] * t.shape[d]
			index[d] = 0
		}
	}
	return out, nil
}

// storage unpacks the file of a storage, once for all the tensors in it.
func (c *checkpoint) storage(s *pickleStorage) ([]byte, error) {
	name := c.root + "/data/" + s.key
	// Asked anew for every tensor: the same key may be given with other sizes.
	want := s.numel * s.dtype.size
	if f, ok := c.archive.files[name]; ok && f.UncompressedSize64 != uint64(want) {
		return nil, fmt.Errorf("%w: %.80q has %d bytes, expected %d for %d elements of %s",
			ErrFormat, name, f.UncompressedSize64, want, s.numel, s.dtype.name)
	}
	data, ok := c.storages[name]
	if !ok {
		var err error
		if data, err = c.archive.read(name, want); err != nil {
			return nil, err
		}
		c.storages[name] = data
	}
	return data, nil
}

func (c *checkpoint) decoder(d dtype) func([]byte) float32 {
	order := c.order
	switch d.name {
	case "float16":
		return func(b []byte) float32 { return halfToFloat(order.Uint16(b)) }
	case "bfloat16":
		return func(b []byte) float32 { return math.Float32frombits(uint32(order.Uint16(b)) << 16) }
	case "float64":
		return func(b []byte) float32 { return float32(math.Float64frombits(order.Uint64(b))) }
	}
	return func(b []byte) float32 { return math.Float32frombits(order.Uint32(b)) }
}

// halfToFloat widens an IEEE 754 half, which is always exact.
func halfToFloat(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch exponent {
	case 0: // zero and subnormals: fraction × 2⁻²⁴
		v := float32(fraction) * (1.0 / (1 << 24))
		return math.Float32frombits(sign | math.Float32bits(v))
	case 0x1f: // infinity and NaN
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}

// configSays reads what the "config" of a checkpoint says beside the weights.
// Keys that are not known are ignored.
func configSays(config *pickleDict) (statement, error) {
	var s statement
	wrong := func(key string, v any, want string) error {
		return fmt.Errorf("%w: config[%q] is a %s, expected %s", ErrMetadata, key, typeName(v), want)
	}
	for _, key := range config.keys {
		v, _ := config.get(key)
		if v == nil {
			continue // None says nothing
		}
		switch key {
		case "image_size", "format_version", "input_channels":
			n, ok := v.(int64)
			if !ok || n < 0 || n > math.MaxInt32 {
				return s, wrong(key, v, "a whole number of 0 or more")
			}
			switch {
			case key == "image_size":
				s.imageSize = int(n)
			case key == "format_version":
				s.metadata.FormatVersion = int(n)
			case n != InputChannels:
				return s, fmt.Errorf("%w: it takes images of %d channels, expected %d", ErrArchitecture, n, InputChannels)
			}
		case "threshold", "mean_error", "std_error":
			var f float64
			switch n := v.(type) {
			case float64:
				f = n
			case int64:
				f = float64(n)
			case string: // as checkpoints are written here, for PyTorch 1.13's reader
				var err error
				if f, err = strconv.ParseFloat(n, 64); err != nil {
					return s, fmt.Errorf("%w: config[%q] is %.40q, expected a number", ErrMetadata, key, n)
				}
			default:
				return s, wrong(key, v, "a number")
			}
			s.set(key, f)
		case "class_names":
			names, ok := stringsOf(v)
			if !ok {
				return s, wrong(key, v, "a list of str")
			}
			s.metadata.ClassNames = names
		case "model_type", "metadata_json":
			text, ok := v.(string)
			if !ok {
				return s, wrong(key, v, "a str")
			}
			if key == "model_type" {
				s.metadata.ModelType = text
			} else {
				s.whole = []byte(text)
			}
		}
	}
	return s, nil
}

// stringsOf reads a list or a tuple of strings.
func stringsOf(v any) ([]string, bool) {
	var items []any
	switch v := v.(type) {
	case *pickleList:
		items = v.items
	case pickleTuple:
		items = v
	default:
		return nil, false
	}
	out := make([]string, len(items))
	for i, item := range items {
		s, ok := item.(string)
		if !ok {
			return nil, false
		}
		out[i] = s
	}
	return out, true
}
