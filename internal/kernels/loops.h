// The implementations of microkernel.h, with vectors of LANES float32 and register tiles of MR pixels
// by VECTORS vectors of channels. GCC and Clang compile them to the instructions that TARGET names;
// the tile sizes are chosen so that a tile stays in registers. Every result adds its products
// sequentially, in the order of k, whatever the vector size, so all processors with fused
// multiply-add compute the same bits.

#define NR (LANES * VECTORS)

typedef float vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// UNROLL is a fully unrolled loop, so that the elements of a tile stay in registers.
#ifdef __clang__
#define UNROLL(i, n) _Pragma("unroll") for (long i = 0; i < (n); i++)
#else
#define UNROLL(i, n) _Pragma("GCC unroll 16") for (long i = 0; i < (n); i++)
#endif

// VMIN and VMAX clamp a vector to a limit, their first argument; NaN stays NaN. SELECT returns a where all
// bits of the condition are set, else b.
#define SELECT(condition, a, b) ((vector)(((bits)(a) & (condition)) | ((bits)(b) & ~(condition))))

// A panel of weights exceeds the L1 cache, so weights are prefetched AHEAD rows in advance, which saves
// 5 % of an inference. CACHE_LINE is the number of float32 in a cache line.
#define AHEAD 12
#define CACHE_LINE 16

// ACCUMULATE adds len products of each of a tile's pixels to its sums.
#define ACCUMULATE(sum, p, len, weights) \
	for (long k = 0; k < (len); k++) { \
		vector w[VECTORS]; \
		UNROLL(j, VECTORS) w[j] = *(const vector *)((weights) + j * LANES); \
		UNROLL(line, NR / CACHE_LINE + (NR % CACHE_LINE > 0)) __builtin_prefetch((weights) + AHEAD * NR + line * CACHE_LINE); \
		(weights) += NR; \
		UNROLL(i, MR) { \
			vector x = p[i][k] - (vector){0}; \
			UNROLL(j, VECTORS) sum[i][j] += x * w[j]; \
		} \
	}

// GEMM declares the sums of a tile and computes them.
#define GEMM(sum, pointers, stride, runs, len, weights) \
	vector sum[MR][VECTORS]; \
	UNROLL(i, MR) UNROLL(j, VECTORS) sum[i][j] = (vector){0}; \
	for (long r = 0; r < runs; r++) { \
		const float *p[MR]; \
		UNROLL(i, MR) p[i] = pointers[r * stride + i]; \
		ACCUMULATE(sum, p, len, weights) \
	}

TARGET static void igemm(const float *const *pointers, long stride, long runs, long len, const float *weights, float *tile) {
	GEMM(sum, pointers, stride, runs, len, weights)
	UNROLL(i, MR) UNROLL(j, VECTORS) *(vector *)(tile + i * NR + j * LANES) = sum[i][j];
}

TARGET static void igemm_epilogue(const float *const *pointers, long stride, long runs, long len, const float *weights, const float *bias,
                                  int rectify, float *const *out) {
	GEMM(sum, pointers, stride, runs, len, weights)
	// A comparison returns all ones where it holds. all keeps every lane if there is no ReLU.
	const vector zero = {0};
	const bits all = rectify ? (bits){0} : ~(bits){0};
	const vector most = (rectify == RECTIFY_RELU6 ? 6.0f : __builtin_inff()) - zero;
	UNROLL(j, VECTORS) {
		vector add = *(const vector *)(bias + j * LANES);
		UNROLL(i, MR) {
			vector v = sum[i][j] + add;
			v = VMIN(most, v);
			*(vector *)(out[i] + j * LANES) = (vector)((bits)v & ((bits)(v > zero) | all));
		}
	}
}

