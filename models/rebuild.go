package models

import "fmt"

// construct executes the instructions that refer to a global name, call it, or set the
// state of an object. Nothing is called: the allowed names construct descriptions.
func (p *unpickler) construct(op byte) error {
	switch op {
	case 'c': // GLOBAL
		module, err := p.line()
		if err != nil {
			return err
		}
		name, err := p.line()
		if err != nil {
			return err
		}
		return p.global(module, name)
	case 0x93: // STACK_GLOBAL
		names, err := p.popN(2, false)
		if err != nil {
			return err
		}
		module, ok1 := names[0].(string)
		name, ok2 := names[1].(string)
		if !ok1 || !ok2 {
			return p.damaged("STACK_GLOBAL of a %s and a %s, expected two strings", typeName(names[0]), typeName(names[1]))
		}
		return p.global(module, name)
	case 'Q': // BINPERSID
		v, err := p.pop()
		if err != nil {
			return err
		}
		return p.storage(v)
	case 'R': // REDUCE
		v, err := p.popN(2, false)
		if err != nil {
			return err
		}
		f, ok := v[0].(pickleGlobal)
		if !ok {
			return p.unsafe("a %s is called, expected only tensors and OrderedDict to be constructed", typeName(v[0]))
		}
		args, ok := v[1].(pickleTuple)
		if !ok {
			return p.damaged("%s is called with a %s, expected a tuple", f.name, typeName(v[1]))
		}
		return p.call(f, args)
	}
	// BUILD: torch.nn.Module.state_dict sets the attribute "_metadata" of its
	// OrderedDict, which is not needed.
	v, err := p.popN(2, false)
	if err != nil {
		return err
	}
	_, ok1 := v[0].(*pickleDict)
	_, ok2 := v[1].(*pickleDict)
	if !ok1 || !ok2 {
		return p.unsafe("the state of a %s is set from a %s, expected only an OrderedDict's from a dict", typeName(v[0]), typeName(v[1]))
	}
	return p.push(v[0])
}

// global pushes an allowed name.
func (p *unpickler) global(module, name string) error {
	g, ok := allowedGlobals[module+"."+name]
	if !ok {
		return p.unsafe("it refers to %.80q, expected only tensors and OrderedDict; save model.state_dict(), not the model",
			module+"."+name)
	}
	return p.push(g)
}

// storage pushes the storage of a persistent ID: ("storage", torch.FloatStorage, key,
// location, number of elements). The location is a device, such as "cpu".
func (p *unpickler) storage(id any) error {
	t, ok := id.(pickleTuple)
	if !ok || len(t) != 5 || t[0] != any("storage") {
		return p.unsafe("a persistent id is a %s, expected the five-part tuple of a storage", typeName(id))
	}
	g, ok1 := t[1].(pickleGlobal)
	key, ok2 := t[2].(string)
	_, ok3 := t[3].(string)
	numel, ok4 := t[4].(int64)
	if !ok1 || g.kind != globalStorage || !ok2 || !ok3 || !ok4 {
		return p.unsafe("a storage is given as (%s, %s, %s, %s), expected (storage type, str, str, int)",
			typeName(t[1]), typeName(t[2]), typeName(t[3]), typeName(t[4]))
	}
	if numel < 0 || numel > maxElements {
		return p.damaged("a storage of %d elements, expected 0 to %d", numel, maxElements)
	}
	return p.push(&pickleStorage{dtype: g.dtype, key: key, numel: numel})
}

// call pushes the description of the object that a call of an allowed name creates.
func (p *unpickler) call(f pickleGlobal, args pickleTuple) error {
	switch f.kind {
	case globalOrderedDict:
		if len(args) != 0 {
			return p.damaged("OrderedDict is called with %d arguments, expected none", len(args))
		}
		return p.push(&pickleDict{})
	case globalParameter:
		// torch._utils._rebuild_parameter(data, requires_grad, backward_hooks)
		if len(args) != 3 {
			return p.damaged("%s is called with %d arguments, expected 3", f.name, len(args))
		}
		t, ok := args[0].(*pickleTensor)
		if !ok {
			return p.damaged("a parameter is constructed from a %s, expected a tensor", typeName(args[0]))
		}
		return p.push(t)
	case globalTensorV2, globalTensorV3:
		t, err := newPickleTensor(f.kind, args)
		if err != nil {
			return p.damaged("%v", err)
		}
		return p.push(t)
	}
	return p.unsafe("%s is called, expected only tensors and OrderedDict to be constructed", f.name)
}

// newPickleTensor returns the tensor for the arguments of
// torch._utils._rebuild_tensor_v2 and _v3: storage, offset, size, stride,
// requires_grad, backward_hooks, a dtype (v3 only) and optional metadata. It returns an
// error when an element is outside of the storage.
func newPickleTensor(kind globalKind, args pickleTuple) (*pickleTensor, error) {
	need := 6
	if kind == globalTensorV3 {
		need = 7
	}
	if len(args) != need && len(args) != need+1 {
		return nil, fmt.Errorf("a tensor is constructed from %d arguments, expected %d", len(args), need)
	}
	s, ok := args[0].(*pickleStorage)
	if !ok {
		return nil, fmt.Errorf("a tensor is constructed from a %s, expected a storage", typeName(args[0]))
	}
	t := &pickleTensor{storage: s, dtype: s.dtype}
	if kind == globalTensorV3 {
		g, ok := args[6].(pickleGlobal)
		if !ok || g.kind != globalDtype {
			return nil, fmt.Errorf("the dtype of a tensor is a %s", typeName(args[6]))
		}
		t.dtype = g.dtype
	}
	if t.offset, ok = args[1].(int64); !ok || t.offset < 0 || t.offset > maxElements {
		return nil, fmt.Errorf("a tensor's offset is a %s, expected a number from 0 to %d", typeName(args[1]), maxElements)
	}
	var err error
	if t.shape, err = extents("size", args[2]); err != nil {
		return nil, err
	}
	if t.stride, err = extents("stride", args[3]); err != nil {
		return nil, err
	}
	if len(t.shape) != len(t.stride) {
		return nil, fmt.Errorf("a tensor has %d dimensions and %d strides", len(t.shape), len(t.stride))
	}
	// No product overflows: both factors are below 2^31, and the loop ends once a
	// value exceeds that.
	last, n := t.offset, int64(1)
	for i, d := range t.shape {
		if d == 0 {
			n = 0
			break
		}
		if n > maxElements/d || t.stride[i] > 0 && d-1 > maxElements/t.stride[i] {
			return nil, fmt.Errorf("a tensor of size %v has more than %d elements", t.shape, maxElements)
		}
		n *= d
		last += (d - 1) * t.stride[i]
	}
	if room := s.numel * s.dtype.size / t.dtype.size; n > 0 && last >= room {
		return nil, fmt.Errorf("a tensor of size %v reaches element %d of a storage of %d", t.shape, last, room)
	}
	return t, nil
}

// extents returns a size or a stride, a tuple of at most maxDims integers from 0 to
// maxElements.
func extents(what string, v any) ([]int64, error) {
	tuple, ok := v.(pickleTuple)
	if !ok || len(tuple) > maxDims {
		return nil, fmt.Errorf("a tensor's %s is a %s, expected a tuple of at most %d numbers", what, typeName(v), maxDims)
	}
	out := make([]int64, len(tuple))
	for i, e := range tuple {
		d, ok := e.(int64)
		if !ok || d < 0 || d > maxElements {
			return nil, fmt.Errorf("a tensor's %s has a %s that is not 0 to %d", what, typeName(e), maxElements)
		}
		out[i] = d
	}
	return out, nil
}
