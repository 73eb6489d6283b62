package exporter

import (
	"math"

	"github.com/deepmed/anomaly/internal/network"
	"github.com/deepmed/anomaly/internal/onnx"
	"github.com/deepmed/anomaly/models"
	"gorgonia.org/gorgonia"
)

// tiledImageModel is ImageModel for a model of tiles. The graph cuts an image of any size
// into tiles, computes them as one batch, and joins their scores and maps. The output
// `anomaly_map` has the size that the image is judged at.
func tiledImageModel(m *models.Model) ([]byte, error) {
	side, tiles := m.ImageSize, m.Tiles()
	f, err := network.AutoencoderOf(m, 1)
	if err != nil {
		return nil, err
	}
	l := newLowering("autoencoder_image", false)
	l.opset, l.batch = imageOpset, "N"
	l.weights(f, m.Weights)
	image := l.scaledImage(tiles.LongestSide, m.Metadata.InputPreprocessing().Window)
	x, y := l.tileAxis(image.width, side, tiles.Overlap), l.tileAxis(image.height, side, tiles.Overlap)
	tile := l.cutTiles(image, x, y, side)
	count := l.op("Mul", []int{1}, []value{x.count, y.count})
	places := count // of the plan
	var kept *value // the places of the tiles in the region; nil for all
	if r := m.Metadata.InputPreprocessing().Region; r != nil {
		mask, err := l.tileMasks(r, image, x, y, side)
		if err != nil {
			return nil, err
		}
		kept = l.keptTiles(mask)
		masked := l.op("Where", tile.shape, []value{mask, tile, l.floats(nil, -1)})
		tile = l.op("Gather", tile.shape, []value{masked, *kept}, intAttr("axis", 0))
		count = l.op("Shape", []int{1}, []value{*kept})
	}
	l.done[f.Image] = tile
	j, err := f.Judge(m.Reference)
	if err != nil {
		return nil, err
	}
	if j.Place != nil {
		all := l.op("Range", nil, []value{l.scalar(l.ints(0)), l.scalar(places), l.scalar(l.ints(1))})
		if kept != nil {
			all = *kept
		}
		place := l.op("Mod", nil, []value{all, l.ints(tiles.Places())})
		l.done[j.Place] = l.op("Cast", []int{1}, []value{place}, intAttr("to", floatType))
	}
	if err := l.referenceStatistics(j, m.Reference); err != nil {
		return nil, err
	}
	full := func(n *gorgonia.Node) value {
		var v value
		if err == nil {
			v, err = l.full(n)
		}
		return v
	}
	scores, errors, maps := full(j.Score), full(f.Error), full(j.Map)
	if err != nil {
		return nil, err
	}
	highest := l.op("ReduceMax", []int{1}, []value{scores, l.ints(0)}, intAttr("keepdims", 1))
	score := highest
	if c := m.Metadata.Decision.Tiles; c != nil {
		share := l.op("Div", []int{1}, []value{l.op("Cast", []int{1}, []value{count}, intAttr("to", floatType)), l.floats([]int{1}, float32(c.Count))})
		more := l.op("Mul", []int{1}, []value{l.op("Log", []int{1}, []value{share}), l.floats([]int{1}, float32(c.Tail))})
		score = l.op("Max", []int{1}, []value{l.op("Sub", []int{1}, []value{highest, more}), l.floats([]int{1}, 0)})
	}
	if j.Place != nil { // an image of other places is never normal
		fits := l.op("And", []int{1}, []value{
			l.op("Equal", []int{1}, []value{x.count, l.ints(tiles.Columns)}), l.op("Equal", []int{1}, []value{y.count, l.ints(tiles.Rows)})})
		score = l.op("Where", []int{1}, []value{fits, score, l.floats([]int{1}, float32(math.Inf(1)))})
	}
	l.batch = "" // of the outputs
	measure, threshold := m.Metadata.Measure()
	l.named(score, network.ErrorName, "how far the image's most unusual tile is from normal ones ("+measure+"); above the threshold it is an anomaly")
	l.named(l.op("ReduceMean", []int{1}, []value{errors, l.ints(0)}, intAttr("keepdims", 1)), network.MSEName,
		"mean squared error between the image and its reconstruction")
	above := l.op("Greater", []int{1}, []value{{name: network.ErrorName}, l.floats(nil, roundDown(threshold))})
	l.rename(above.name, verdictName)
	l.proto.Output = append(l.proto.Output, describe(verdictName, onnx.TensorProto_BOOL, []dim{{size: 1}},
		"whether the error is above the model's threshold"))
	plane := l.blend(maps, x, y, image, kept)
	l.rename(plane.name, network.MapName)
	l.proto.Output = append(l.proto.Output, describe(network.MapName, onnx.TensorProto_FLOAT, []dim{{name: "map_height"}, {name: "map_width"}},
		"how unusual each pixel's surroundings are, at the size that the image is judged at"))
	props, err := metadataProps(m)
	if err != nil {
		return nil, err
	}
	return l.model("Convolutional autoencoder that was trained on tiles of normal images only, with its preprocessing and its decision.", props)
}