TARGET static void col2im(const float *const parts[4], const int masks[4][MAX_LANES], const float *bias, long n, long ld, long half,
                          float *upper, float *lower) {
	for (long i = 0; i < n; i++) {
		float sums[MAX_LANES];
		UNROLL(j, MAX_LANES / LANES) {
			vector sum = *(const vector *)(bias + j * LANES);
			UNROLL(p, 4) sum += (vector)(*(const bits *)(parts[p] + i * ld + j * LANES) & *(const bits *)(masks[p] + j * LANES));
			*(vector *)(sums + j * LANES) = sum;
		}
		copy_few(upper + i * half, sums, half);
		copy_few(lower + i * half, sums + half, half);
	}
}

TARGET static void igemm_transposed(const float *const *pointers, long n, long at, const float *small, long ld, float *sums) {
	vector sum[MR][VECTORS];
	UNROLL(i, MR) UNROLL(j, VECTORS) sum[i][j] = (vector){0};
	for (long k = 0; k < n; k++) {
		const float *p = pointers[k] + at;
		vector d[VECTORS];
		UNROLL(j, VECTORS) d[j] = *(const vector *)(small + j * LANES);
		small += ld;
		UNROLL(i, MR) {
			vector x = p[i] - (vector){0};
			UNROLL(j, VECTORS) sum[i][j] += x * d[j];
		}
	}
	UNROLL(i, MR) UNROLL(j, VECTORS) *(vector *)(sums + i * NR + j * LANES) += sum[i][j];
}

TARGET static void epilogue_pixel(const float *tile, const float *bias, const float *mask, int rectify, float *out) {
	const vector zero = {0};
	UNROLL(j, VECTORS) {
		vector v = *(const vector *)(tile + j * LANES) + *(const vector *)(bias + j * LANES);
		// A comparison returns all ones where it holds, and all zeros are the number 0.
		if (rectify) v = (vector)((bits)v & (bits)(v > zero));
		if (rectify == RECTIFY_RELU6) v = VMIN(6.0f - zero, v);
		if (mask) v = (vector)((bits)v & (bits)(*(const vector *)(mask + j * LANES) > zero));
		*(vector *)(out + j * LANES) = v;
	}
}

// The transforms of winograd.h, LANES channels at a time.

// INPUT_1, INPUT_2 and INPUT_T transform the input pixels along an axis.
#define INPUT_1(x, v) \
	(v)[0] = (x)[0] - (x)[2], (v)[1] = (x)[1] + (x)[2], (v)[2] = (x)[2] - (x)[1], (v)[3] = (x)[1] - (x)[3]
#define INPUT_2(x, v) \
	(v)[0] = (x)[2], (v)[1] = (x)[0] - (x)[2], (v)[2] = (x)[1], (v)[3] = (x)[4] - (x)[2], (v)[4] = (x)[3]
#define INPUT_T(x, v) (v)[0] = (x)[0] - (x)[1], (v)[1] = (x)[1], (v)[2] = (x)[2] - (x)[1], (v)[3] = (x)[0]

#define INPUT_TRANSFORM(name, IN, OUT, INPUT) \
	TARGET static void name(const float *const *x, long channels, const unsigned char *order, float *out) { \
		for (long c = 0; c < channels; c += LANES) { \
			vector rows[OUT][IN]; \
			UNROLL(col, IN) { \
				vector line[IN], transformed[OUT]; \
				UNROLL(row, IN) line[row] = *(const vector *)(x[row * IN + col] + c); \
				INPUT(line, transformed); \
				UNROLL(row, OUT) rows[row][col] = transformed[row]; \
			} \
			UNROLL(row, OUT) { \
				vector transformed[OUT]; \
				INPUT(rows[row], transformed); \
				UNROLL(col, OUT) *(vector *)(out + order[row * OUT + col] * channels + c) = transformed[col]; \
			} \
		} \
	}
INPUT_TRANSFORM(input_transform_1, 4, 4, INPUT_1)
INPUT_TRANSFORM(input_transform_2, 5, 5, INPUT_2)
INPUT_TRANSFORM(input_transform_transposed, 3, 4, INPUT_T)

