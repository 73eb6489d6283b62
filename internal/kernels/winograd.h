// Convolutions with fewer multiplications, by Winograd's and Karatsuba's algorithms, in tiles of 2×2
// output pixels.
//
// Along one axis, two neighbouring output pixels of a kernel with three taps g take six products.
// With a stride of 1 and the input pixels x[−1], x[0], x[1], x[2], four are enough (Winograd's
// F(2,3); Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016):
//
//	m₀ = (x[−1] − x[1])·g₀           y[0] = m₀ + m₁ + m₂
//	m₁ = (x[0] + x[1])·(g₀+g₁+g₂)/2  y[1] = m₁ − m₂ − m₃
//	m₂ = (x[1] − x[0])·(g₀−g₁+g₂)/2
//	m₃ = (x[0] − x[2])·g₂
//
// With a stride of 2 and the input pixels x[−1] … x[3], five are enough (Karatsuba's algorithm for
// the odd pixels; the even ones are multiplied by g₁ only), which form three sums:
//
//	m₀ = x[1]·(g₀+g₂)                          y[0] = m₀ + m₁
//	m₁ = (x[−1] − x[1])·g₀ + x[0]·g₁           y[1] = m₀ + m₂
//	m₂ = (x[3] − x[1])·g₂ + x[2]·g₁
//
// A transposed convolution with a stride of 2 computes four output pixels of x[0], x[1] and x[2]
// from five products instead of six:
//
//	m₀ = (x[0] − x[1])·g₂            y[0] = m₃
//	m₁ = x[1]·(g₀+g₂)                y[1] = m₀ + m₁
//	m₂ = (x[2] − x[1])·g₀            y[2] = m₄
//	m₃ = x[0]·g₁                     y[3] = m₁ + m₂
//	m₄ = x[1]·g₁
//
// In two dimensions that is 16 or 25 products instead of 36 for each pair of channels. The sums are
// also over the channels, so they are matrix products, and with many channels the transforms before
// and after them are cheap.
#ifndef ANOMALY_WINOGRAD_H
#define ANOMALY_WINOGRAD_H

#include "convolution.h"

// winograd_applies reports whether these algorithms support a convolution from x to y and are faster
// than an indirect GEMM.
int winograd_applies(window w, image x, image y);

// conv_winograd is conv, and conv_transpose_winograd is conv_transpose, where winograd_applies.
int conv_winograd(const team *t, window w, image large, const float *kernel, weight_cache *cache, float version, epilogue f, image small);
int conv_transpose_winograd(const team *t, window w, image small, const float *kernel, weight_cache *cache, float version, epilogue f, image large);

// conv_weight_grad_winograd is conv_weight_grad, where winograd_applies from large to small.
int conv_weight_grad_winograd(const team *t, window w, image small, image large, float *kernel);

#endif
