// What is done with whole images beside convolutions; see convolution.h.
#include "convolution.h"

#include <string.h>

#include "microkernel.h"
#include "scratch.h"

// GROUP is how many pixels are added up before their sum is: one sum over all of a large
// image would leave few digits.
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
			m->sum(from + block, n, x.c, group);
			for (long j = 0; j < m->nr; j++) sums[block + j] += group[j];
		}
		for (long c = whole; c < x.c; c++) {
			float group = 0;
			for (long i = 0; i < n; i++) group += from[i * x.c + c];
			sums[c] += group;
		}
	}
}

void channels_last(const float *from, image x) {
	long pixels = x.h * x.w;
	enum { piece = 16 }; // pixels at a time, so that what is written stays in the cache
	for (long i = 0; i < x.n; i++)
		for (long first = 0; first < pixels; first += piece) {
			long n = pixels - first < piece ? pixels - first : piece;
			for (long c = 0; c < x.c; c++) {
				const float *plane = from + (i * x.c + c) * pixels + first;
				float *to = x.data + (i * pixels + first) * x.c + c;
				for (long k = 0; k < n; k++) to[k * x.c] = plane[k];
			}
		}
}

int joins(const image *from, size_t count, image y) {
	long channels = 0;
	for (size_t i = 0; i < count; i++) {
		image x = from[i];
		if (x.n != y.n || x.h < 1 || x.w != x.h || y.w != y.h || y.h % x.h != 0) return 0;
		channels += x.c;
	}
	return channels == y.c;
}

// blend is a pixel of an enlarged line between two of the line of n that it was.
typedef struct {
	long low, high;
	float share; // of the second
} blend;

static blend blend_of(long i, long n, long times) {
	float at = ((float)i + 0.5f) / (float)times - 0.5f;
	if (at < 0) at = 0;
	long low = (long)at < n - 1 ? (long)at : n - 1;
	return (blend){low, low + 1 < n ? low + 1 : n - 1, at - (float)low};
}

int enlarge_join(const team *t, const image *from, size_t count, image y) {
	const microkernels *m = best_microkernels();
	size_t most = 0;
	for (size_t i = 0; i < count; i++) {
		image x = from[i];
		size_t bytes = taken((size_t)(x.h * x.w * x.c) * sizeof(float)) + taken((size_t)(x.h * y.w * x.c) * sizeof(float));
		if (bytes > most) most = bytes;
	}
	void *scratch = t->borrow(most);
	if (scratch == NULL) return 0;
	for (long number = 0; number < y.n; number++) {
		float *out = y.data + number * y.h * y.w * y.c;
		for (size_t i = 0; i < count; i++) {
			image x = from[i];
			char *room = scratch;
			long times = y.h / x.h;
			image last = {take(&room, (size_t)(x.h * x.w * x.c) * sizeof(float)), 1, x.h, x.w, x.c};
			float *wide = take(&room, (size_t)(x.h * y.w * x.c) * sizeof(float));
			channels_last(x.data + number * x.h * x.w * x.c, last);
			for (long row = 0; row < x.h; row++)
				for (long col = 0; col < y.w; col++) {
					blend b = blend_of(col, x.w, times);
					const float *line = last.data + row * x.w * x.c;
					m->blend(x.c, line + b.low * x.c, line + b.high * x.c, b.share, wide + (row * y.w + col) * x.c);
				}
			for (long row = 0; row < y.h; row++) {
				blend b = blend_of(row, x.h, times);
				const float *above = wide + b.low * y.w * x.c, *below = wide + b.high * y.w * x.c;
				for (long col = 0; col < y.w; col++)
					m->blend(x.c, above + col * x.c, below + col * x.c, b.share, out + (row * y.w + col) * y.c);
			}
			out += x.c;
		}
	}
	t->give_back(scratch);
	return 1;
}
