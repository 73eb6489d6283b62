#include "squares.h"

#include <string.h>

#include "microkernel.h"
#include "scratch.h"

// SQUARES is how many squares are prepared at a time. What their products take stays in
// the second-level cache of a processor. It is a multiple of every mr.
#define SQUARES 48

// scheme is what the strides and ways have different.
typedef struct {
	size_t transforms;          // which of a microkernels' squares
	long pixels;                // of x along an axis that a square is made of
	long begin;                 // where they begin, counted from the square's first
	long step;                  // pixels of x along an axis from one square to the next
	long results;               // pixels of y along an axis that a square has
	long made;                  // of the pixels along an axis, to be multiplied
	long products, sums;        // along an axis
	unsigned char of[5];        // which sum a product belongs to
	unsigned char terms[5];     // how many products a sum has
	unsigned char place[25];    // of what was made, by row and column
	unsigned char kernel[25];   // places of the kernel's sides of the products, sum by sum
	long first[25], count[25];  // of a sum, by row and column: its products' places of what was made
} scheme;

static scheme scheme_of(long stride) {
	scheme s = {.transforms = 0, .pixels = 4, .begin = -1, .step = 2, .results = 2, .made = 4, .products = 4, .sums = 4,
	            .of = {0, 1, 2, 3}, .terms = {1, 1, 1, 1}};
	if (stride == 2)
		s = (scheme){.transforms = 1, .pixels = 5, .begin = -1, .step = 4, .results = 2, .made = 5, .products = 5, .sums = 3,
		             .of = {0, 1, 1, 2, 2}, .terms = {1, 2, 2}};
	long next = 0;
	for (long row = 0; row < s.sums; row++)
		for (long col = 0; col < s.sums; col++) {
			s.first[row * s.sums + col] = next;
			s.count[row * s.sums + col] = s.terms[row] * s.terms[col];
			for (long i = 0; i < s.products; i++)
				for (long j = 0; j < s.products; j++)
					if (s.of[i] == row && s.of[j] == col) s.place[i * s.products + j] = (unsigned char)next++;
		}
	memcpy(s.kernel, s.place, sizeof s.kernel);
	return s;
}

// upward is the scheme of a transposed convolution with a stride of 2, whose sums have one
// product each, and share what is made of the pixels.
static scheme upward(void) {
	scheme s = {.transforms = 2, .pixels = 3, .begin = 0, .step = 2, .results = 4, .made = 4, .products = 5, .sums = 5};
	static const long of[5] = {0, 1, 2, 3, 1}; // what a product takes of the pixels
	for (long i = 0; i < 16; i++) s.place[i] = (unsigned char)i;
	for (long i = 0; i < 25; i++) s.kernel[i] = (unsigned char)i, s.first[i] = of[i / 5] * 4 + of[i % 5], s.count[i] = 1;
	return s;
}

// With a stride of 2 the products' side of a kernel with more pairs of channels than this
// is larger than a processor's second-level cache, and nothing is won.
#define MOST_PAIRS (64 * 128)

int by_squares(window w, image x, image y) {
	const microkernels *m = best_microkernels();
	long up = y.h > x.h ? 2 : 1; // then it is the small image that must have whole squares
	return w.kernel == 3 && w.padding == 1 && y.h / up % 2 == 0 && y.w / up % 2 == 0 && x.c % m->nr == 0 && y.c % m->nr == 0 &&
	       (w.stride == 1 || x.c * y.c <= MOST_PAIRS);
}

// squared is a convolution by squares, cut into groups for several threads.
typedef struct {
	const team *team;
	const microkernels *m;
	scheme s;
	image x, y;
	const float *weights; // by block of y's channels, sum, product, channel of x, lane
	finish f;
	const float *bias;
	long size; // of a group, in squares
	atomic_int failed;
} squared;

static long count_squares(image y, long results) { return y.n * (y.h / results) * (y.w / results); }

// pixels_of finds the pixels of x that square i of y is made of; beyond the image's edge
// they are zeros.
static void pixels_of(const scheme *s, image x, image y, long i, const float *zeros, const float **at) {
	long cols = y.w / s->results, rows = y.h / s->results;
	long col = i % cols * s->step + s->begin, row = i / cols % rows * s->step + s->begin, number = i / cols / rows;
	for (long a = 0; a < s->pixels; a++)
		for (long b = 0; b < s->pixels; b++) {
			long r = row + a, c = col + b;
			int inside = r >= 0 && r < x.h && c >= 0 && c < x.w;
			at[a * s->pixels + b] = inside ? x.data + ((number * x.h + r) * x.w + c) * x.c : zeros;
		}
}

