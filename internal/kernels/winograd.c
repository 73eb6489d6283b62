#include "winograd.h"

#include <string.h>

#include "microkernel.h"
#include "packing.h"

// TILES is the number of Winograd tiles transformed at a time: what their products read stays in the
// L2 cache. It is a multiple of every mr.
#define TILES 48

// winograd_scheme is one of the three algorithms of winograd.h. Counts are along one axis.
typedef struct {
	size_t transforms;          // index into microkernels.winograd
	long pixels;                // input pixels of a tile
	long begin;                 // offset of a tile's first input pixel
	long stride;                // input pixels from one tile to the next
	long results;               // output pixels of a tile
	long inputs;                // transformed inputs
	long products, sums;        // products, and sums of products
	unsigned char of[5];        // the sum that a product belongs to
	unsigned char terms[5];     // products of a sum
	unsigned char order[25];    // position of each transformed input, by row and column
	unsigned char kernel[25];   // position of each transformed weight, sum by sum
	long first[25], count[25];  // of a sum, by row and column: positions of its transformed inputs
} winograd_scheme;

static winograd_scheme conv_scheme(long stride) {
	winograd_scheme s = {.transforms = 0, .pixels = 4, .begin = -1, .stride = 2, .results = 2, .inputs = 4, .products = 4, .sums = 4,
	            .of = {0, 1, 2, 3}, .terms = {1, 1, 1, 1}};
	if (stride == 2)
		s = (winograd_scheme){.transforms = 1, .pixels = 5, .begin = -1, .stride = 4, .results = 2, .inputs = 5, .products = 5, .sums = 3,
		             .of = {0, 1, 1, 2, 2}, .terms = {1, 2, 2}};
	long next = 0;
	for (long row = 0; row < s.sums; row++)
		for (long col = 0; col < s.sums; col++) {
			s.first[row * s.sums + col] = next;
			s.count[row * s.sums + col] = s.terms[row] * s.terms[col];
			for (long i = 0; i < s.products; i++)
				for (long j = 0; j < s.products; j++)
					if (s.of[i] == row && s.of[j] == col) s.order[i * s.products + j] = (unsigned char)next++;
		}
	memcpy(s.kernel, s.order, sizeof s.kernel);
	return s;
}

// transposed_scheme returns the scheme of a transposed convolution with a stride of 2. Its sums have
// one product each, and share transformed inputs.
static winograd_scheme transposed_scheme(void) {
	winograd_scheme s = {.transforms = 2, .pixels = 3, .begin = 0, .stride = 2, .results = 4, .inputs = 4, .products = 5, .sums = 5};
	static const long of[5] = {0, 1, 2, 3, 1}; // the transformed input of each product
	for (long i = 0; i < 16; i++) s.order[i] = (unsigned char)i;
	for (long i = 0; i < 25; i++) s.kernel[i] = (unsigned char)i, s.first[i] = of[i / 5] * 4 + of[i % 5], s.count[i] = 1;
	return s;
}

// With a stride of 2, the transformed weights of more pairs of channels than this exceed the L2
// cache, and the algorithm is no faster.
#define MAX_CHANNEL_PAIRS (64 * 128)

int winograd_applies(window w, image x, image y) {
	const microkernels *m = best_microkernels();
	long scale = y.h > x.h ? 2 : 1; // the small image must consist of whole tiles
	return w.kernel == 3 && w.padding == 1 && y.h / scale % 2 == 0 && y.w / scale % 2 == 0 && x.c % m->nr == 0 && y.c % m->nr == 0 &&
	       (w.stride == 1 || x.c * y.c <= MAX_CHANNEL_PAIRS);
}

// winograd_task is a Winograd convolution, split into groups of tiles for several threads.
typedef struct {
	const team *team;
	const microkernels *m;
	winograd_scheme s;
	image x, y;
	const float *weights; // by block of y's channels, sum, product, channel of x, lane
	epilogue f;
	const float *bias;
	long size; // tiles of a group
	atomic_int failed;
} winograd_task;

static long count_tiles(image y, long results) { return y.n * (y.h / results) * (y.w / results); }

// input_tile sets pointers to the input pixels of tile i; pixels outside the image are zeros.
static void input_tile(const winograd_scheme *s, image x, image y, long i, const float *zeros, const float **at) {
	long cols = y.w / s->results, rows = y.h / s->results;
	long col = i % cols * s->stride + s->begin, row = i / cols % rows * s->stride + s->begin, number = i / cols / rows;
	for (long a = 0; a < s->pixels; a++)
		for (long b = 0; b < s->pixels; b++) {
			long r = row + a, c = col + b;
			int inside = r >= 0 && r < x.h && c >= 0 && c < x.w;
			at[a * s->pixels + b] = inside ? x.data + ((number * x.h + r) * x.w + c) * x.c : zeros;
		}
}

