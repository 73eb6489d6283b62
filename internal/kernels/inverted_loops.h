// The loops of inverted.c, a part of loops.h.

// HELD is a vector within ReLU6's limits; what is no number stays none.
#define HELD(v) LOWER(6 - (vector){0}, UPPER((vector){0}, v))

TARGET static void pointwise(const float *x, long step, long len, const float *weights, const float *bias, int held, const float *const *add,
                             float *const *out) {
	const float *p[MR];
	vector sum[MR][VECTORS];
	EACH(i, MR) p[i] = x + i * step;
	EACH(j, VECTORS) EACH(i, MR) sum[i][j] = *(const vector *)(bias + j * LANES);
	ADD_UP(sum, p, len, weights)
	if (add) EACH(i, MR) EACH(j, VECTORS) sum[i][j] += *(const vector *)(add[i] + j * LANES);
	if (held) EACH(i, MR) EACH(j, VECTORS) sum[i][j] = HELD(sum[i][j]);
	EACH(i, MR) EACH(j, VECTORS) *(vector *)(out[i] + j * LANES) = sum[i][j];
}

// COLUMNS is how many pixels of a row are computed at once: their sums stay in registers.
#define COLUMNS 8

// SLIDE computes so many pixels of a row from one on, and one vector of their channels.
#define SLIDE(count, kernel, stride) \
	{ \
		vector sum[count]; \
		EACH(i, count) sum[i] = *(const vector *)(bias + j); \
		const float *w = weights + j; \
		for (long row = 0; row < (kernel); row++) { \
			const float *line = x + row * row_step + at * (stride) * NR + j; \
			EACH(col, kernel) { \
				vector f = *(const vector *)w; \
				w += NR; \
				EACH(i, count) sum[i] += *(const vector *)(line + (i * (stride) + col) * NR) * f; \
			} \
		} \
		EACH(i, count) *(vector *)(out + (at + i) * out_step + j) = HELD(sum[i]); \
	}

#define DEPTHWISE(kernel, stride) \
	for (long j = 0; j < NR; j += LANES) { \
		long at = 0; \
		for (; at + COLUMNS <= n; at += COLUMNS) SLIDE(COLUMNS, kernel, stride) \
		for (; at < n; at++) SLIDE(1, kernel, stride) \
	}

TARGET static void depthwise(const float *x, long row_step, long kernel, long stride, long n, const float *weights, const float *bias, float *out,
                             long out_step) {
	if (kernel == 3 && stride == 1) DEPTHWISE(3, 1)
	if (kernel == 3 && stride == 2) DEPTHWISE(3, 2)
	if (kernel == 5 && stride == 1) DEPTHWISE(5, 1)
	if (kernel == 5 && stride == 2) DEPTHWISE(5, 2)
}
