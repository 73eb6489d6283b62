package models

import (
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
)

const pickleFile = "data.pkl"

// hintTorchScript explains how to convert a TorchScript program into a checkpoint.
const hintTorchScript = `expected a state dict; convert it with ` +
	`torch.save({"model_state_dict": torch.jit.load(f).state_dict(), "config": {"image_size": 256, "input_channels": 3}}, g)`

// checkpointRoot returns the top folder that torch.save creates in the zip and
// names after the file, or "" when the zip is not a PyTorch file.
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

// checkpoint is a PyTorch zip checkpoint that is being read.
type checkpoint struct {
	archive  *archive
	root     string
	order    binary.ByteOrder
	storages map[string][]byte
}

// readCheckpoint reads a PyTorch zip checkpoint: either a dict with
// "model_state_dict" and "config", or a bare state dict. It ignores all other
// entries and does not unpack storages that no weight uses.
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
			if out.metadata, err = parseConfig(config); err != nil {
				return contents{}, err
			}
		}
	}
	if out.architecture, out.weights, err = c.weights(state, lim); err != nil {
		return out, err
	}
	if v, ok := top.get(ReferenceKey); ok && state != top {
		reference, ok := v.(*pickleDict)
		if !ok {
			return contents{}, fmt.Errorf("%w: %s is a %s, expected a dict of tensors", ErrFormat, ReferenceKey, typeName(v))
		}
		out.reference, err = c.reference(reference, lim)
	}
	return out, err
}

// ReferenceKey is the key of the reference statistics in a checkpoint: the
// tensors of PatchParameters, or of GaborParameters in an earlier model.
const ReferenceKey = "normality_state_dict"

// reference reads the tensors of the reference statistics. Their number and shapes
// depend on the image size and are checked later.
func (c *checkpoint) reference(state *pickleDict, lim Limits) (StateDict, error) {
	shapes, err := shapesOf(state)
	if err != nil {
		return nil, err
	}
	if err := lim.checkReference(shapes); err != nil {
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

// shapesOf returns the names and shapes of the tensors, without data.
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
		return nil, fmt.Errorf("%w: the state dict has %d keys that are not strings", ErrArchitecture, state.others)
	}
	return shapes, nil
}

// weights checks the names and shapes of an autoencoder's tensors, then reads them.
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

// floats returns the elements of a tensor in row-major order, for any strides.
// newPickleTensor has checked that all of them are within the storage.
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

// storage returns the content of a storage's file, which it unpacks once.
func (c *checkpoint) storage(s *pickleStorage) ([]byte, error) {
	name := c.root + "/data/" + s.key
	// Check each use: a pickle may refer to the same key with different sizes.
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

// decoder returns a function that reads one element in the checkpoint's byte order.
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

// halfToFloat converts an IEEE 754 half-precision number, without rounding.
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

// parseConfig reads the "config" of a checkpoint. It ignores unknown keys.
func parseConfig(config *pickleDict) (fileMetadata, error) {
	var s fileMetadata
	wrong := func(key string, v any, want string) error {
		return fmt.Errorf("%w: config[%q] is a %s, expected %s", ErrMetadata, key, typeName(v), want)
	}
	for _, key := range config.keys {
		v, _ := config.get(key)
		if v == nil {
			continue // None means that the value is absent
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
				return s, fmt.Errorf("%w: its input has %d channels, expected %d", ErrArchitecture, n, InputChannels)
			}
		case "threshold", "mean_error", "std_error":
			var f float64
			switch n := v.(type) {
			case float64:
				f = n
			case int64:
				f = float64(n)
			case string: // package exporter writes text because PyTorch 1.13 reads no floats with weights_only
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
				s.json = []byte(text)
			}
		}
	}
	return s, nil
}

// stringsOf returns the items of a list or tuple of strings, and whether v is one.
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
