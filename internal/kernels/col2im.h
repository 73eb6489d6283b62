// Transposed convolutions to few channels, by GEMM and col2im.
//
// With a kernel of 3×3 and a stride of 2, each input pixel contributes to nine output pixels. If the
// output has few channels, such as three, the products of an input pixel with all nine taps are one
// row of a matrix product whose columns are taps × channels: 27 of 32 lanes. The four output pixels
// of an input pixel are then sums of its own products with four taps and of the products of three
// neighbours with the other taps (col2im). One indirect GEMM per phase, or one for all phases, would
// leave a third of the lanes idle and multiply by zeros half of the time.
#ifndef ANOMALY_COL2IM_H
#define ANOMALY_COL2IM_H

#include "convolution.h"

// col2im_applies reports whether this algorithm supports a transposed convolution; where it does, it
// is the fastest.
int col2im_applies(window w, image large, epilogue f);

// conv_transpose_col2im is conv_transpose, where col2im_applies.
int conv_transpose_col2im(const team *t, image small, const float *kernel, weight_cache *cache, float version, epilogue f, image large);

#endif
