// Package tiling plans how a large image is cut into overlapping square tiles, and blends
// what is computed for each tile into one plane without seams. It knows no pixels, no
// models and no scores.
package tiling

// MaxTiles is the largest number of tiles of an image. An image of 64 megapixels has 1,300
// tiles of 256 pixels that overlap by 32.
const MaxTiles = 4096

// Grid is the plan for an image of W×H pixels: a tile of Side×Side pixels at each pair of
// a left edge in Xs and a top edge in Ys. A tile may reach beyond an image that is
// smaller than it.
type Grid struct {
	W, H, Side int
	Xs, Ys     []int
	// Kept are the places of the tiles of the plan that are used, ascending; nil means
	// all. A place is the number of a tile among all of the plan, row by row.
	Kept []int
}

// New returns the grid of the fewest tiles that cover the image and overlap their
// neighbours by at least overlap pixels, which must be below side. The tiles of a row and
// of a column are evenly spaced, and the last one ends at the image's edge.
func New(w, h, side, overlap int) Grid {
	return Grid{W: w, H: h, Side: side, Xs: starts(w, side, overlap), Ys: starts(h, side, overlap)}
}

// starts returns where the tiles begin along an axis of n pixels.
func starts(n, side, overlap int) []int {
	if n <= side {
		return []int{0}
	}
	step := side - overlap
	count := (n - overlap + step - 1) / step
	out := make([]int, count)
	for i := range out {
		out[i] = (i*(n-side) + (count-1)/2) / (count - 1)
	}
	return out
}

// Count returns the number of tiles of an image without planning them.
func Count(w, h, side, overlap int) int {
	along := func(n int) int {
		if n <= side {
			return 1
		}
		return (n - overlap + side - overlap - 1) / (side - overlap)
	}
	return along(w) * along(h)
}

// Len returns the number of tiles that are used.
func (g Grid) Len() int {
	if g.Kept != nil {
		return len(g.Kept)
	}
	return g.Places()
}

// Places returns the number of tiles of the plan, used or not.
func (g Grid) Places() int { return len(g.Xs) * len(g.Ys) }

// Place returns the place of tile i of those that are used.
func (g Grid) Place(i int) int {
	if g.Kept != nil {
		return g.Kept[i]
	}
	return i
}

// At returns the left and the top edge of tile i of those that are used.
func (g Grid) At(i int) (x, y int) {
	i = g.Place(i)
	return g.Xs[i%len(g.Xs)], g.Ys[i/len(g.Xs)]
}

// Equal reports whether two grids have the same tiles.
func (g Grid) Equal(other Grid) bool {
	return g.W == other.W && g.H == other.H && g.Side == other.Side && len(g.Xs) == len(other.Xs) && len(g.Ys) == len(other.Ys)
}

// Scaled returns the size of an image of w×h pixels whose longest side is scaled to
// longest pixels; 0 means that it is not scaled.
func Scaled(w, h, longest int) (int, int) {
	if longest <= 0 {
		return w, h
	}
	// Rounded to the nearest pixel.
	if w >= h {
		return longest, max((2*h*longest+w)/(2*w), 1)
	}
	return max((2*w*longest+h)/(2*h), 1), longest
}
