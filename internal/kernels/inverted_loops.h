// The loops of inverted.c; part of loops.h.

// RELU6 clamps a vector to 0…6. NaN stays NaN.
#define RELU6(v) VMIN(6 - (vector){0}, VMAX((vector){0}, v))

TARGET static void pointwise(const float *x, long ld, long len, const float *weights, const float *bias, int relu6, const float *const *add,
                             float *const *out) {
	const float *p[MR];
	vector sum[MR][VECTORS];
	UNROLL(i, MR) p[i] = x + i * ld;
	UNROLL(j, VECTORS) UNROLL(i, MR) sum[i][j] = *(const vector *)(bias + j * LANES);
	ACCUMULATE(sum, p, len, weights)
	if (add) UNROLL(i, MR) UNROLL(j, VECTORS) sum[i][j] += *(const vector *)(add[i] + j * LANES);
	if (relu6) UNROLL(i, MR) UNROLL(j, VECTORS) sum[i][j] = RELU6(sum[i][j]);
	UNROLL(i, MR) UNROLL(j, VECTORS) *(vector *)(out[i] + j * LANES) = sum[i][j];
}

// COLUMNS is the number of pixels of a row computed at once: their sums stay in registers.
#define COLUMNS 8

// DEPTHWISE_PIXELS computes `count` pixels of a row, one vector of their channels.
#define DEPTHWISE_PIXELS(count, kernel, stride) \
	{ \
		vector sum[count]; \
		UNROLL(i, count) sum[i] = *(const vector *)(bias + j); \
		const float *w = weights + j; \
		for (long row = 0; row < (kernel); row++) { \
			const float *line = x + row * row_ld + at * (stride) * NR + j; \
			UNROLL(col, kernel) { \
				vector f = *(const vector *)w; \
				w += NR; \
				UNROLL(i, count) sum[i] += *(const vector *)(line + (i * (stride) + col) * NR) * f; \
			} \
		} \
		UNROLL(i, count) *(vector *)(out + (at + i) * out_ld + j) = RELU6(sum[i]); \
	}

#define DEPTHWISE(kernel, stride) \
	for (long j = 0; j < NR; j += LANES) { \
		long at = 0; \
		for (; at + COLUMNS <= n; at += COLUMNS) DEPTHWISE_PIXELS(COLUMNS, kernel, stride) \
		for (; at < n; at++) DEPTHWISE_PIXELS(1, kernel, stride) \
	}

TARGET static void depthwise(const float *x, long row_ld, long kernel, long stride, long n, const float *weights, const float *bias, float *out,
                             long out_ld) {
	if (kernel == 3 && stride == 1) DEPTHWISE(3, 1)
	if (kernel == 3 && stride == 2) DEPTHWISE(3, 2)
	if (kernel == 5 && stride == 1) DEPTHWISE(5, 1)
	if (kernel == 5 && stride == 2) DEPTHWISE(5, 2)
}