// named declares a value as an output with a name.
func (l *lowering) named(v value, name, doc string) {
	l.rename(v.name, name)
	v.name = name
	l.output(v, doc)
}

// scalar removes the only axis of a vector of one element.
func (l *lowering) scalar(v value) value { return l.op("Squeeze", []int{}, []value{v, l.ints(0)}) }

// pixels is an image in the graph, height×width×3, and its size as vectors of one element.
// The pixels are bytes or, if they are deep, numbers in 0…1.
type pixels struct {
	pixels, width, height value
	deep                  bool
}

// scaledImage declares the input and resizes it so that its longest side has that many
// pixels, as tiling.Scaled does; 0 leaves it as it is. With a window, its values are within it.
func (l *lowering) scaledImage(longest int, window *models.Window) pixels {
	image := l.declareImage(window != nil)
	if window != nil {
		image = l.window(image, *window)
	}
	one := func(op string, a, b value) value { return l.op(op, []int{1}, []value{a, b}) }
	shape := l.op("Shape", []int{3}, []value{image})
	h, w := one("Gather", shape, l.ints(0)), one("Gather", shape, l.ints(1))
	if longest == 0 {
		return pixels{image, w, h, window != nil}
	}
	// The shorter side, rounded to the nearest pixel.
	scaled := func(short, long value) value {
		sum := one("Add", one("Mul", one("Mul", short, l.ints(2)), l.ints(longest)), long)
		return one("Max", one("Div", sum, one("Mul", long, l.ints(2))), l.ints(1))
	}
	wide := one("GreaterOrEqual", w, h)
	where := func(a, b value) value { return l.op("Where", []int{1}, []value{wide, a, b}) }
	toW, toH := where(l.ints(longest), scaled(w, h)), where(scaled(h, w), l.ints(longest))
	size := func(h, w value) value {
		return l.op("Concat", []int{4}, []value{l.ints(1), h, w, l.ints(models.InputChannels)}, intAttr("axis", 0))
	}
	// The order of the two passes is Pillow's; see verticalFirst in package imagefile.
	lost, lostWidth := one("Sub", h, toH), one("Sub", w, toW)
	verticalFirst := one("And", one("Greater", lost, one("Mul", lostWidth, l.ints(2))), one("Greater", lost, l.ints(0)))
	between := l.op("Where", []int{4}, []value{verticalFirst, size(toH, w), size(h, toW)})
	batch := l.op("Unsqueeze", nil, []value{image, l.ints(0)})
	once := l.resize(batch, between, nil)
	resized := l.op("Squeeze", nil, []value{l.resize(once, size(toH, toW), nil), l.ints(0)})
	return pixels{resized, toW, toH, window != nil}
}