// output_offset returns the offset of the first output pixel of tile i.
static long output_offset(image y, long i, long results) {
	long cols = y.w / results, rows = y.h / results;
	long col = i % cols * results, row = i / cols % rows * results, number = i / cols / rows;
	return ((number * y.h + row) * y.w + col) * y.c;
}

static void winograd_group(void *data, size_t group) {
	winograd_task *q = data;
	const microkernels *m = q->m;
	const winograd_scheme *s = &q->s;
	image x = q->x, y = q->y;
	long products = s->products * s->products, sums = s->sums * s->sums, inputs = s->inputs * s->inputs, results = s->results;
	size_t own = (size_t)(TILES * inputs * x.c) * sizeof(float), empty = (size_t)x.c * sizeof(float);
	void *scratch = q->team->scratch_alloc(scratch_size(own) + scratch_size(empty));
	if (scratch == NULL) {
		q->failed = 1;
		return;
	}
	char *room = scratch;
	float *transformed = scratch_take(&room, own), *zeros = scratch_take(&room, empty);
	memset(zeros, 0, empty);
	long first = (long)group * q->size, left = count_tiles(y, results) - first, n = left < q->size ? left : q->size;
	for (long i = 0; i < n; i++) {
		const float *at[25];
		input_tile(s, x, y, first + i, zeros, at);
		m->winograd[s->transforms].input_transform(at, x.c, s->order, transformed + i * inputs * x.c);
	}
	float tiles[25 * MAX_MR * MAX_NR];
	for (long block = 0; block < y.c; block += m->nr)
		for (long i = 0; i < n; i += m->mr) {
			const float *weights = q->weights + block * products * x.c;
			for (long sum = 0; sum < sums; sum++) {
				const float *pointers[MAX_MR];
				// The last register tile may have surplus Winograd tiles.
				for (long k = 0; k < m->mr; k++) pointers[k] = transformed + ((i + k < n ? i + k : i) * inputs + s->first[sum]) * x.c;
				m->igemm(pointers, 0, 1, s->count[sum] * x.c, weights, tiles + sum * m->mr * m->nr);
				weights += s->count[sum] * x.c * m->nr;
			}
			for (long k = 0; k < m->mr && i + k < n; k++) {
				long at = output_offset(y, first + i + k, results) + block;
				float *out[16];
				const float *mask = q->f.mask, *masks[16];
				for (long p = 0; p < results * results; p++) {
					long order = at + (p / results * y.w + p % results) * y.c;
					out[p] = y.data + order;
					if (mask != NULL) masks[p] = mask + order;
				}
				m->winograd[s->transforms].output_transform(tiles + k * m->nr, m->mr * m->nr, q->bias + block, mask != NULL ? masks : NULL, q->f.rectify, out);
			}
		}
	q->team->scratch_free(scratch);
}

// kernel_of is a kernel to be transformed and packed.
typedef struct {
	long small, large; // channels
	const float *kernel;
	winograd_scheme s;
	int transposed, flipped; // transposed: from small to large; flipped: taps in reverse order
} kernel_of;

static void pack(const void *what, float *weights) {
	const kernel_of *k = what;
	const microkernels *m = best_microkernels();
	winograd_scheme s = k->s;
	long from = k->transposed ? k->small : k->large, to = k->transposed ? k->large : k->small;
	float taps[9 * MAX_NR];
	for (long block = 0; block < to; block += m->nr)
		for (long c = 0; c < from; c++) {
			for (long t = 0; t < 9; t++)
				for (long j = 0; j < m->nr; j++) {
					long o = block + j;
					taps[t * m->nr + j] = k->kernel[(k->transposed ? c * k->large + o : o * k->large + c) * 9 + (k->flipped ? 8 - t : t)];
				}
			float *panel = weights + block * s.products * s.products * from;
			m->winograd[s.transforms].kernel_transform(taps, m->nr, s.kernel, from * m->nr, panel + c * m->nr);
		}
}

static int run_winograd(const team *t, image x, image y, const kernel_of *k, weight_cache *cache, float version, epilogue f) {
	winograd_task q = {.team = t, .m = best_microkernels(), .s = k->s, .x = x, .y = y, .f = f};
	float *weights = packed_weights(t, cache, version, (size_t)(q.s.products * q.s.products * x.c * y.c), 0, k, pack);
	if (weights == NULL) return 0;
	float *none = t->scratch_alloc((size_t)y.c * sizeof(float));
	if (none != NULL) {
		memset(none, 0, (size_t)y.c * sizeof(float));
		q.weights = weights;
		q.bias = f.bias != NULL ? f.bias : none;
		long all = count_tiles(y, q.s.results), groups = (all + TILES - 1) / TILES;
		if (groups < t->pieces) groups = t->pieces;
		groups = even_groups(all, groups, q.m->mr, &q.size);
		t->parallel_for(t, winograd_group, (size_t)groups, &q);
		t->scratch_free(none);
	}
	release_weights(t, cache, weights);
	return none != NULL && !q.failed;
}