// pixel is the first of the pixels of square i of an image.
static long pixel(image y, long i, long results) {
	long cols = y.w / results, rows = y.h / results;
	long col = i % cols * results, row = i / cols % rows * results, number = i / cols / rows;
	return ((number * y.h + row) * y.w + col) * y.c;
}

static void square_group(void *data, size_t group) {
	squared *q = data;
	const microkernels *m = q->m;
	const scheme *s = &q->s;
	image x = q->x, y = q->y;
	long products = s->products * s->products, sums = s->sums * s->sums, made = s->made * s->made, results = s->results;
	size_t own = (size_t)(SQUARES * made * x.c) * sizeof(float), empty = (size_t)x.c * sizeof(float);
	void *scratch = q->team->borrow(taken(own) + taken(empty));
	if (scratch == NULL) {
		q->failed = 1;
		return;
	}
	char *room = scratch;
	float *analysed = take(&room, own), *zeros = take(&room, empty);
	memset(zeros, 0, empty);
	long first = (long)group * q->size, left = count_squares(y, results) - first, n = left < q->size ? left : q->size;
	for (long i = 0; i < n; i++) {
		const float *at[25];
		pixels_of(s, x, y, first + i, zeros, at);
		m->squares[s->transforms].analyse(at, x.c, s->place, analysed + i * made * x.c);
	}
	float tiles[25 * MAX_MR * MAX_NR];
	for (long block = 0; block < y.c; block += m->nr)
		for (long i = 0; i < n; i += m->mr) {
			const float *weights = q->weights + block * products * x.c;
			for (long sum = 0; sum < sums; sum++) {
				const float *points[MAX_MR];
				// The last tile may have squares to spare.
				for (long k = 0; k < m->mr; k++) points[k] = analysed + ((i + k < n ? i + k : i) * made + s->first[sum]) * x.c;
				m->gather(points, 0, 1, s->count[sum] * x.c, weights, tiles + sum * m->mr * m->nr);
				weights += s->count[sum] * x.c * m->nr;
			}
			for (long k = 0; k < m->mr && i + k < n; k++) {
				long at = pixel(y, first + i + k, results) + block;
				float *out[16];
				const float *mask = q->f.mask, *masks[16];
				for (long p = 0; p < results * results; p++) {
					long place = at + (p / results * y.w + p % results) * y.c;
					out[p] = y.data + place;
					if (mask != NULL) masks[p] = mask + place;
				}
				m->squares[s->transforms].synthesise(tiles + k * m->nr, m->mr * m->nr, q->bias + block, mask != NULL ? masks : NULL, q->f.rectify, out);
			}
		}
	q->team->give_back(scratch);
}

// kernel_of is a kernel that is to be brought into the order of a squared's weights.
typedef struct {
	long small, large; // channels
	const float *kernel;
	scheme s;
	int up, turned; // from the small image to the large one; and the taps in turned order
} kernel_of;

static void order(const void *what, float *weights) {
	const kernel_of *k = what;
	const microkernels *m = best_microkernels();
	scheme s = k->s;
	long from = k->up ? k->small : k->large, to = k->up ? k->large : k->small;
	float taps[9 * MAX_NR];
	for (long block = 0; block < to; block += m->nr)
		for (long c = 0; c < from; c++) {
			for (long t = 0; t < 9; t++)
				for (long j = 0; j < m->nr; j++) {
					long o = block + j;
					taps[t * m->nr + j] = k->kernel[(k->up ? c * k->large + o : o * k->large + c) * 9 + (k->turned ? 8 - t : t)];
				}
			float *panel = weights + block * s.products * s.products * from;
			m->squares[s.transforms].form(taps, m->nr, s.kernel, from * m->nr, panel + c * m->nr);
		}
}

static int square(const team *t, image x, image y, const kernel_of *k, kept *keep, float version, finish f) {
	squared q = {.team = t, .m = best_microkernels(), .s = k->s, .x = x, .y = y, .f = f};
	float *weights = weights_of(t, keep, version, (size_t)(q.s.products * q.s.products * x.c * y.c), 0, k, order);
	if (weights == NULL) return 0;
	float *none = t->borrow((size_t)y.c * sizeof(float));
	if (none != NULL) {
		memset(none, 0, (size_t)y.c * sizeof(float));
		q.weights = weights;
		q.bias = f.bias != NULL ? f.bias : none;
		long all = count_squares(y, q.s.results), groups = (all + SQUARES - 1) / SQUARES;
		if (groups < t->pieces) groups = t->pieces;
		groups = even_groups(all, groups, q.m->mr, &q.size);
		t->each(t, square_group, (size_t)groups, &q);
		t->give_back(none);
	}
	release(t, keep, weights);
	return none != NULL && !q.failed;
}

