package dataset

import "testing"

// A model whose window Check refuses could not be read again.
func TestWindowFinder_ChoosesWindowsThatModelsCanHave(t *testing.T) {
	for name, c := range map[string]struct {
		values []float32
		chosen bool
	}{
		"12 bits": {[]float32{0, 2000, 4095}, true}, "one value": {[]float32{7, 7, 7}, true}, "zeros": {[]float32{0, 0}, true},
		"one large value": {[]float32{1e9, 1e9}, true}, "negative": {[]float32{-1e9, -1e9}, true},
		"too large": {[]float32{0, 1e30}, false}, "the largest": {[]float32{-3.4e38, 3.4e38}, false}, "one value that is too large": {[]float32{1e20, 1e20}, false},
		"too close": {[]float32{0, 1e-30}, false},
	} {
		w := (&windowFinder{images: []probed{{read: true, deep: true, values: c.values}}}).find()
		if (w != nil) != c.chosen || w != nil && (w.Check() != nil || w[0] > float64(c.values[0]) || w[1] < float64(c.values[len(c.values)-1])) {
			t.Errorf("%s: %v", name, w)
		}
	}
}
