package imagefile

// oriented applies an orientation from 1 to 8 of TIFF and EXIF. Other values return the
// image unchanged.
func (img *RGB) oriented(orientation int) *RGB {
	if orientation < 2 || orientation > 8 {
		return img
	}
	w, h := img.W, img.H
	if img.samples != nil {
		img.samples.orient(w, h, orientation)
		if img.Pix == nil && img.plane == nil {
			if orientation >= 5 {
				img.W, img.H = h, w
			}
			return img
		}
	}
	img.spread()
	swap := orientation >= 5
	out := &RGB{W: w, H: h, Pix: *borrow(3 * w * h), largest: img.largest, samples: img.samples}
	if swap {
		out.W, out.H = h, w
	}
	for y := range out.H {
		for x := range out.W {
			sx, sy := x, y
			if swap {
				sx, sy = y, x
			}
			// After the transposition, the source is mirrored in no axis, one or both.
			switch orientation {
			case 2, 8:
				sx = w - 1 - sx
			case 3, 7:
				sx, sy = w-1-sx, h-1-sy
			case 4, 6:
				sy = h - 1 - sy
			}
			copy(out.Pix[3*(y*out.W+x):][:3], img.Pix[3*(sy*w+sx):][:3])
		}
	}
	giveBack(&img.Pix)
	giveBack(&img.plane)
	return out
}