int conv_winograd(const team *t, window w, image large, const float *kernel, weight_cache *cache, float version, epilogue f, image small) {
	kernel_of k = {small.c, large.c, kernel, conv_scheme(w.stride), 0, 0};
	return run_winograd(t, large, small, &k, cache, version, f);
}

int conv_transpose_winograd(const team *t, window w, image small, const float *kernel, weight_cache *cache, float version, epilogue f, image large) {
	int strided = w.stride == 2;
	kernel_of k = {small.c, large.c, kernel, strided ? transposed_scheme() : conv_scheme(1), 1, !strided};
	return run_winograd(t, small, large, &k, cache, version, f);
}

// GRAD_TILES is the number of Winograd tiles transformed at a time for the kernel's gradient, whose
// sums exceed the caches and are read and written once per GRAD_TILES.
#define GRAD_TILES 192

int conv_weight_grad_winograd(const team *t, window w, image small, image large, float *kernel) {
	const microkernels *m = best_microkernels();
	winograd_scheme s = conv_scheme(w.stride);
	long products = s.products * s.products, sums = s.sums * s.sums, all = count_tiles(small, 2);
	size_t transformed_bytes = (size_t)(GRAD_TILES * products * large.c) * sizeof(float), sum_grads_bytes = (size_t)(GRAD_TILES * sums * small.c) * sizeof(float);
	size_t product_grads_bytes = 0, empty = (size_t)large.c * sizeof(float);
	for (long sum = 0; sum < sums; sum++) product_grads_bytes += (size_t)(round_up(s.count[sum] * large.c, m->mr) * small.c) * sizeof(float);
	char *scratch = t->scratch_alloc(scratch_size(transformed_bytes) + scratch_size(sum_grads_bytes) + scratch_size(product_grads_bytes) + scratch_size(empty));
	if (scratch == NULL) return 0;
	char *room = scratch;
	float *transformed = scratch_take(&room, transformed_bytes), *sum_grads = scratch_take(&room, sum_grads_bytes), *product_grads = scratch_take(&room, product_grads_bytes);
	float *zeros = scratch_take(&room, empty);
	memset(zeros, 0, empty);
	memset(product_grads, 0, product_grads_bytes);
	for (long first = 0; first < all; first += GRAD_TILES) {
		long n = all - first < GRAD_TILES ? all - first : GRAD_TILES;
		for (long i = 0; i < n; i++) {
			const float *at[25];
			input_tile(&s, large, small, first + i, zeros, at);
			m->winograd[w.stride - 1].input_transform(at, large.c, s.order, transformed + i * products * large.c);
			const float *four = small.data + output_offset(small, first + i, 2);
			const float *pixels[4] = {four, four + small.c, four + small.w * small.c, four + (small.w + 1) * small.c};
			m->winograd[w.stride - 1].output_transform_grad(pixels, small.c, sum_grads + i * sums * small.c);
		}
		float *tile = product_grads;
		for (long sum = 0; sum < sums; sum++) {
			const float *pointers[GRAD_TILES];
			for (long i = 0; i < n; i++) pointers[i] = transformed + (i * products + s.first[sum]) * large.c;
			long run = s.count[sum] * large.c;
			for (long e = 0; e < run; e += m->mr) {
				long at = e + m->mr > run ? run - m->mr : e; // the last tile is moved back to end with the run
				for (long block = 0; block < small.c; block += m->nr, tile += m->mr * m->nr)
					m->igemm_transposed(pointers, n, at, sum_grads + sum * small.c + block, sums * small.c, tile);
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
					long e = (s.order[i * s.products + j] - s.first[sum]) * large.c + l, tile = e / m->mr;
					long at = tile * m->mr + m->mr > run ? run - m->mr : tile * m->mr;
					of[i * s.products + j] = product_grads + before + (tile * (small.c / m->nr) + block / m->nr) * m->mr * m->nr + (e - at) * m->nr;
				}
			float taps[9 * MAX_NR];
			m->winograd[w.stride - 1].kernel_transform_grad(of, taps);
			for (long j = 0; j < m->nr; j++)
				for (long tap = 0; tap < 9; tap++) kernel[((block + j) * large.c + l) * 9 + tap] = taps[tap * m->nr + j];
		}
	t->scratch_free(scratch);
	return 1;
}
