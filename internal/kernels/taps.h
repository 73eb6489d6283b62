// Transposed convolutions to few channels, by taps.
//
// With a kernel of 3×3 and a stride of 2 each pixel of the small image takes part in nine
// pixels of the large one. Where these have few channels, as a photograph's three, its
// products with all taps are one product of matrices whose columns are taps and channels:
// 27 of 32 lanes. The four pixels of the large image that a pixel stands for are then its own
// products with four taps, and those of three neighbours with the others, which are added.
// Computed by phases or all phases at once, a third of the lanes would be idle and half of
// the products be with zeros.
#ifndef ANOMALY_TAPS_H
#define ANOMALY_TAPS_H

#include "convolution.h"

// by_taps says whether a transposed convolution can be computed so, which is faster.
int by_taps(window w, image large, finish f);

// up_taps is up where by_taps allows it.
int up_taps(const team *t, image small, const float *kernel, kept *keep, float version, finish f, image large);

#endif
