// Operations on whole images other than convolutions; see convolution.h.
#include "convolution.h"

#include <string.h>

#include "microkernel.h"
#include "packing.h"

// GROUP is the number of pixels of a partial sum: a single sum over a large image would lose
// precision in float32.
#define GROUP 240

void sum_channels(image x, float *sums) {
	const microkernels *m = best_microkernels();
	long pixels = x.n * x.h * x.w, whole = x.c / m->nr * m->nr;
	memset(sums, 0, (size_t)x.c * sizeof(float));
	for (long first = 0; first < pixels; first += GROUP) {
		long n = pixels - first < GROUP ? pixels - first : GROUP;
		const float *from = x.data + first * x.c;
		for (long block = 0; block < whole; block += m->nr) {
			float group[MAX_NR] = {0};
			m->sum_rows(from + block, n, x.c, group);
			for (long j = 0; j < m->nr; j++) sums[block + j] += group[j];
		}
		for (long c = whole; c < x.c; c++) {
			float group = 0;
			for (long i = 0; i < n; i++) group += from[i * x.c + c];
			sums[c] += group;
		}
	}
}

// layout is a conversion from channels first to channels last, split into pieces.
typedef struct {
	const float *from;
	image x;
	float mean, scale;
	long pieces; // of an image
} layout;

#define LAYOUT_PIECE 4096 // pixels of a piece

static void channels_last_piece(void *data, size_t piece) {
	const layout *l = data;
	image x = l->x;
	long pixels = x.h * x.w, number = (long)piece / l->pieces, begin = (long)piece % l->pieces * LAYOUT_PIECE;
	long end = begin + LAYOUT_PIECE < pixels ? begin + LAYOUT_PIECE : pixels;
	const float *planes = l->from + number * pixels * x.c;
	float *out = x.data + number * pixels * x.c;
	if (x.c == 3) { // RGB images
		for (long k = begin; k < end; k++)
			for (long c = 0; c < 3; c++) out[3 * k + c] = (planes[c * pixels + k] - l->mean) * l->scale;
		return;
	}
	enum { few = 16 }; // pixels at a time, so that the destination stays in the cache
	for (long first = begin; first < end; first += few) {
		long n = end - first < few ? end - first : few;
		for (long c = 0; c < x.c; c++) {
			const float *plane = planes + c * pixels + first;
			float *to = out + first * x.c + c;
			for (long k = 0; k < n; k++) to[k * x.c] = (plane[k] - l->mean) * l->scale;
		}
	}
}

void channels_last(const team *t, const float *from, float mean, float scale, image x) {
	layout l = {from, x, mean, scale, (x.h * x.w + LAYOUT_PIECE - 1) / LAYOUT_PIECE};
	t->parallel_for(t, channels_last_piece, (size_t)(x.n * l.pieces), &l);
}

// difference is a comparison of two images, split into pieces with a partial sum each.
typedef struct {
	image x, y;
	long pieces; // of an image
	float *sums;
} difference;

#define ERROR_PIECE 8192 // numbers of a piece; a multiple of MAX_LANES

static void error_piece(void *data, size_t piece) {
	const difference *d = data;
	const microkernels *m = best_microkernels();
	long all = d->x.h * d->x.w * d->x.c, number = (long)piece / d->pieces, begin = (long)piece % d->pieces * ERROR_PIECE;
	long n = all - begin < ERROR_PIECE ? all - begin : ERROR_PIECE, whole = n / MAX_LANES * MAX_LANES;
	const float *x = d->x.data + number * all + begin, *y = d->y.data + number * all + begin;
	d->sums[piece] = m->sigmoid_squared_error(whole, x, y);
	if (whole == n) return;
	float lastx[MAX_LANES] = {0}, lasty[MAX_LANES]; // sigmoid(0) is exactly 0.5
	for (long i = 0; i < MAX_LANES; i++) lasty[i] = 0.5f;
	memcpy(lastx, x + whole, (size_t)(n - whole) * sizeof(float));
	memcpy(lasty, y + whole, (size_t)(n - whole) * sizeof(float));
	d->sums[piece] += m->sigmoid_squared_error(MAX_LANES, lastx, lasty);
}

int sigmoid_mse(const team *t, image x, image y, float *errors) {
	long all = x.h * x.w * x.c;
	difference d = {.x = x, .y = y, .pieces = (all + ERROR_PIECE - 1) / ERROR_PIECE};
	d.sums = t->scratch_alloc((size_t)(x.n * d.pieces) * sizeof(float));
	if (d.sums == NULL) return 0;
	t->parallel_for(t, error_piece, (size_t)(x.n * d.pieces), &d);
	for (long i = 0; i < x.n; i++) {
		double sum = 0;
		for (long k = 0; k < d.pieces; k++) sum += d.sums[i * d.pieces + k];
		errors[i] = (float)(sum / (double)all);
	}
	t->scratch_free(d.sums);
	return 1;
}

int resize_concat_fits(const image *from, size_t count, image y) {
	long channels = 0;
	for (size_t i = 0; i < count; i++) {
		image x = from[i];
		if (x.n != y.n || x.h < 1 || y.h % x.h != 0 || y.w != x.w * (y.h / x.h)) return 0;
		channels += x.c;
	}
	return channels == y.c;
}

// sample is the position of an enlarged pixel between two pixels of a line: a weighted mean.
typedef struct {
	long low, high;
	float share; // weight of high
} sample;

static sample sample_of(long i, long n, long times) {
	float at = ((float)i + 0.5f) / (float)times - 0.5f;
	if (at < 0) at = 0;
	long low = (long)at < n - 1 ? (long)at : n - 1;
	return (sample){low, low + 1 < n ? low + 1 : n - 1, at - (float)low};
}

int resize_concat(const team *t, const image *from, size_t count, image y) {
	const microkernels *m = best_microkernels();
	size_t most = 0;
	for (size_t i = 0; i < count; i++) {
		image x = from[i];
		size_t bytes = scratch_size((size_t)(x.h * x.w * x.c) * sizeof(float)) + scratch_size((size_t)(x.h * y.w * x.c) * sizeof(float));
		if (bytes > most) most = bytes;
	}
	void *scratch = t->scratch_alloc(most);
	if (scratch == NULL) return 0;
	for (long number = 0; number < y.n; number++) {
		float *out = y.data + number * y.h * y.w * y.c;
		for (size_t i = 0; i < count; i++) {
			image x = from[i];
			char *room = scratch;
			long times = y.h / x.h;
			image last = {scratch_take(&room, (size_t)(x.h * x.w * x.c) * sizeof(float)), 1, x.h, x.w, x.c};
			float *wide = scratch_take(&room, (size_t)(x.h * y.w * x.c) * sizeof(float));
			channels_last(t, x.data + number * x.h * x.w * x.c, 0, 1, last);
			for (long row = 0; row < x.h; row++)
				for (long col = 0; col < y.w; col++) {
					sample b = sample_of(col, x.w, times);
					const float *line = last.data + row * x.w * x.c;
					m->lerp(x.c, line + b.low * x.c, line + b.high * x.c, b.share, wide + (row * y.w + col) * x.c);
				}
			for (long row = 0; row < y.h; row++) {
				sample b = sample_of(row, x.h, times);
				const float *above = wide + b.low * y.w * x.c, *below = wide + b.high * y.w * x.c;
				for (long col = 0; col < y.w; col++)
					m->lerp(x.c, above + col * x.c, below + col * x.c, b.share, out + (row * y.w + col) * y.c);
			}
			out += x.c;
		}
	}
	t->scratch_free(scratch);
	return 1;
}