// KERNEL_1, KERNEL_2 and KERNEL_T transform the kernel's three taps along an axis.
#define KERNEL_1(g, u) \
	(u)[0] = (g)[0], (u)[1] = ((g)[0] + (g)[2] + (g)[1]) * 0.5f, (u)[2] = ((g)[0] + (g)[2] - (g)[1]) * 0.5f, (u)[3] = (g)[2]
#define KERNEL_2(g, u) \
	(u)[0] = (g)[0] + (g)[2], (u)[1] = (g)[0], (u)[2] = (g)[1], (u)[3] = (g)[2], (u)[4] = (g)[1]
#define KERNEL_T(g, u) \
	(u)[0] = (g)[2], (u)[1] = (g)[0] + (g)[2], (u)[2] = (g)[0], (u)[3] = (g)[1], (u)[4] = (g)[1]

#define KERNEL_TRANSFORM(name, N, KERNEL) \
	TARGET static void name(const float *taps, long ld, const unsigned char *order, long apart, float *out) { \
		UNROLL(j, VECTORS) { \
			vector rows[N][3]; \
			UNROLL(col, 3) { \
				vector line[3], transformed[N]; \
				UNROLL(row, 3) line[row] = *(const vector *)(taps + (row * 3 + col) * ld + j * LANES); \
				KERNEL(line, transformed); \
				UNROLL(row, N) rows[row][col] = transformed[row]; \
			} \
			UNROLL(row, N) { \
				vector transformed[N]; \
				KERNEL(rows[row], transformed); \
				UNROLL(col, N) *(vector *)(out + order[row * N + col] * apart + j * LANES) = transformed[col]; \
			} \
		} \
	}
KERNEL_TRANSFORM(kernel_transform_1, 4, KERNEL_1)
KERNEL_TRANSFORM(kernel_transform_2, 5, KERNEL_2)
KERNEL_TRANSFORM(kernel_transform_transposed, 5, KERNEL_T)

// OUTPUT_1, OUTPUT_2 and OUTPUT_T compute the output pixels along an axis from the sums of products.
#define OUTPUT_1(m, y) (y)[0] = (m)[0] + (m)[1] + (m)[2], (y)[1] = (m)[1] - (m)[2] - (m)[3]
#define OUTPUT_2(m, y) (y)[0] = (m)[0] + (m)[1], (y)[1] = (m)[0] + (m)[2]
#define OUTPUT_T(m, y) (y)[0] = (m)[3], (y)[1] = (m)[0] + (m)[1], (y)[2] = (m)[4], (y)[3] = (m)[1] + (m)[2]

#define OUTPUT_TRANSFORM(name, N, OUT, OUTPUT) \
	TARGET static void name(const float *sums, long ld, const float *bias, const float *const *masks, int rectify, float *const *out) { \
		const vector zero = {0}; \
		UNROLL(j, VECTORS) { \
			vector rows[OUT][N], add = *(const vector *)(bias + j * LANES); \
			UNROLL(col, N) { \
				vector line[N], transformed[OUT]; \
				UNROLL(row, N) line[row] = *(const vector *)(sums + (row * N + col) * ld + j * LANES); \
				OUTPUT(line, transformed); \
				UNROLL(row, OUT) rows[row][col] = transformed[row]; \
			} \
			UNROLL(row, OUT) { \
				vector transformed[OUT]; \
				OUTPUT(rows[row], transformed); \
				UNROLL(col, OUT) { \
					vector v = transformed[col] + add; \
					if (rectify) v = (vector)((bits)v & (bits)(v > zero)); \
					if (masks) v = (vector)((bits)v & (bits)(*(const vector *)(masks[row * OUT + col] + j * LANES) > zero)); \
					*(vector *)(out[row * OUT + col] + j * LANES) = v; \
				} \
			} \
		} \
	}
OUTPUT_TRANSFORM(output_transform_1, 4, 2, OUTPUT_1)
OUTPUT_TRANSFORM(output_transform_2, 3, 2, OUTPUT_2)
OUTPUT_TRANSFORM(output_transform_transposed, 5, 4, OUTPUT_T)