int down_squares(const team *t, window w, image large, const float *kernel, kept *keep, float version, finish f, image small) {
	kernel_of k = {small.c, large.c, kernel, scheme_of(w.stride), 0, 0};
	return square(t, large, small, &k, keep, version, f);
}

int up_squares(const team *t, window w, image small, const float *kernel, kept *keep, float version, finish f, image large) {
	int strided = w.stride == 2;
	kernel_of k = {small.c, large.c, kernel, strided ? upward() : scheme_of(1), 1, !strided};
	return square(t, small, large, &k, keep, version, f);
}

// correlated is how many squares are prepared at a time for the derivative with regard to
// the kernel: its sums, which are larger than the caches, are read and written for each.
#define CORRELATED 192

int correlate_squares(const team *t, window w, image small, image large, float *kernel) {
	const microkernels *m = best_microkernels();
	scheme s = scheme_of(w.stride);
	long products = s.products * s.products, sums = s.sums * s.sums, all = count_squares(small, 2);
	size_t analysed_bytes = (size_t)(CORRELATED * products * large.c) * sizeof(float), shares_bytes = (size_t)(CORRELATED * sums * small.c) * sizeof(float);
	size_t derived_bytes = 0, empty = (size_t)large.c * sizeof(float);
	for (long sum = 0; sum < sums; sum++) derived_bytes += (size_t)(round_up(s.count[sum] * large.c, m->mr) * small.c) * sizeof(float);
	char *scratch = t->borrow(taken(analysed_bytes) + taken(shares_bytes) + taken(derived_bytes) + taken(empty));
	if (scratch == NULL) return 0;
	char *room = scratch;
	float *analysed = take(&room, analysed_bytes), *shares = take(&room, shares_bytes), *derived = take(&room, derived_bytes);
	float *zeros = take(&room, empty);
	memset(zeros, 0, empty);
	memset(derived, 0, derived_bytes);
	for (long first = 0; first < all; first += CORRELATED) {
		long n = all - first < CORRELATED ? all - first : CORRELATED;
		for (long i = 0; i < n; i++) {
			const float *at[25];
			pixels_of(&s, large, small, first + i, zeros, at);
			m->squares[w.stride - 1].analyse(at, large.c, s.place, analysed + i * products * large.c);
			const float *four = small.data + pixel(small, first + i, 2);
			const float *pixels[4] = {four, four + small.c, four + small.w * small.c, four + (small.w + 1) * small.c};
			m->squares[w.stride - 1].distribute(pixels, small.c, shares + i * sums * small.c);
		}
		float *tile = derived;
		for (long sum = 0; sum < sums; sum++) {
			const float *points[CORRELATED];
			for (long i = 0; i < n; i++) points[i] = analysed + (i * products + s.first[sum]) * large.c;
			long run = s.count[sum] * large.c;
			for (long e = 0; e < run; e += m->mr) {
				long at = e + m->mr > run ? run - m->mr : e; // the last is moved back to end with the run
				for (long block = 0; block < small.c; block += m->nr, tile += m->mr * m->nr)
					m->scatter(points, n, at, shares + sum * small.c + block, sums * small.c, tile);
			}
		}
	}
	for (long block = 0; block < small.c; block += m->nr)
		for (long l = 0; l < large.c; l++) {
			const float *of[25];
			for (long i = 0; i < s.products; i++)
				for (long j = 0; j < s.products; j++) {
					long sum = s.of[i] * s.sums + s.of[j], run = s.count[sum] * large.c, before = 0;
					for (long k = 0; k < sum; k++) before += round_up(s.count[k] * large.c, m->mr) * small.c;
					long e = (s.place[i * s.products + j] - s.first[sum]) * large.c + l, tile = e / m->mr;
					long at = tile * m->mr + m->mr > run ? run - m->mr : tile * m->mr;
					of[i * s.products + j] = derived + before + (tile * (small.c / m->nr) + block / m->nr) * m->mr * m->nr + (e - at) * m->nr;
				}
			float taps[9 * MAX_NR];
			m->squares[w.stride - 1].unform(of, taps);
			for (long j = 0; j < m->nr; j++)
				for (long tap = 0; tap < 9; tap++) kernel[((block + j) * large.c + l) * 9 + tap] = taps[tap * m->nr + j];
		}
	t->give_back(scratch);
	return 1;
}
