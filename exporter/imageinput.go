package exporter

import (
	"math"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
)

// extent is a height and a width in a graph, one element each.
type extent struct{ h, w value }

// prepare lowers imagefile.Prepare and imagefile.Normalize, whose resize is Pillow 13's.
// Most pixels of 8 bits have the same bits as Pillow's: ONNX Runtime's Resize of bytes also
// has coefficients of 22 fractional bits, rounds to bytes between its two passes, and
// excludes pixels beyond the border. The image has channels last until it is resized, which
// is the fastest layout for the CPU provider.
func (l *lowering) prepare(m *models.Model) (value, error) {
	const channels = models.InputChannels
	p, size := m.Metadata.InputPreprocessing(), m.Input()
	kind, doc := onnx.TensorProto_UINT8, "a decoded image of any size: rows of pixels of red, green and blue, 0 to 255"
	if p.Window != nil {
		kind, doc = onnx.TensorProto_FLOAT, "a decoded image of any size: rows of pixels of red, green and blue, the values of the samples"
	}
	l.proto.Input = append(l.proto.Input, describe(network.ImageName, kind,
		[]dim{{name: "height"}, {name: "width"}, {size: channels}}, doc))
	batch := l.op("Unsqueeze", nil, []value{{name: network.ImageName}, l.ints(0)})
	frame := &frameGraph{lowering: l, input: size}
	if p.Fit != "" || p.Region != nil {
		frame.original = l.extentOf(batch)
	}
	target := l.ints(1, size.H, size.W, channels)
	to := func() extent { return extent{l.ints(size.H), l.ints(size.W)} }
	switch p.Fit {
	case models.FitCrop:
		batch = frame.crop(batch)
	case models.FitPad:
		padded := frame.padded()
		to = func() extent { return padded }
		target = l.op("Concat", []int{4}, []value{l.ints(1), padded.h, padded.w, l.ints(channels)}, intAttr("axis", 0))
	}
	if p.Window != nil {
		batch = l.window(batch, *p.Window)
	}
	shape := []int{1, size.H, size.W, channels}
	once := l.resize(batch, l.firstPass(batch, target, to), nil)
	resized := l.resize(once, target, shape)
	planes := l.op("Transpose", []int{1, channels, size.H, size.W}, []value{resized}, intsAttr("perm", 0, 3, 1, 2))
	numbers := planes
	if p.Window == nil {
		numbers = l.op("Cast", planes.shape, []value{planes}, intAttr("to", floatType))
		numbers = l.op("Div", planes.shape, []value{numbers, l.floats(nil, math.MaxUint8)})
	}
	if p.Region != nil {
		mask, err := frame.region(p, to())
		if err != nil {
			return value{}, err
		}
		numbers = l.op("Where", planes.shape, []value{mask, numbers, l.floats(nil, -1)})
	}
	if p.Fit == models.FitPad {
		numbers = frame.pad(numbers, to())
	}
	return numbers, nil
}

// window emits the values of a window as 0…1. NaN is the lowest value.
func (l *lowering) window(x value, w models.Window) value {
	low := float32(w[0])
	x = l.op("Where", nil, []value{l.op("IsNaN", nil, []value{x}), l.floats(nil, low), x})
	x = l.op("Div", nil, []value{l.op("Sub", nil, []value{x, l.floats(nil, low)}), l.floats(nil, float32(w[1])-low)})
	return l.op("Clip", nil, []value{x, l.floats(nil, 0), l.floats(nil, 1)})
}

// resize emits one pass of the resize.
func (l *lowering) resize(x, size value, shape []int) value {
	none := value{} // an omitted optional input
	return l.op("Resize", shape, []value{x, none, none, size},
		textAttr("mode", "linear"), textAttr("coordinate_transformation_mode", "half_pixel"),
		intAttr("antialias", 1), intAttr("exclude_outside", 1))
}

// firstPass emits the size after the first of the two passes, which resizes either the
// height or the width. The order changes pixels by up to 1; it is Pillow 13's, see
// verticalFirst in package imagefile.
func (l *lowering) firstPass(batch, target value, to func() extent) value {
	bools := func(vs ...byte) value { return l.constant(onnx.TensorProto_BOOL, []int{len(vs)}, vs) }
	shape := l.op("Shape", []int{4}, []value{batch})
	height := l.op("Gather", []int{1}, []value{shape, l.ints(1)})
	width := l.op("Gather", []int{1}, []value{shape, l.ints(2)})
	lost := l.op("Sub", []int{1}, []value{height, to().h})
	lostWidth := l.op("Sub", []int{1}, []value{width, to().w})
	more := l.op("Greater", []int{1}, []value{lost, l.op("Mul", []int{1}, []value{lostWidth, l.ints(2)})})
	shrinks := l.op("Greater", []int{1}, []value{lost, l.ints(0)})
	verticalFirst := l.op("And", []int{1}, []value{more, shrinks})
	keepWidth := l.op("Where", []int{4}, []value{bools(0, 0, 1, 0), shape, target})
	keepHeight := l.op("Where", []int{4}, []value{bools(0, 1, 0, 0), shape, target})
	return l.op("Where", []int{4}, []value{verticalFirst, keepWidth, keepHeight})
}

