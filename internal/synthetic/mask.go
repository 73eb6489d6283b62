package synthetic

import "image"

const (
	// visibleWindow is the side, in pixels at referenceSide, of the square over which
	// a change is averaged, since a change of a single pixel is not visible.
	visibleWindow = 3
	// A mean change of invisibleLevels grey levels does not survive JPEG compression;
	// a change of clearLevels does.
	invisibleLevels, clearLevels = 2, 6
)

// setMask sets the mask to the visibility, 0…1, of the change at each pixel. It reports
// whether any pixel is above 0.
func (gen *Generator) setMask(mask []float32, before, after []byte) bool {
	clear(mask)
	var area image.Rectangle
	for _, a := range gen.anomalies {
		area = area.Union(a.box)
	}
	if area.Empty() {
		return false
	}
	reach := int(visibleWindow * gen.scale / 2)
	box := area.Inset(-reach).Intersect(gen.bounds())
	w, h := box.Dx(), box.Dy()
	gen.changed = grown(gen.changed, w*h)
	i := 0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		at := (y*gen.w + box.Min.X) * channels
		a, b := before[at:][:w*channels], after[at:][:w*channels]
		for k := 0; k < len(a); k += channels {
			gen.changed[i] = abs(int32(a[k])-int32(b[k])) + abs(int32(a[k+1])-int32(b[k+1])) + abs(int32(a[k+2])-int32(b[k+2]))
			i++
		}
	}
	// The sum over the window is updated down the columns and along the rows. Pixels
	// outside of the box did not change; pixels outside of the image do not count.
	gen.columns = grown(gen.columns, w)
	clear(gen.columns)
	slide := func(row int, sign int32) {
		if row < 0 || row >= h {
			return
		}
		for x, v := range gen.changed[row*w:][:w] {
			gen.columns[x] += sign * v
		}
	}
	for row := range reach {
		slide(row, 1)
	}
	visible := false
	for row := range h {
		slide(row+reach, 1)
		slide(row-reach-1, -1)
		y := row + box.Min.Y
		rows := min(y+reach, gen.h-1) - max(y-reach, 0) + 1
		sum := int32(0)
		for _, v := range gen.columns[:min(reach, w)] {
			sum += v
		}
		line := mask[y*gen.w+box.Min.X:][:w]
		for column := range line {
			if in := column + reach; in < w {
				sum += gen.columns[in]
			}
			if out := column - reach - 1; out >= 0 {
				sum -= gen.columns[out]
			}
			if sum == 0 {
				continue
			}
			x := column + box.Min.X
			if !gen.allowed(x, y) {
				continue
			}
			counted := rows * (min(x+reach, gen.w-1) - max(x-reach, 0) + 1) * channels
			if mean := float32(sum) / float32(counted); mean > invisibleLevels {
				line[column] = min(1, mean/clearLevels)
				visible = true
			}
		}
	}
	return visible
}
