package synthetic

import "image"

const (
	// visibleWindow is the side, in pixels of referenceSide, of the square over
	// which a change is averaged: one pixel alone is not seen.
	visibleWindow = 3
	// A mean change of invisibleLevels grey levels is lost in the rounding of JPEG,
	// one of clearLevels is not.
	invisibleLevels, clearLevels = 2, 6
)

// setMask sets the mask to how visible the change from one image to the other is,
// and reports whether it is anywhere.
func (p *Painter) setMask(mask []float32, before, after []byte) bool {
	clear(mask)
	var area image.Rectangle
	for _, a := range p.anomalies {
		area = area.Union(a.box)
	}
	if area.Empty() {
		return false
	}
	reach := int(visibleWindow * p.scale / 2)
	box := area.Inset(-reach).Intersect(image.Rect(0, 0, p.side, p.side))
	w, h := box.Dx(), box.Dy()
	p.changed = grown(p.changed, w*h)
	i := 0
	for y := box.Min.Y; y < box.Max.Y; y++ {
		at := (y*p.side + box.Min.X) * channels
		a, b := before[at:][:w*channels], after[at:][:w*channels]
		for k := 0; k < len(a); k += channels {
			p.changed[i] = abs(int32(a[k])-int32(b[k])) + abs(int32(a[k+1])-int32(b[k+1])) + abs(int32(a[k+2])-int32(b[k+2]))
			i++
		}
	}
	// Sums over the window slide down the columns and along the rows. What lies
	// outside of the box did not change, what lies outside of the image is not
	// counted.
	p.columns = grown(p.columns, w)
	clear(p.columns)
	slide := func(row int, sign int32) {
		if row < 0 || row >= h {
			return
		}
		for x, v := range p.changed[row*w:][:w] {
			p.columns[x] += sign * v
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
		rows := min(y+reach, p.side-1) - max(y-reach, 0) + 1
		sum := int32(0)
		for _, v := range p.columns[:min(reach, w)] {
			sum += v
		}
		line := mask[y*p.side+box.Min.X:][:w]
		for column := range line {
			if in := column + reach; in < w {
				sum += p.columns[in]
			}
			if out := column - reach - 1; out >= 0 {
				sum -= p.columns[out]
			}
			if sum == 0 {
				continue
			}
			x := column + box.Min.X
			counted := rows * (min(x+reach, p.side-1) - max(x-reach, 0) + 1) * channels
			if mean := float32(sum) / float32(counted); mean > invisibleLevels {
				line[column] = min(1, mean/clearLevels)
				visible = true
			}
		}
	}
	return visible
}
