// The loops of microkernel.h in vectors of LANES numbers, VECTORS of them for a tile's
// channels and MR pixels. GCC and Clang make of it the instructions that TARGET names:
// all numbers of a tile stay in registers, which is what the sizes are chosen for. Every
// result adds up its products one by one in the order of k, whatever the vectors' size, so
// processors that have a fused multiply-add give the same bits.

#define NR (LANES * VECTORS)

typedef float vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// Loops over a tile are unrolled, so that its numbers can be in registers.
#ifdef __clang__
#define EACH(i, n) _Pragma("unroll") for (long i = 0; i < (n); i++)
#else
#define EACH(i, n) _Pragma("GCC unroll 16") for (long i = 0; i < (n); i++)
#endif

// LOWER is the lower one of a limit and a number, and UPPER the higher one, which where it is no
// number stays none. SELECT is a vector of the one's numbers where all bits of the condition
// are set, else of the other's.
#define SELECT(condition, a, b) ((vector)(((bits)(a) & (condition)) | ((bits)(b) & ~(condition))))

// Weights come from the second-level cache, as a panel of them is larger than the first, and
// are asked for AHEAD rows before they are needed: that is worth a twentieth of a verdict.
// CACHE_LINE is how many numbers a line of a cache has.
#define AHEAD 12
#define CACHE_LINE 16

// ADD_UP adds to the sums of a tile the products of len numbers of each of its places.
#define ADD_UP(sum, p, len, weights) \
	for (long k = 0; k < (len); k++) { \
		vector w[VECTORS]; \
		EACH(j, VECTORS) w[j] = *(const vector *)((weights) + j * LANES); \
		EACH(line, NR / CACHE_LINE + (NR % CACHE_LINE > 0)) __builtin_prefetch((weights) + AHEAD * NR + line * CACHE_LINE); \
		(weights) += NR; \
		EACH(i, MR) { \
			vector x = p[i][k] - (vector){0}; \
			EACH(j, VECTORS) sum[i][j] += x * w[j]; \
		} \
	}

// SUM_UP declares the sums of a tile and computes them.
#define SUM_UP(sum, points, stride, runs, len, weights) \
	vector sum[MR][VECTORS]; \
	EACH(i, MR) EACH(j, VECTORS) sum[i][j] = (vector){0}; \
	for (long r = 0; r < runs; r++) { \
		const float *p[MR]; \
		EACH(i, MR) p[i] = points[r * stride + i]; \
		ADD_UP(sum, p, len, weights) \
	}

TARGET static void gather(const float *const *points, long stride, long runs, long len, const float *weights, float *tile) {
	SUM_UP(sum, points, stride, runs, len, weights)
	EACH(i, MR) EACH(j, VECTORS) *(vector *)(tile + i * NR + j * LANES) = sum[i][j];
}

TARGET static void gather_into(const float *const *points, long stride, long runs, long len, const float *weights, const float *bias,
                               int rectify, float *const *out) {
	SUM_UP(sum, points, stride, runs, len, weights)
	// A comparison gives all bits where it holds: here that all are to stay as they are.
	const vector zero = {0};
	const bits all = rectify ? (bits){0} : ~(bits){0};
	const vector most = (rectify == RECTIFY_SIX ? 6.0f : __builtin_inff()) - zero;
	EACH(j, VECTORS) {
		vector add = *(const vector *)(bias + j * LANES);
		EACH(i, MR) {
			vector v = sum[i][j] + add;
			v = LOWER(most, v);
			*(vector *)(out[i] + j * LANES) = (vector)((bits)v & ((bits)(v > zero) | all));
		}
	}
}

TARGET static void join(const float *const parts[4], const int masks[4][MAX_LANES], const float *bias, long n, long step, long half,
                        float *upper, float *lower) {
	for (long i = 0; i < n; i++) {
		float sums[MAX_LANES];
		EACH(j, MAX_LANES / LANES) {
			vector sum = *(const vector *)(bias + j * LANES);
			EACH(p, 4) sum += (vector)(*(const bits *)(parts[p] + i * step + j * LANES) & *(const bits *)(masks[p] + j * LANES));
			*(vector *)(sums + j * LANES) = sum;
		}
		copy_few(upper + i * half, sums, half);
		copy_few(lower + i * half, sums + half, half);
	}
}

