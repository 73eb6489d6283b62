// The loops of microkernel.h in vectors of LANES numbers, VECTORS of them for a tile's
// channels and MR pixels. GCC and Clang make of it the instructions that TARGET names:
// all numbers of a tile stay in registers, which is what the sizes are chosen for. Every
// result adds up its products one by one in the order of k, whatever the vectors' size, so
// processors that have a fused multiply-add give the same bits.

#define NR (LANES * VECTORS)

typedef float vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int bits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define EACH(i, n) _Pragma("GCC unroll 16") for (long i = 0; i < (n); i++)

TARGET static void gather(const float *const *points, long stride, long runs, long len, const float *weights, float *tile) {
	vector sum[MR][VECTORS];
	EACH(i, MR) EACH(j, VECTORS) sum[i][j] = (vector){0};
	for (long r = 0; r < runs; r++) {
		const float *p[MR];
		EACH(i, MR) p[i] = points[r * stride + i];
		for (long k = 0; k < len; k++) {
			vector w[VECTORS];
			EACH(j, VECTORS) w[j] = *(const vector *)(weights + j * LANES);
			weights += NR;
			EACH(i, MR) {
				vector x = p[i][k] - (vector){0};
				EACH(j, VECTORS) sum[i][j] += x * w[j];
			}
		}
	}
	EACH(i, MR) EACH(j, VECTORS) *(vector *)(tile + i * NR + j * LANES) = sum[i][j];
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
		if (mask) v = (vector)((bits)v & (bits)(*(const vector *)(mask + j * LANES) > zero));
		*(vector *)(out + j * LANES) = v;
	}
}

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

const microkernels NAME = {LABEL, LANES, MR, NR, NARROW, gather, scatter, finish_pixel, sum_rows, blend, adam};
