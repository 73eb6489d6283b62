// The innermost loops, which are compiled for each set of vector instructions; see
// loops.h. Of all of them, mr and nr are how many pixels (or elements of a
// patch) and how many channels a tile has.
#ifndef ANOMALY_MICROKERNEL_H
#define ANOMALY_MICROKERNEL_H

#include <stddef.h>

#include "convolution.h" // for RECTIFY_SIX

#define MAX_MR 8
#define MAX_NR 32
#define MAX_LANES 16

// copy_few is memcpy for a dozen numbers, whose call takes longer than they do.
static inline void copy_few(float *to, const float *from, long n) {
	typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
	long i = 0;
	for (; i + 4 <= n; i += 4) *(four *)(to + i) = *(const four *)(from + i);
	if (i < n && n >= 4) // the last four, some of them again
		*(four *)(to + n - 4) = *(const four *)(from + n - 4);
	else
		for (; i < n; i++) to[i] = from[i];
}

typedef struct microkernels {
	const char *name;
	long lanes, mr, nr;

	// narrow are those whose tiles have the channels of one vector, or NULL.
	const struct microkernels *narrow;

	// gather computes a tile, mr×nr: tile[i][j] is the sum over runs r and k < len of
	// points[r·stride + i][k] · weights[(r·len + k)·nr + j].
	void (*gather)(const float *const *points, long stride, long runs, long len, const float *weights, float *tile);

	// gather_into is gather whose tile is finished as by finish, without masks, and written
	// to mr places instead.
	void (*gather_into)(const float *const *points, long stride, long runs, long len, const float *weights, const float *bias, int rectify,
	                    float *const *out);

	// pointwise computes a tile as gather does, of one run and places that lie step apart
	// from x on, and writes it to mr places. The sums begin with the bias. The numbers that
	// add points to are added (add may be NULL), and where held is set what is beyond the
	// limits of a ReLU6 becomes them.
	void (*pointwise)(const float *x, long step, long len, const float *weights, const float *bias, int held, const float *const *add,
	                  float *const *out);

	// depthwise computes n pixels of a row, of nr channels: the bias and the sum over the rows
	// and columns of a kernel of 3×3 or 5×5 of x[row·row_step + (pixel·stride + column)·nr +
	// j] · weights[(row·kernel + column)·nr + j], held within the limits of a ReLU6. They are
	// written out_step apart.
	void (*depthwise)(const float *x, long row_step, long kernel, long stride, long n, const float *weights, const float *bias, float *out,
	                  long out_step);

	// join adds the parts of n places of taps.h, step apart, to those of bias. A part's
	// numbers count where all bits of its mask are set, as none are elsewhere. Of the first
	// 2·half sums of a place half are written above, and half below.
	void (*join)(const float *const parts[4], const int masks[4][MAX_LANES], const float *bias, long n, long step, long half, float *upper,
	             float *lower);

	// scatter adds to a tile, of mr rows that lie nr apart: sums[i·nr + j] grows by the
	// sum over k < n of points[k][at + i] · small[k·step + j].
	void (*scatter)(const float *const *points, long n, long at, const float *small, long step, float *sums);

	// finish writes nr channels of one pixel: bias is added, then what is below 0
	// becomes 0 if rectify says so, what is above 6 becomes 6 if it is RECTIFY_SIX, and what
	// has a mask that is not above 0 becomes 0 (mask may be NULL).
	void (*finish)(const float *tile, const float *bias, const float *mask, int rectify, float *out);

	// sum adds n rows of nr numbers, step apart, to sums.
	void (*sum)(const float *rows, long n, long step, float *sums);

	// blend writes n numbers between those of low and of high, of which the second have
	// that share.
	void (*blend)(long n, const float *low, const float *high, float share, float *out);

	// adam takes the step of Adam of n numbers, not fewer than lanes. Before and after it
	// are the parameters, the first and the second moments; rates are the step size, the
	// correction, β₁, 1−β₁, β₂, 1−β₂ and ε.
	void (*adam)(long n, const float *rates, const float *const *gradients, long parts, const float *const *before, float *const *after);

	// sigmoid_error is the sum of the squared differences between the sigmoids of n numbers,
	// a multiple of MAX_LANES, and those of the image.
	float (*sigmoid_error)(long n, const float *x, const float *image);

	// squares are the transforms of squares.h for a stride of 1 and of 2, and for the way up
	// with a stride of 2, which has no derivatives. Pixels and products are by row and
	// column; place says at which product's place one is written.
	struct {
		// analyse writes the products' side of a square from its pixels. Channels are a
		// multiple of lanes here and in distribute.
		void (*analyse)(const float *const *pixels, long channels, const unsigned char *place, float *products);
		// form writes nr lanes of the products' side of nine taps, which lie step apart.
		void (*form)(const float *taps, long step, const unsigned char *place, long apart, float *products);
		// synthesise writes a square's pixels, with nr channels, from sums of products
		// that lie step apart, and finishes them as finish does.
		void (*synthesise)(const float *sums, long step, const float *bias, const float *const *masks, int rectify, float *const *pixels);
		// distribute writes what each sum has of the derivatives of a square's four pixels.
		void (*distribute)(const float *const *pixels, long channels, float *sums);
		// unform writes nr lanes of the derivatives of nine taps from those of the products.
		void (*unform)(const float *const *products, float *taps);
	} squares[3];
} microkernels;

// best_microkernels are those of the processor that this runs on, unless others were
// chosen.
const microkernels *best_microkernels(void);

// choose_microkernels takes those of that name from now on, if this processor has them,
// and says whether it has. No computation may run meanwhile.
int choose_microkernels(const char *name);

// microkernels_name is the name of set i, the best first, NULL behind the last.
const char *microkernels_name(size_t i);

#endif