TARGET static void scatter(const float *const *points, long n, long at, const float *small, long step, float *sums) {
	vector sum[MR][VECTORS];
	EACH(i, MR) EACH(j, VECTORS) sum[i][j] = (vector){0};
	for (long k = 0; k < n; k++) {
		const float *p = points[k] + at;
		vector d[VECTORS];
		EACH(j, VECTORS) d[j] = *(const vector *)(small + j * LANES);
		small += step;
		EACH(i, MR) {
			vector x = p[i] - (vector){0};
			EACH(j, VECTORS) sum[i][j] += x * d[j];
		}
	}
	EACH(i, MR) EACH(j, VECTORS) *(vector *)(sums + i * NR + j * LANES) += sum[i][j];
}

TARGET static void finish_pixel(const float *tile, const float *bias, const float *mask, int rectify, float *out) {
	const vector zero = {0};
	EACH(j, VECTORS) {
		vector v = *(const vector *)(tile + j * LANES) + *(const vector *)(bias + j * LANES);
		// A comparison gives all bits where it holds, and no bits are the number 0.
		if (rectify) v = (vector)((bits)v & (bits)(v > zero));
		if (rectify == RECTIFY_SIX) v = LOWER(6.0f - zero, v);
		if (mask) v = (vector)((bits)v & (bits)(*(const vector *)(mask + j * LANES) > zero));
		*(vector *)(out + j * LANES) = v;
	}
}

// The transforms of squares.h, of LANES channels at a time.

// along gives the products of an axis: those of its pixels, or of what was made of them.
#define ALONG_1(x, v) \
	(v)[0] = (x)[0] - (x)[2], (v)[1] = (x)[1] + (x)[2], (v)[2] = (x)[2] - (x)[1], (v)[3] = (x)[1] - (x)[3]
#define ALONG_2(x, v) \
	(v)[0] = (x)[2], (v)[1] = (x)[0] - (x)[2], (v)[2] = (x)[1], (v)[3] = (x)[4] - (x)[2], (v)[4] = (x)[3]
#define ALONG_UP(x, v) (v)[0] = (x)[0] - (x)[1], (v)[1] = (x)[1], (v)[2] = (x)[2] - (x)[1], (v)[3] = (x)[0]

#define ANALYSE(name, IN, OUT, ALONG) \
	TARGET static void name(const float *const *x, long channels, const unsigned char *place, float *out) { \
		for (long c = 0; c < channels; c += LANES) { \
			vector rows[OUT][IN]; \
			EACH(col, IN) { \
				vector line[IN], made[OUT]; \
				EACH(row, IN) line[row] = *(const vector *)(x[row * IN + col] + c); \
				ALONG(line, made); \
				EACH(row, OUT) rows[row][col] = made[row]; \
			} \
			EACH(row, OUT) { \
				vector made[OUT]; \
				ALONG(rows[row], made); \
				EACH(col, OUT) *(vector *)(out + place[row * OUT + col] * channels + c) = made[col]; \
			} \
		} \
	}
ANALYSE(analyse_1, 4, 4, ALONG_1)
ANALYSE(analyse_2, 5, 5, ALONG_2)
ANALYSE(analyse_up, 3, 4, ALONG_UP)

// The kernel's three taps along an axis, as the products take them.
#define TAPS_1(g, u) \
	(u)[0] = (g)[0], (u)[1] = ((g)[0] + (g)[2] + (g)[1]) * 0.5f, (u)[2] = ((g)[0] + (g)[2] - (g)[1]) * 0.5f, (u)[3] = (g)[2]
#define TAPS_2(g, u) \
	(u)[0] = (g)[0] + (g)[2], (u)[1] = (g)[0], (u)[2] = (g)[1], (u)[3] = (g)[2], (u)[4] = (g)[1]
#define TAPS_UP(g, u) \
	(u)[0] = (g)[2], (u)[1] = (g)[0] + (g)[2], (u)[2] = (g)[0], (u)[3] = (g)[1], (u)[4] = (g)[1]

#define FORM(name, N, TAPS) \
	TARGET static void name(const float *taps, long step, const unsigned char *place, long apart, float *out) { \
		EACH(j, VECTORS) { \
			vector rows[N][3]; \
			EACH(col, 3) { \
				vector line[3], made[N]; \
				EACH(row, 3) line[row] = *(const vector *)(taps + (row * 3 + col) * step + j * LANES); \
				TAPS(line, made); \
				EACH(row, N) rows[row][col] = made[row]; \
			} \
			EACH(row, N) { \
				vector made[N]; \
				TAPS(rows[row], made); \
				EACH(col, N) *(vector *)(out + place[row * N + col] * apart + j * LANES) = made[col]; \
			} \
		} \
	}