// tileAxis is the plan of the tiles along one axis of n pixels, as package tiling makes it.
type tileAxis struct {
	// count is the number of tiles, a vector of one element.
	count value
	// at are the pixels of each tile, count×side, at most n−1.
	at value
	// weight is the weight of each of these pixels in the mean of all tiles that cover it,
	// count×side; 0 beyond the image.
	weight value
}

func (l *lowering) tileAxis(n value, side, overlap int) tileAxis {
	ints := func(op string, a, b value) value { return l.op(op, nil, []value{a, b}) }
	step := side - overlap
	count := ints("Max", ints("Div", ints("Add", n, l.ints(step-1-overlap)), l.ints(step)), l.ints(1))
	gaps := ints("Sub", count, l.ints(1))
	index := l.op("Range", nil, []value{l.scalar(l.ints(0)), l.scalar(count), l.scalar(l.ints(1))})
	room := ints("Max", ints("Sub", n, l.ints(side)), l.ints(0))
	starts := ints("Div", ints("Add", ints("Mul", index, room), ints("Div", gaps, l.ints(2))), ints("Max", gaps, l.ints(1)))
	column := func(v value) value { return l.op("Unsqueeze", nil, []value{v, l.ints(1)}) }
	within, centres := make([]int, side), make([]float32, side)
	ends := make([]float32, side)
	for i := range within {
		within[i], centres[i], ends[i] = i, float32(i)+0.5, float32(side-i)-0.5
	}
	covered := ints("Add", column(starts), l.ints(within...))
	inside := ints("Less", covered, n)
	at := ints("Min", covered, ints("Sub", n, l.ints(1)))
	// The pixels that each tile shares with the one after it.
	later := l.op("Slice", nil, []value{starts, l.ints(1), l.ints(math.MaxInt32), l.ints(0)})
	earlier := l.op("Slice", nil, []value{starts, l.ints(0), l.ints(-1), l.ints(0)})
	shared := ints("Sub", l.ints(side), ints("Sub", later, earlier))
	join := func(vs ...value) value {
		v := l.op("Cast", nil, []value{l.op("Concat", nil, vs, intAttr("axis", 0))}, intAttr("to", floatType))
		// Half a pixel stands for none: every weight is then at least 1.
		return column(ints("Max", v, l.floats([]int{1}, 0.5)))
	}
	before, after := join(l.ints(0), shared), join(shared, l.ints(0))
	ramp := l.op("Min", nil, []value{
		l.floats([]int{1}, 1), ints("Div", l.floats([]int{side}, centres...), before), ints("Div", l.floats([]int{side}, ends...), after)})
	ramp = ints("Mul", ramp, l.op("Cast", nil, []value{inside}, intAttr("to", floatType)))
	flat, weights := l.op("Reshape", nil, []value{at, l.ints(-1)}), l.op("Reshape", nil, []value{ramp, l.ints(-1)})
	sums := l.scatter(n, flat, weights)
	sum := l.op("Reshape", nil, []value{ints("Gather", sums, flat), l.op("Shape", nil, []value{ramp})})
	return tileAxis{count: count, at: at, weight: ints("Div", ramp, sum)}
}

// scatter adds values to a vector of n zeros at their indexes.
func (l *lowering) scatter(n, indexes, values value) value {
	zeros := l.op("Expand", nil, []value{l.floats([]int{1}, 0), n})
	return l.op("ScatterElements", nil, []value{zeros, indexes, values}, intAttr("axis", 0), textAttr("reduction", "add"))
}

// cutTiles cuts an image into tiles, row by row: N×3×side×side in 0…1.
func (l *lowering) cutTiles(image pixels, x, y tileAxis, side int) value {
	const channels = models.InputChannels
	bands := l.op("Gather", nil, []value{image.pixels, y.at}, intAttr("axis", 0))
	cut := l.op("Gather", nil, []value{bands, x.at}, intAttr("axis", 2)) // rows×side×columns×side×3
	planes := l.op("Transpose", nil, []value{cut}, intsAttr("perm", 0, 2, 4, 1, 3))
	shape := []int{1, channels, side, side}
	tiles := l.op("Reshape", shape, []value{planes, l.ints(-1, channels, side, side)})
	if image.deep {
		return tiles
	}
	return l.op("Div", shape, []value{l.op("Cast", shape, []value{tiles}, intAttr("to", floatType)), l.floats(nil, math.MaxUint8)})
}

