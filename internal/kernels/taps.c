#include "taps.h"

#include <string.h>

#include "microkernel.h"
#include "scratch.h"

// TAP_LANES is how many products of a pixel are computed: 9·channels, and lanes to spare. It
// is a multiple of every nr.
#define TAP_LANES 32

int by_taps(window w, image large, finish f) {
	return w.kernel == 3 && w.stride == 2 && w.padding == 1 && 9 * large.c <= TAP_LANES && f.mask == NULL && !f.rectify;
}

// With C channels, the four pixels of the large image that stand for one of the small are
// numbers 0 to 4C, by row, column and channel. Its products lie so that those of each
// neighbour can be read as if they were such numbers too, from a place of their own on:
//
//	0 … 4C    its own pixels
//	4C … 5C   the left neighbour's upper right pixel, which is C of its own: read from 3C on
//	5C … 6C   the upper left neighbour's lower right pixel, 3C of its own: from 2C on
//	6C … 7C   the left neighbour's lower right pixel, 3C: from 3C on
//	7C … 9C   the upper neighbour's lower pixels, 2C and 3C: from 5C on
static long lane_of(long row, long col, long channels) {
	if (row > 0 && col > 0) return ((row - 1) * 2 + col - 1) * channels;
	if (row > 0) return (row == 1 ? 4 : 6) * channels;
	return (col == 0 ? 5 : 6 + col) * channels;
}

// The parts of a place: of itself, of its neighbour to the right, below, and of the one below
// to the right. Each is read from a lane on, and counts in some of the numbers 0 to 4C.
#define PARTS 4
static const long part_from[PARTS] = {0, 3, 5, 2}; // times the channels

static void masks_of(long channels, int masks[PARTS][MAX_LANES]) {
	static const char counts[PARTS][5] = {"1111", "0101", "0011", "0001"};
	for (long i = 0; i < PARTS; i++)
		for (long k = 0; k < MAX_LANES; k++) masks[i][k] = k < 4 * channels && counts[i][k / channels] == '1' ? -1 : 0;
}

// tapped is a transposed convolution by taps, cut into rows for several threads.
typedef struct {
	const team *team;
	const microkernels *m;
	image small, large;
	const float *weights; // by block of lanes, channel of small, lane
	float bias[MAX_LANES];
	int masks[PARTS][MAX_LANES];
	long rows, pieces; // of a piece, of an image
	atomic_int failed;
} tapped;

// products writes those of a row of the small image, and zeros for the pixel behind it.
static void products(const tapped *t, long number, long row, float *out) {
	image x = t->small;
	static const float none[MAX_NR];
	const float *line = x.data + (number * x.h + row) * x.w * x.c;
	for (long block = 0; block < TAP_LANES; block += t->m->nr)
		for (long col = 0; col < x.w; col += t->m->mr) {
			const float *points[MAX_MR];
			float *to[MAX_MR];
			for (long i = 0; i < t->m->mr; i++) { // the last tile's spare pixels are overwritten
				points[i] = line + (col + i < x.w ? col + i : col) * x.c;
				to[i] = out + (col + i) * TAP_LANES + block;
			}
			t->m->gather_into(points, 0, 1, x.c, t->weights + block * x.c, none, 0, to);
		}
	memset(out + x.w * TAP_LANES, 0, TAP_LANES * sizeof(float));
}

static void tapped_rows(void *data, size_t piece) {
	tapped *t = data;
	image x = t->small, y = t->large;
	long number = (long)piece / t->pieces, first = (long)piece % t->pieces * t->rows;
	long end = first + t->rows < x.h ? first + t->rows : x.h;
	size_t bytes = (size_t)((x.w + 1 + MAX_MR) * TAP_LANES) * sizeof(float);
	void *scratch = t->team->borrow(2 * taken(bytes));
	if (scratch == NULL) {
		t->failed = 1;
		return;
	}
	char *room = scratch;
	float *here = take(&room, bytes), *below = take(&room, bytes);
	products(t, number, first, here);
	for (long row = first; row < end; row++) {
		if (row + 1 < x.h)
			products(t, number, row + 1, below);
		else
			memset(below, 0, bytes);
		float *upper = y.data + (number * y.h + 2 * row) * y.w * y.c, *lower = upper + y.w * y.c;
		const float *parts[PARTS] = {here, here + TAP_LANES, below, below + TAP_LANES};
		for (long i = 0; i < PARTS; i++) parts[i] += part_from[i] * y.c;
		t->m->join(parts, t->masks, t->bias, x.w, TAP_LANES, 2 * y.c, upper, lower);
		float *next = here;
		here = below;
		below = next;
	}
	t->team->give_back(scratch);
}

// kernel_of is a kernel that is to be brought into the order of a tapped's weights.
typedef struct {
	long small, large; // channels
	const float *kernel;
} kernel_of;

static void order(const void *what, float *weights) {
	const kernel_of *k = what;
	long nr = best_microkernels()->nr;
	for (long s = 0; s < k->small; s++)
		for (long l = 0; l < k->large; l++)
			for (long tap = 0; tap < 9; tap++) {
				long lane = lane_of(tap / 3, tap % 3, k->large) + l;
				weights[lane / nr * nr * k->small + s * nr + lane % nr] = k->kernel[(s * k->large + l) * 9 + tap];
			}
}

// LEAST_ROWS is how many rows a piece has at least: the one below it is computed, too.
#define LEAST_ROWS 8

int up_taps(const team *t, image small, const float *kernel, kept *keep, float version, finish f, image large) {
	kernel_of k = {small.c, large.c, kernel};
	float *weights = weights_of(t, keep, version, (size_t)(TAP_LANES * small.c), 1, &k, order);
	if (weights == NULL) return 0;
	tapped all = {.team = t, .m = best_microkernels(), .small = small, .large = large, .weights = weights};
	masks_of(large.c, all.masks);
	for (long i = 0; f.bias != NULL && i < 4 * large.c; i++) all.bias[i] = f.bias[i % large.c];
	long most = small.h / LEAST_ROWS > 0 ? small.h / LEAST_ROWS : 1;
	all.pieces = even_groups(small.h, t->pieces < most ? t->pieces : most, 1, &all.rows);
	t->each(t, tapped_rows, (size_t)(small.n * all.pieces), &all);
	release(t, keep, weights);
	return !all.failed;
}
