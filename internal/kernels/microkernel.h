// The innermost loops, compiled once per instruction set; see loops.h. A register tile has mr
// pixels (or elements of a run) and nr channels.
#ifndef ANOMALY_MICROKERNEL_H
#define ANOMALY_MICROKERNEL_H

#include <stddef.h>

#include "convolution.h" // for RECTIFY_RELU6

#define MAX_MR 8
#define MAX_NR 32
#define MAX_LANES 16

// copy_few is a memcpy for about a dozen numbers, which are too few for a function call.
static inline void copy_few(float *to, const float *from, long n) {
	typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
	long i = 0;
	for (; i + 4 <= n; i += 4) *(four *)(to + i) = *(const four *)(from + i);
	if (i < n && n >= 4) // the last four overlap those before
		*(four *)(to + n - 4) = *(const four *)(from + n - 4);
	else
		for (; i < n; i++) to[i] = from[i];
}

typedef struct microkernels {
	const char *name;
	long lanes, mr, nr;

	// narrow is the microkernels with tiles of one vector of channels, or NULL.
	const struct microkernels *narrow;

	// igemm computes an mr×nr tile of an indirect GEMM: tile[i][j] is the sum over runs r and
	// k < len of pointers[r·stride + i][k] · weights[(r·len + k)·nr + j].
	void (*igemm)(const float *const *pointers, long stride, long runs, long len, const float *weights, float *tile);

	// igemm_epilogue computes a tile like igemm, applies the epilogue without a mask, and writes
	// its rows to mr destinations.
	void (*igemm_epilogue)(const float *const *pointers, long stride, long runs, long len, const float *weights, const float *bias, int rectify,
	                       float *const *out);

	// pointwise computes a tile of a 1×1 convolution: like igemm, with one run, and pixels ld numbers
	// apart from x on. The sums start with the bias. The numbers at add are added (NULL for none),
	// then a ReLU6 is applied if relu6 is set. The rows are written to mr destinations.
	void (*pointwise)(const float *x, long ld, long len, const float *weights, const float *bias, int relu6, const float *const *add,
	                  float *const *out);

	// depthwise computes n pixels of a row of a depthwise convolution, nr channels each, with a
	// kernel of 3×3 or 5×5: a ReLU6 of the bias plus the sum over the kernel's rows and columns of
	// x[row·row_ld + (pixel·stride + column)·nr + j] · weights[(row·kernel + column)·nr + j]. The
	// results are out_ld numbers apart.
	void (*depthwise)(const float *x, long row_ld, long kernel, long stride, long n, const float *weights, const float *bias, float *out,
	                  long out_ld);

	// col2im adds up the four contributions to the output of n input pixels, ld numbers apart, and
	// the bias; see col2im.c. A contribution counts where its mask has all bits set. Of the first
	// 2·half sums of an input pixel, half go to the upper row and half to the lower one.
	void (*col2im)(const float *const parts[4], const int masks[4][MAX_LANES], const float *bias, long n, long ld, long half, float *upper,
	               float *lower);

	// igemm_transposed adds to a tile of mr rows, nr numbers apart: sums[i·nr + j] increases by the
	// sum over k < n of pointers[k][at + i] · small[k·ld + j].
	void (*igemm_transposed)(const float *const *pointers, long n, long at, const float *small, long ld, float *sums);

	// epilogue applies the epilogue to nr channels of one pixel; mask may be NULL.
	void (*epilogue)(const float *tile, const float *bias, const float *mask, int rectify, float *out);

	// sum_rows adds n rows of nr numbers, ld numbers apart, to sums.
	void (*sum_rows)(const float *rows, long n, long ld, float *sums);

	// lerp interpolates n numbers linearly: low·(1 − share) + high·share.
	void (*lerp)(long n, const float *low, const float *high, float share, float *out);

	// adam computes an Adam step of n numbers; n must be at least lanes. before and after are the
	// parameter and its first and second moment; rates are the step size, the correction, β₁,
	// 1−β₁, β₂, 1−β₂ and ε. The gradient is the sum of gradient_count gradients.
	void (*adam)(long n, const float *rates, const float *const *gradients, long gradient_count, const float *const *before,
	             float *const *after);

	// sigmoid_squared_error returns the sum of (sigmoid(x) − image)² over n numbers; n must be a
	// multiple of MAX_LANES.
	float (*sigmoid_squared_error)(long n, const float *x, const float *image);

	// winograd is the transforms of winograd.h: for a stride of 1, a stride of 2, and a transposed
	// convolution with a stride of 2, which has no gradients. Pixels and products are by row and
	// column; order is where each of them is written.
	struct {
		// input_transform transforms the pixels of an input tile. Here and in
		// output_transform_grad, channels must be a multiple of lanes.
		void (*input_transform)(const float *const *pixels, long channels, const unsigned char *order, float *products);
		// kernel_transform transforms nine taps, ld numbers apart, of nr channels. The results are
		// apart numbers apart.
		void (*kernel_transform)(const float *taps, long ld, const unsigned char *order, long apart, float *products);
		// output_transform computes the pixels of an output tile, nr channels each, from the sums
		// of products, ld numbers apart, and applies the epilogue.
		void (*output_transform)(const float *sums, long ld, const float *bias, const float *const *masks, int rectify, float *const *pixels);
		// output_transform_grad computes the gradients of the sums from those of a tile's four pixels.
		void (*output_transform_grad)(const float *const *pixels, long channels, float *sums);
		// kernel_transform_grad computes the gradients of nine taps, nr channels each, from those of
		// the products.
		void (*kernel_transform_grad)(const float *const *products, float *taps);
	} winograd[3];
} microkernels;

// best_microkernels returns the best microkernels that this processor supports, unless
// choose_microkernels chose others.
const microkernels *best_microkernels(void);

// choose_microkernels selects the microkernels of that name, and reports whether this processor
// supports them. No computation may be running.
int choose_microkernels(const char *name);

// microkernels_name returns the name of set i, the best first, and NULL after the last.
const char *microkernels_name(size_t i);

#endif