// The transpose of the output transform: the gradients of the sums from those of the output pixels.
#define OUTPUT_GRAD_1(y, d) (d)[0] = (y)[0], (d)[1] = (y)[0] + (y)[1], (d)[2] = (y)[0] - (y)[1], (d)[3] = -(y)[1]
#define OUTPUT_GRAD_2(y, d) (d)[0] = (y)[0] + (y)[1], (d)[1] = (y)[0], (d)[2] = (y)[1]

#define OUTPUT_TRANSFORM_GRAD(name, N, OUTPUT_GRAD) \
	TARGET static void name(const float *const *y, long channels, float *out) { \
		for (long c = 0; c < channels; c += LANES) { \
			vector rows[N][2]; \
			UNROLL(col, 2) { \
				vector line[2], transformed[N]; \
				UNROLL(row, 2) line[row] = *(const vector *)(y[row * 2 + col] + c); \
				OUTPUT_GRAD(line, transformed); \
				UNROLL(row, N) rows[row][col] = transformed[row]; \
			} \
			UNROLL(row, N) { \
				vector transformed[N]; \
				OUTPUT_GRAD(rows[row], transformed); \
				UNROLL(col, N) *(vector *)(out + (row * N + col) * channels + c) = transformed[col]; \
			} \
		} \
	}
OUTPUT_TRANSFORM_GRAD(output_transform_grad_1, 4, OUTPUT_GRAD_1)
OUTPUT_TRANSFORM_GRAD(output_transform_grad_2, 3, OUTPUT_GRAD_2)

// The transpose of the kernel transform: the gradients of nine taps from those of the products.
#define KERNEL_GRAD_1(u, g) \
	(g)[0] = (u)[0] + ((u)[1] + (u)[2]) * 0.5f, (g)[1] = ((u)[1] - (u)[2]) * 0.5f, (g)[2] = ((u)[1] + (u)[2]) * 0.5f + (u)[3]
#define KERNEL_GRAD_2(u, g) (g)[0] = (u)[0] + (u)[1], (g)[1] = (u)[2] + (u)[4], (g)[2] = (u)[0] + (u)[3]

#define KERNEL_TRANSFORM_GRAD(name, N, KERNEL_GRAD) \
	TARGET static void name(const float *const *products, float *taps) { \
		UNROLL(j, VECTORS) { \
			vector rows[3][N]; \
			UNROLL(col, N) { \
				vector line[N], transformed[3]; \
				UNROLL(row, N) line[row] = *(const vector *)(products[row * N + col] + j * LANES); \
				KERNEL_GRAD(line, transformed); \
				UNROLL(row, 3) rows[row][col] = transformed[row]; \
			} \
			UNROLL(row, 3) { \
				vector transformed[3]; \
				KERNEL_GRAD(rows[row], transformed); \
				UNROLL(col, 3) *(vector *)(taps + (row * 3 + col) * NR + j * LANES) = transformed[col]; \
			} \
		} \
	}
KERNEL_TRANSFORM_GRAD(kernel_transform_grad_1, 4, KERNEL_GRAD_1)
KERNEL_TRANSFORM_GRAD(kernel_transform_grad_2, 5, KERNEL_GRAD_2)

TARGET static void sum_rows(const float *rows, long n, long ld, float *sums) {
	vector sum[VECTORS];
	UNROLL(j, VECTORS) sum[j] = *(vector *)(sums + j * LANES);
	for (long k = 0; k < n; k++) UNROLL(j, VECTORS) sum[j] += *(const vector *)(rows + k * ld + j * LANES);
	UNROLL(j, VECTORS) *(vector *)(sums + j * LANES) = sum[j];
}