// extentOf emits the height and width of images with channels last.
func (l *lowering) extentOf(batch value) extent {
	shape := l.op("Shape", []int{4}, []value{batch})
	return extent{l.op("Gather", []int{1}, []value{shape, l.ints(1)}), l.op("Gather", []int{1}, []value{shape, l.ints(2)})}
}

// frameGraph emits what models.FrameOf and models.Region.Place compute, with the same
// integers.
type frameGraph struct {
	*lowering
	input    models.Size
	original extent
	first    *extent // the first row and column that a crop keeps; nil without one
	from     extent  // the height and width that are kept
}

// calculate emits an operator of numbers of one element.
func (f *frameGraph) calculate(op string, a, b value) value { return f.op(op, []int{1}, []value{a, b}) }

// scaled emits a·times/by, rounded to the nearest, at least 1 and at most limit.
func (f *frameGraph) scaled(a, times, by, limit value) value {
	rounded := f.calculate("Div", f.calculate("Add", f.calculate("Mul", a, times), f.calculate("Div", by, f.ints(2))), by)
	return f.calculate("Min", limit, f.calculate("Max", rounded, f.ints(1)))
}

// padded emits the height and width of an image within the border.
func (f *frameGraph) padded() extent {
	o, h, w := f.original, f.ints(f.input.H), f.ints(f.input.W)
	return extent{f.scaled(o.h, w, o.w, h), f.scaled(o.w, h, o.h, w)}
}

// crop emits the part of an image with the input's aspect ratio.
func (f *frameGraph) crop(batch value) value {
	o, h, w := f.original, f.ints(f.input.H), f.ints(f.input.W)
	f.from = extent{f.scaled(o.w, h, w, o.h), f.scaled(o.h, w, h, o.w)}
	half := func(whole, part value) value { return f.calculate("Div", f.calculate("Sub", whole, part), f.ints(2)) }
	f.first = &extent{half(o.h, f.from.h), half(o.w, f.from.w)}
	pair := func(a, b value) value { return f.op("Concat", []int{2}, []value{a, b}, intAttr("axis", 0)) }
	starts := pair(f.first.h, f.first.w)
	ends := pair(f.calculate("Add", f.first.h, f.from.h), f.calculate("Add", f.first.w, f.from.w))
	return f.op("Slice", nil, []value{batch, starts, ends, f.ints(1, 2)})
}

// pad emits the border, of -1, around planes.
func (f *frameGraph) pad(planes value, to extent) value {
	before := func(whole int, part value) value {
		return f.calculate("Div", f.calculate("Sub", f.ints(whole), part), f.ints(2))
	}
	after := func(whole int, part, before value) value {
		return f.calculate("Sub", f.calculate("Sub", f.ints(whole), part), before)
	}
	top, left := before(f.input.H, to.h), before(f.input.W, to.w)
	pads := f.op("Concat", []int{8}, []value{f.ints(0, 0), top, left, f.ints(0, 0),
		after(f.input.H, to.h, top), after(f.input.W, to.w, left)}, intAttr("axis", 0))
	return f.op("Pad", planes.shape, []value{planes, pads, f.floats(nil, -1)}, textAttr("mode", "constant"))
}

// region emits the mask of the region for an image of the size `to`, height×width.
func (f *frameGraph) region(p *models.Preprocessing, to extent) (value, error) {
	mask, err := p.Region.Mask()
	if err != nil {
		return value{}, err
	}
	bytesOf := func(mask []bool) []byte {
		out := make([]byte, len(mask))
		for i, in := range mask {
			if in {
				out[i] = 1
			}
		}
		return out
	}
	if p.Fit == "" { // the same for an image of any size
		placed := p.Region.Place(models.FrameOf(f.input, p.Fit, f.input.W, f.input.H), mask)
		return f.constant(onnx.TensorProto_BOOL, []int{f.input.H, f.input.W}, bytesOf(placed)), nil
	}
	first, from := extent{f.ints(0), f.ints(0)}, f.original
	if f.first != nil {
		first, from = *f.first, f.from
	}
	whole := f.constant(onnx.TensorProto_BOOL, []int{p.Region.Height, p.Region.Width}, bytesOf(mask))
	rows := f.centres(first.h, from.h, to.h, f.original.h, p.Region.Height)
	columns := f.centres(first.w, from.w, to.w, f.original.w, p.Region.Width)
	lines := f.op("Gather", nil, []value{whole, rows}, intAttr("axis", 0))
	return f.op("Gather", nil, []value{lines, columns}, intAttr("axis", 1)), nil
}

// centres emits the indexes that models.centre returns.
func (f *frameGraph) centres(first, from, to, whole value, n int) value {
	scalar := func(v value) value { return f.op("Squeeze", []int{}, []value{v, f.ints(0)}) }
	zero, one := scalar(f.ints(0)), scalar(f.ints(1))
	i := f.op("Range", nil, []value{zero, scalar(to), one})
	odd := f.op("Add", nil, []value{f.op("Mul", nil, []value{i, f.ints(2)}), f.ints(1)})
	twice := f.calculate("Mul", to, f.ints(2))
	start := f.calculate("Mul", twice, first)
	numerator := f.op("Mul", nil, []value{f.op("Add", nil, []value{f.op("Mul", nil, []value{odd, from}), start}), f.ints(n)})
	at := f.op("Div", nil, []value{numerator, f.calculate("Mul", twice, whole)})
	return f.op("Min", nil, []value{at, f.ints(n - 1)})
}
