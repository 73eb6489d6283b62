// The loops of inverted.c, a part of loops.h.

// HELD is a vector within limits; what is no number stays none.
#define HELD(v, least, most) LOWER(most, UPPER(least, v))

TARGET static void pointwise(const float *x, long step, long len, const float *weights, const float *bias, float least, float most,
                             const float *const *add, float *const *out) {
	const float *points[MR];
	EACH(i, MR) points[i] = x + i * step;
	SUM_UP(sum, points, 0, 1, len, weights)
	const vector low = least - (vector){0}, high = most - (vector){0};
	EACH(j, VECTORS) {
		vector plus = *(const vector *)(bias + j * LANES);
		EACH(i, MR) {
			vector v = sum[i][j] + plus;
			v = HELD(v, low, high);
			if (add) v += *(const vector *)(add[i] + j * LANES);
			*(vector *)(out[i] + j * LANES) = v;
		}
	}
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
		EACH(i, count) *(vector *)(out + (at + i) * out_step + j) = HELD(sum[i], low, high); \
	}

#define DEPTHWISE(kernel, stride) \
	for (long j = 0; j < NR; j += LANES) { \
		long at = 0; \
		for (; at + COLUMNS <= n; at += COLUMNS) SLIDE(COLUMNS, kernel, stride) \
		for (; at < n; at++) SLIDE(1, kernel, stride) \
	}

TARGET static void depthwise(const float *x, long row_step, long kernel, long stride, long n, const float *weights, const float *bias, float least,
                             float most, float *out, long out_step) {
	const vector low = least - (vector){0}, high = most - (vector){0};
	if (kernel == 3 && stride == 1) DEPTHWISE(3, 1)
	if (kernel == 3 && stride == 2) DEPTHWISE(3, 2)
	if (kernel == 5 && stride == 1) DEPTHWISE(5, 1)
	if (kernel == 5 && stride == 2) DEPTHWISE(5, 2)
}