TARGET static void lerp(long n, const float *low, const float *high, float share, float *out) {
	float rest = 1 - share;
	long i = 0;
	for (; i + LANES <= n; i += LANES)
		*(vector *)(out + i) = *(const vector *)(low + i) * rest + *(const vector *)(high + i) * share;
	for (; i < n; i++) out[i] = low[i] * rest + high[i] * share;
}

TARGET static void adam(long n, const float *rates, const float *const *gradients, long gradient_count, const float *const *before,
                        float *const *after) {
	for (long i = 0; i < n; i += LANES) {
		if (n - i < LANES) i = n - LANES; // the last vector overlaps the one before it
		vector g = *(const vector *)(gradients[0] + i);
		for (long k = 1; k < gradient_count; k++) g += *(const vector *)(gradients[k] + i);
		vector m = rates[2] * *(const vector *)(before[1] + i) + rates[3] * g;
		vector v = rates[4] * *(const vector *)(before[2] + i) + rates[5] * (g * g);
		*(vector *)(after[0] + i) = *(const vector *)(before[0] + i) - m / (VSQRT(v) * rates[1] + rates[6]) * rates[0];
		*(vector *)(after[1] + i) = m;
		*(vector *)(after[2] + i) = v;
	}
}

// exponential returns eˣ for x within the limits of sigmoid: 2 to the power of x·log₂e rounded to an
// integer, times the Taylor series of the remainder r. With |r| ≤ ln 2 / 2 the first omitted term,
// r⁷/7!, is below half a unit in the last place.
TARGET static vector exponential(vector x) {
	// 1.5·2²³: adding it rounds to an integer, which ends up in the lowest bits.
	const float rounder = 12582912;
	vector scaled = x * 1.44269504f + rounder, whole = scaled - rounder;
	// ln 2 as a sum of two numbers, so that the first product is exact.
	vector rest = x - whole * 0.693359375f - whole * -2.12194440e-4f;
	vector sum = rest * (1 / 720.0f) + 1 / 120.0f;
	sum = sum * rest + 1 / 24.0f;
	sum = sum * rest + 1 / 6.0f;
	sum = sum * rest + 0.5f;
	sum = sum * rest + 1;
	sum = sum * rest + 1;
	return (vector)((bits)sum + ((bits)scaled << 23));
}

TARGET static vector sigmoid(vector x) {
	// Outside these limits the exponential overflows or is subnormal, and the sigmoid is 0 or 1 within
	// the precision of float32. NaN stays NaN.
	const vector most = (vector){0} + 87, least = -most;
	bits above = (bits)(x > most), below = (bits)(x < least);
	x = (vector)(((bits)most & above) | ((bits)least & below) | ((bits)x & ~(above | below)));
	return 1 / (1 + exponential(-x));
}

// There are MAX_LANES partial sums, added in the same order, whatever the vector size.
TARGET static float sigmoid_squared_error(long n, const float *x, const float *image) {
	vector sum[MAX_LANES / LANES];
	UNROLL(j, MAX_LANES / LANES) sum[j] = (vector){0};
	for (long i = 0; i < n; i += MAX_LANES)
		UNROLL(j, MAX_LANES / LANES) {
			vector d = sigmoid(*(const vector *)(x + i + j * LANES)) - *(const vector *)(image + i + j * LANES);
			sum[j] += d * d;
		}
	float all = 0;
	UNROLL(j, MAX_LANES / LANES) UNROLL(k, LANES) all += sum[j][k];
	return all;
}

#include "inverted_loops.h"

const microkernels NAME = {
    LABEL, LANES, MR, NR, NARROW, igemm, igemm_epilogue, pointwise, depthwise, col2im, igemm_transposed, epilogue_pixel, sum_rows, lerp, adam,
    sigmoid_squared_error,
    {{input_transform_1, kernel_transform_1, output_transform_1, output_transform_grad_1, kernel_transform_grad_1},
     {input_transform_2, kernel_transform_2, output_transform_2, output_transform_grad_2, kernel_transform_grad_2},
     {input_transform_transposed, kernel_transform_transposed, output_transform_transposed, NULL, NULL}}};
