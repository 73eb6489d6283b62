// Convolutions by squares of 2×2 pixels, with fewer multiplications.
//
// Along one axis two neighbouring pixels of a kernel with three taps g take six products.
// With a stride of 1 and the pixels x[−1], x[0], x[1], x[2] they can be had of four
// (Winograd's F(2,3); Lavin and Gray, "Fast Algorithms for Convolutional Neural
// Networks", 2016):
//
//	m₀ = (x[−1] − x[1])·g₀           y[0] = m₀ + m₁ + m₂
//	m₁ = (x[0] + x[1])·(g₀+g₁+g₂)/2  y[1] = m₁ − m₂ − m₃
//	m₂ = (x[1] − x[0])·(g₀−g₁+g₂)/2
//	m₃ = (x[0] − x[2])·g₂
//
// With a stride of 2 and the pixels x[−1] … x[3] of five (Karatsuba's scheme of the odd
// pixels; the even ones meet g₁ alone), which make three sums:
//
//	m₀ = x[1]·(g₀+g₂)                          y[0] = m₀ + m₁
//	m₁ = (x[−1] − x[1])·g₀ + x[0]·g₁           y[1] = m₀ + m₂
//	m₂ = (x[3] − x[1])·g₂ + x[2]·g₁
//
// A transposed convolution with a stride of 2 makes four pixels of x[0], x[1] and x[2], which
// take six products, of five:
//
//	m₀ = (x[0] − x[1])·g₂            y[0] = m₃
//	m₁ = x[1]·(g₀+g₂)                y[1] = m₀ + m₁
//	m₂ = (x[2] − x[1])·g₀            y[2] = m₄
//	m₃ = x[0]·g₁                     y[3] = m₁ + m₂
//	m₄ = x[1]·g₁
//
// In two dimensions that is 16 products for each pair of channels instead of 36, or 25.
// The sums are over the channels too, so they are products of matrices, and the transforms
// before and behind them are little work where there are many channels.
#ifndef ANOMALY_SQUARES_H
#define ANOMALY_SQUARES_H

#include "convolution.h"

// by_squares says whether a convolution can be computed so, and is faster: from the image
// x, with its channels, to y, of y's size.
int by_squares(window w, image x, image y);

// down_squares is down, and up_squares up, where by_squares allows it.
int down_squares(const team *t, window w, image large, const float *kernel, kept *keep, float version, finish f, image small);
int up_squares(const team *t, window w, image small, const float *kernel, kept *keep, float version, finish f, image large);

// correlate_squares is correlate, where by_squares allows it from large to small.
int correlate_squares(const team *t, window w, image small, image large, float *kernel);

#endif