FORM(form_1, 4, TAPS_1)
FORM(form_2, 5, TAPS_2)
FORM(form_up, 5, TAPS_UP)

// The pixels of an axis from its sums of products.
#define PIXELS_1(m, y) (y)[0] = (m)[0] + (m)[1] + (m)[2], (y)[1] = (m)[1] - (m)[2] - (m)[3]
#define PIXELS_2(m, y) (y)[0] = (m)[0] + (m)[1], (y)[1] = (m)[0] + (m)[2]
#define PIXELS_UP(m, y) (y)[0] = (m)[3], (y)[1] = (m)[0] + (m)[1], (y)[2] = (m)[4], (y)[3] = (m)[1] + (m)[2]

#define SYNTHESISE(name, N, OUT, PIXELS) \
	TARGET static void name(const float *sums, long step, const float *bias, const float *const *masks, int rectify, float *const *out) { \
		const vector zero = {0}; \
		EACH(j, VECTORS) { \
			vector rows[OUT][N], add = *(const vector *)(bias + j * LANES); \
			EACH(col, N) { \
				vector line[N], made[OUT]; \
				EACH(row, N) line[row] = *(const vector *)(sums + (row * N + col) * step + j * LANES); \
				PIXELS(line, made); \
				EACH(row, OUT) rows[row][col] = made[row]; \
			} \
			EACH(row, OUT) { \
				vector made[OUT]; \
				PIXELS(rows[row], made); \
				EACH(col, OUT) { \
					vector v = made[col] + add; \
					if (rectify) v = (vector)((bits)v & (bits)(v > zero)); \
					if (masks) v = (vector)((bits)v & (bits)(*(const vector *)(masks[row * OUT + col] + j * LANES) > zero)); \
					*(vector *)(out[row * OUT + col] + j * LANES) = v; \
				} \
			} \
		} \
	}
SYNTHESISE(synthesise_1, 4, 2, PIXELS_1)
SYNTHESISE(synthesise_2, 3, 2, PIXELS_2)
SYNTHESISE(synthesise_up, 5, 4, PIXELS_UP)

// synthesise transposed: what each sum of products has of a square's derivatives.
#define SHARES_1(y, d) (d)[0] = (y)[0], (d)[1] = (y)[0] + (y)[1], (d)[2] = (y)[0] - (y)[1], (d)[3] = -(y)[1]
#define SHARES_2(y, d) (d)[0] = (y)[0] + (y)[1], (d)[1] = (y)[0], (d)[2] = (y)[1]

#define DISTRIBUTE(name, N, SHARES) \
	TARGET static void name(const float *const *y, long channels, float *out) { \
		for (long c = 0; c < channels; c += LANES) { \
			vector rows[N][2]; \
			EACH(col, 2) { \
				vector line[2], made[N]; \
				EACH(row, 2) line[row] = *(const vector *)(y[row * 2 + col] + c); \
				SHARES(line, made); \
				EACH(row, N) rows[row][col] = made[row]; \
			} \
			EACH(row, N) { \
				vector made[N]; \
				SHARES(rows[row], made); \
				EACH(col, N) *(vector *)(out + (row * N + col) * channels + c) = made[col]; \
			} \
		} \
	}
DISTRIBUTE(distribute_1, 4, SHARES_1)
DISTRIBUTE(distribute_2, 3, SHARES_2)

// form transposed: the derivatives of nine taps from those of the products.
#define BACK_1(u, g) \
	(g)[0] = (u)[0] + ((u)[1] + (u)[2]) * 0.5f, (g)[1] = ((u)[1] - (u)[2]) * 0.5f, (g)[2] = ((u)[1] + (u)[2]) * 0.5f + (u)[3]
#define BACK_2(u, g) (g)[0] = (u)[0] + (u)[1], (g)[1] = (u)[2] + (u)[4], (g)[2] = (u)[0] + (u)[3]

