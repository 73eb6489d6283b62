#include "col2im.h"

#include <string.h>

#include "microkernel.h"
#include "packing.h"

// PRODUCT_LANES is the number of products computed per input pixel: 9·channels, padded. It is
// a multiple of every nr.
#define PRODUCT_LANES 32

int col2im_applies(window w, image large, epilogue f) {
	return w.kernel == 3 && w.stride == 2 && w.padding == 1 && 9 * large.c <= PRODUCT_LANES && f.mask == NULL && !f.rectify;
}

// With C output channels, the four output pixels of an input pixel are the lanes 0 to 4C, by row,
// column and channel. The other products of the input pixel belong to output pixels of its
// neighbours. They are ordered so that one masked vector load per neighbour aligns them with the
// lanes 0 to 4C:
//
// 	0 … 4C    the pixel itself
// 	4C … 5C   the left neighbour's upper right pixel, lane C: loaded from 3C
// 	5C … 6C   the upper left neighbour's lower right pixel, lane 3C: loaded from 2C
// 	6C … 7C   the left neighbour's lower right pixel, lane 3C: loaded from 3C
// 	7C … 9C   the upper neighbour's lower pixels, lanes 2C and 3C: loaded from 5C
static long lane_of(long row, long col, long channels) {
	if (row > 0 && col > 0) return ((row - 1) * 2 + col - 1) * channels;
	if (row > 0) return (row == 1 ? 4 : 6) * channels;
	return (col == 0 ? 5 : 6 + col) * channels;
}

// The contributions to an input pixel's output: its own, and those of its neighbours to the right,
// below, and below to the right. Each is loaded from a lane of its own and masked.
#define PARTS 4
static const long part_from[PARTS] = {0, 3, 5, 2}; // in units of the channels

static void masks_of(long channels, int masks[PARTS][MAX_LANES]) {
	static const char counts[PARTS][5] = {"1111", "0101", "0011", "0001"};
	for (long i = 0; i < PARTS; i++)
		for (long k = 0; k < MAX_LANES; k++) masks[i][k] = k < 4 * channels && counts[i][k / channels] == '1' ? -1 : 0;
}

// col2im_task is a transposed convolution by GEMM and col2im, split into rows for several threads.
typedef struct {
	const team *team;
	const microkernels *m;
	image small, large;
	const float *weights; // by block of lanes, input channel, lane
	float bias[MAX_LANES];
	int masks[PARTS][MAX_LANES];
	long rows, pieces; // rows of a piece, pieces of an image
	atomic_int failed;
} col2im_task;

// products computes the products of a row of the small image, and zeros for the pixel after it.
static void products(const col2im_task *t, long number, long row, float *out) {
	image x = t->small;
	static const float none[MAX_NR];
	const float *line = x.data + (number * x.h + row) * x.w * x.c;
	for (long block = 0; block < PRODUCT_LANES; block += t->m->nr)
		for (long col = 0; col < x.w; col += t->m->mr) {
			const float *pointers[MAX_MR];
			float *to[MAX_MR];
			for (long i = 0; i < t->m->mr; i++) { // surplus pixels of the last tile are overwritten later
				pointers[i] = line + (col + i < x.w ? col + i : col) * x.c;
				to[i] = out + (col + i) * PRODUCT_LANES + block;
			}
			t->m->igemm_epilogue(pointers, 0, 1, x.c, t->weights + block * x.c, none, 0, to);
		}
	memset(out + x.w * PRODUCT_LANES, 0, PRODUCT_LANES * sizeof(float));
}

static void col2im_rows(void *data, size_t piece) {
	col2im_task *t = data;
	image x = t->small, y = t->large;
	long number = (long)piece / t->pieces, first = (long)piece % t->pieces * t->rows;
	long end = first + t->rows < x.h ? first + t->rows : x.h;
	size_t bytes = (size_t)((x.w + 1 + MAX_MR) * PRODUCT_LANES) * sizeof(float);
	void *scratch = t->team->scratch_alloc(2 * scratch_size(bytes));
	if (scratch == NULL) {
		t->failed = 1;
		return;
	}
	char *room = scratch;
	float *here = scratch_take(&room, bytes), *below = scratch_take(&room, bytes);
	products(t, number, first, here);
	for (long row = first; row < end; row++) {
		if (row + 1 < x.h)
			products(t, number, row + 1, below);
		else
			memset(below, 0, bytes);
		float *upper = y.data + (number * y.h + 2 * row) * y.w * y.c, *lower = upper + y.w * y.c;
		const float *parts[PARTS] = {here, here + PRODUCT_LANES, below, below + PRODUCT_LANES};
		for (long i = 0; i < PARTS; i++) parts[i] += part_from[i] * y.c;
		t->m->col2im(parts, t->masks, t->bias, x.w, PRODUCT_LANES, 2 * y.c, upper, lower);
		float *next = here;
		here = below;
		below = next;
	}
	t->team->scratch_free(scratch);
}

// kernel_of is a kernel to be packed.
typedef struct {
	long small, large; // channels
	const float *kernel;
} kernel_of;

static void pack(const void *what, float *weights) {
	const kernel_of *k = what;
	long nr = best_microkernels()->nr;
	for (long s = 0; s < k->small; s++)
		for (long l = 0; l < k->large; l++)
			for (long tap = 0; tap < 9; tap++) {
				long lane = lane_of(tap / 3, tap % 3, k->large) + l;
				weights[lane / nr * nr * k->small + s * nr + lane % nr] = k->kernel[(s * k->large + l) * 9 + tap];
			}
}

// LEAST_ROWS is the minimum number of rows of a piece: a piece also computes the row below it.
#define LEAST_ROWS 8

int conv_transpose_col2im(const team *t, image small, const float *kernel, weight_cache *cache, float version, epilogue f, image large) {
	kernel_of k = {small.c, large.c, kernel};
	float *weights = packed_weights(t, cache, version, (size_t)(PRODUCT_LANES * small.c), 1, &k, pack);
	if (weights == NULL) return 0;
	col2im_task all = {.team = t, .m = best_microkernels(), .small = small, .large = large, .weights = weights};
	masks_of(large.c, all.masks);
	for (long i = 0; f.bias != NULL && i < 4 * large.c; i++) all.bias[i] = f.bias[i % large.c];
	long most = small.h / LEAST_ROWS > 0 ? small.h / LEAST_ROWS : 1;
	all.pieces = even_groups(small.h, t->pieces < most ? t->pieces : most, 1, &all.rows);
	t->parallel_for(t, col2im_rows, (size_t)(small.n * all.pieces), &all);
	release_weights(t, cache, weights);
	return !all.failed;
}