// tileMasks returns the masks of all tiles by a region, N×1×side×side.
func (l *lowering) tileMasks(r *models.Region, image pixels, x, y tileAxis, side int) (value, error) {
	mask, err := r.Mask()
	if err != nil {
		return value{}, err
	}
	bits := make([]byte, len(mask))
	for i, in := range mask {
		if in {
			bits[i] = 1
		}
	}
	// The pixel of the mask at the centre of each pixel; see models.Region.Lines.
	lines := func(at, n value, size int) value {
		odd := l.op("Add", nil, []value{l.op("Mul", nil, []value{at, l.ints(2)}), l.ints(1)})
		line := l.op("Div", nil, []value{l.op("Mul", nil, []value{odd, l.ints(size)}), l.op("Mul", nil, []value{n, l.ints(2)})})
		return l.op("Min", nil, []value{line, l.ints(size - 1)})
	}
	bands := l.op("Gather", nil, []value{l.constant(onnx.TensorProto_BOOL, []int{r.Height, r.Width}, bits), lines(y.at, image.height, r.Height)}, intAttr("axis", 0))
	cut := l.op("Gather", nil, []value{bands, lines(x.at, image.width, r.Width)}, intAttr("axis", 2)) // rows×side×columns×side
	tiles := l.op("Transpose", nil, []value{cut}, intsAttr("perm", 0, 2, 1, 3))
	return l.op("Reshape", []int{1, 1, side, side}, []value{tiles, l.ints(-1, 1, side, side)}), nil
}

// keptTiles returns the places of the tiles whose masks have a pixel inside.
func (l *lowering) keptTiles(mask value) *value {
	numbers := l.op("Cast", nil, []value{mask}, intAttr("to", floatType))
	any := l.op("ReduceMax", nil, []value{numbers, l.ints(1, 2, 3)}, intAttr("keepdims", 0))
	kept := l.op("Reshape", nil, []value{l.op("NonZero", nil, []value{any}), l.ints(-1)})
	return &kept
}

// blend joins the maps of tiles, N×side×side, to one of the image. They are those of the
// places in kept, or all if it is nil.
func (l *lowering) blend(maps value, x, y tileAxis, image pixels, kept *value) value {
	ints := func(op string, a, b value) value { return l.op(op, nil, []value{a, b}) }
	rows := func(v value) value { return l.op("Unsqueeze", nil, []value{v, l.ints(1, 3)}) }    // rows×1×side×1
	columns := func(v value) value { return l.op("Unsqueeze", nil, []value{v, l.ints(0, 2)}) } // 1×columns×1×side
	flat := func(v value) value { return l.op("Reshape", nil, []value{v, l.ints(-1)}) }
	at := ints("Add", ints("Mul", rows(y.at), image.width), columns(x.at))
	weight := ints("Mul", rows(y.weight), columns(x.weight))
	if kept != nil {
		side := l.op("Gather", nil, []value{l.op("Shape", nil, []value{x.at}), l.ints(1)})
		area := l.op("Concat", nil, []value{l.ints(-1), ints("Mul", side, side)}, intAttr("axis", 0))
		of := func(v value) value {
			return l.op("Gather", nil, []value{l.op("Reshape", nil, []value{v, area}), *kept}, intAttr("axis", 0))
		}
		at, weight = of(at), of(weight)
	}
	sum := l.scatter(ints("Mul", image.width, image.height), flat(at), ints("Mul", flat(maps), flat(weight)))
	return l.op("Reshape", nil, []value{sum, l.op("Concat", []int{2}, []value{image.height, image.width}, intAttr("axis", 0))})
}