#define UNFORM(name, N, BACK) \
	TARGET static void name(const float *const *products, float *taps) { \
		EACH(j, VECTORS) { \
			vector rows[3][N]; \
			EACH(col, N) { \
				vector line[N], made[3]; \
				EACH(row, N) line[row] = *(const vector *)(products[row * N + col] + j * LANES); \
				BACK(line, made); \
				EACH(row, 3) rows[row][col] = made[row]; \
			} \
			EACH(row, 3) { \
				vector made[3]; \
				BACK(rows[row], made); \
				EACH(col, 3) *(vector *)(taps + (row * 3 + col) * NR + j * LANES) = made[col]; \
			} \
		} \
	}
UNFORM(unform_1, 4, BACK_1)
UNFORM(unform_2, 5, BACK_2)

TARGET static void sum_rows(const float *rows, long n, long step, float *sums) {
	vector sum[VECTORS];
	EACH(j, VECTORS) sum[j] = *(vector *)(sums + j * LANES);
	for (long k = 0; k < n; k++) EACH(j, VECTORS) sum[j] += *(const vector *)(rows + k * step + j * LANES);
	EACH(j, VECTORS) *(vector *)(sums + j * LANES) = sum[j];
}

TARGET static void blend(long n, const float *low, const float *high, float share, float *out) {
	float rest = 1 - share;
	long i = 0;
	for (; i + LANES <= n; i += LANES)
		*(vector *)(out + i) = *(const vector *)(low + i) * rest + *(const vector *)(high + i) * share;
	for (; i < n; i++) out[i] = low[i] * rest + high[i] * share;
}

TARGET static void adam(long n, const float *rates, const float *const *gradients, long parts, const float *const *before,
                        float *const *after) {
	for (long i = 0; i < n; i += LANES) {
		if (n - i < LANES) i = n - LANES; // what was done already is done again
		vector g = *(const vector *)(gradients[0] + i);
		for (long k = 1; k < parts; k++) g += *(const vector *)(gradients[k] + i);
		vector m = rates[2] * *(const vector *)(before[1] + i) + rates[3] * g;
		vector v = rates[4] * *(const vector *)(before[2] + i) + rates[5] * (g * g);
		*(vector *)(after[0] + i) = *(const vector *)(before[0] + i) - m / (ROOT(v) * rates[1] + rates[6]) * rates[0];
		*(vector *)(after[1] + i) = m;
		*(vector *)(after[2] + i) = v;
	}
}

// exponential is e to the power of each number of a vector within the limits of sigmoid: 2 to
// the power of the nearest whole number of x·log₂e, and Taylor's series of what is left, which
// is at most ln 2 / 2 and whose seventh power over 7! is below half a unit in the last place.
TARGET static vector exponential(vector x) {
	// Added to a smaller number, this leaves it rounded, as the lowest bits of the sum.
	const float rounder = 12582912;
	vector scaled = x * 1.44269504f + rounder, whole = scaled - rounder;
	// ln 2 in two numbers, of which the first times a whole number is exact.
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
	// Beyond these limits the exponential is no ordinary number, and a sigmoid 0 or 1 to
	// float32's last place but one. What is no number stays none.
	const vector most = (vector){0} + 87, least = -most;
	bits above = (bits)(x > most), below = (bits)(x < least);
	x = (vector)(((bits)most & above) | ((bits)least & below) | ((bits)x & ~(above | below)));
	return 1 / (1 + exponential(-x));
}

// Whatever the vectors' size, sums are of every sixteenth number, and added in the same order.
TARGET static float sigmoid_error(long n, const float *x, const float *image) {
	vector sum[MAX_LANES / LANES];
	EACH(j, MAX_LANES / LANES) sum[j] = (vector){0};
	for (long i = 0; i < n; i += MAX_LANES)
		EACH(j, MAX_LANES / LANES) {
			vector d = sigmoid(*(const vector *)(x + i + j * LANES)) - *(const vector *)(image + i + j * LANES);
			sum[j] += d * d;
		}
	float all = 0;
	EACH(j, MAX_LANES / LANES) EACH(k, LANES) all += sum[j][k];
	return all;
}

#include "inverted_loops.h"

const microkernels NAME = {LABEL, LANES, MR, NR, NARROW, gather, gather_into, pointwise, depthwise, join, scatter, finish_pixel, sum_rows, blend, adam, sigmoid_error,
                           {{analyse_1, form_1, synthesise_1, distribute_1, unform_1}, {analyse_2, form_2, synthesise_2, distribute_2, unform_2}, {analyse_up, form_up, synthesise_up, NULL, NULL}}};
