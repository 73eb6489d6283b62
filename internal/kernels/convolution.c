#include "convolution.h"

#include <string.h>

#include "microkernel.h"
#include "scratch.h"
#include "squares.h"
#include "taps.h"

// All three computations walk over the small image's pixels, or over the places of an
// image of the small one's size. At such a place, and for each row of the kernel that
// matters there, what is read of the other image is one run of numbers: neighbours in a
// row, with all their channels. So a place is a pointer for each row, a run's length is
// the same for all, and convolutions are products of matrices whose left factor is read
// where it lies. Nothing is copied but at the left and right edges, where zeros belong
// beside the image.

// GROUP is how many places are prepared at a time at most: the pointers and what they point
// at stay in the second-level cache while all channels of the result are computed. It is a
// multiple of every mr, and not below the 16×16 places of the deepest layers of an image of
// 256 px, whose weights would be read again for what is left over.
#define GROUP 264

// reach is what is read at a place, counted from step times the place: rows, and in each
// the run of cols pixels from col on.
typedef struct {
	long step, rows, row[MAX_KERNEL], col, cols;
} reach;

// points are the places of a group: for each row of the reach GROUP pointers, the zeros
// that rows beyond the image read, and the runs that are patched together at its edges.
typedef struct {
	const float **at;
	float *zeros, *patches;
} points;

static size_t points_bytes(const reach *r, long channels) {
	size_t run = (size_t)(r->cols * channels + MAX_MR) * sizeof(float);
	return taken((size_t)r->rows * GROUP * sizeof(float *)) + taken(run) + taken((size_t)r->rows * GROUP * run);
}

static points take_points(char **scratch, const reach *r, long channels) {
	size_t run = (size_t)(r->cols * channels + MAX_MR) * sizeof(float);
	points p;
	p.at = take(scratch, (size_t)r->rows * GROUP * sizeof(float *));
	p.zeros = take(scratch, run);
	p.patches = take(scratch, (size_t)r->rows * GROUP * run);
	memset(p.zeros, 0, run);
	return p;
}

// locate finds what n places from the first on read of x; they are the places of images
// of h×w. Runs shorter than a tile are copied too, as a tile reads MAX_MR numbers of each.
static void locate(points p, const reach *r, image x, long h, long w, long first, long n) {
	float *patch = p.patches;
	size_t run = (size_t)(r->cols * x.c);
	// The columns whose runs lie within the image; none where runs are copied anyway.
	long inner = (-r->col + r->step - 1) / r->step, outer = (x.w - r->cols - r->col) / r->step + 1;
	if (inner < 0) inner = 0;
	if ((long)run < MAX_MR || x.w < r->cols + r->col) outer = 0;
	for (long i = 0, next; i < n; i = next) { // one row of places at a time
		long col = (first + i) % w, row = (first + i) / w % h, number = (first + i) / w / h;
		next = i + w - col < n ? i + w - col : n;
		for (long t = 0; t < r->rows; t++) {
			long y = row * r->step + r->row[t];
			const float **at = p.at + t * GROUP + i;
			const float *line = x.data + (number * x.h + y) * x.w * x.c;
			for (long c = col; c < col + next - i; c++) {
				long left = c * r->step + r->col;
				if (y < 0 || y >= x.h) {
					*at++ = p.zeros;
				} else if (c >= inner && c < outer) {
					*at++ = line + left * x.c;
				} else {
					long from = left < 0 ? 0 : left, to = left + r->cols > x.w ? x.w : left + r->cols;
					memset(patch, 0, run * sizeof(float));
					if (from < to) memcpy(patch + (from - left) * x.c, line + from * x.c, (size_t)((to - from) * x.c) * sizeof(float));
					*at++ = patch;
					patch += run;
				}
			}
		}
	}
	// The last tile may have places to spare.
	for (long i = n; i < n + MAX_MR && i < GROUP; i++)
		for (long t = 0; t < r->rows; t++) p.at[t * GROUP + i] = p.zeros;
}

// gathering is a computation of places from what they reach: `channels` results a place,
// of which lane j of block b is channel b·nr + j.
typedef struct {
	const microkernels *m;
	reach reach;
	image x;
	long n, h, w;         // places
	long channels;        // of a place
	const float *weights; // by block, row, pixel of the run, channel of x, lane
	const float *bias;    // by channel, rounded up to whole blocks
} gathering;

// target says where a place's results go: to pixel (step·row + dr, step·col + dc) of the
// image y, from channel 0 on; or, where phases is set, results come for all step×step
// pixels in turn, rows outside.
typedef struct {
	image y;
	const float *mask;
	int rectify;
	long step, dr, dc;
	int phases;
} target;

// gathers is a gathering and its target, cut into groups for several threads.
typedef struct {
	const team *team;
	gathering g;
	target t;
	long size;   // of a group, in places
	long blocks; // of channels that a thread takes of a group
	atomic_int failed;
} gathers;

// pixel_at is where a place's result goes in y, of a target without phases.
static long pixel_at(const target *t, long number, long row, long col) {
	return ((number * t->y.h + row * t->step + t->dr) * t->y.w + col * t->step + t->dc) * t->y.c;
}

static void write_place(const microkernels *m, const target *t, long number, long row, long col, long block, const float *tile,
                        const float *bias, long channels) {
	image y = t->y;
	if (!t->phases) {
		long at = pixel_at(t, number, row, col) + block;
		if (channels - block >= m->nr) {
			m->finish(tile, bias + block, t->mask ? t->mask + at : NULL, t->rectify, y.data + at);
			return;
		}
		float whole[MAX_NR];
		m->finish(tile, bias + block, NULL, t->rectify, whole);
		for (long j = 0; block + j < channels; j++) y.data[at + j] = t->mask && !(t->mask[at + j] > 0) ? 0 : whole[j];
		return;
	}
	// One block has all channels of step×step pixels, of which a row's are neighbours.
	float whole[MAX_NR];
	m->finish(tile, bias, NULL, t->rectify, whole);
	for (long phase = 0; phase < t->step; phase++) {
		const float *from = whole + phase * t->step * y.c;
		long at = (((number * y.h + row * t->step + phase) * y.w) + col * t->step) * y.c;
		if (t->mask == NULL) {
			copy_few(y.data + at, from, t->step * y.c);
			continue;
		}
		for (long j = 0; j < t->step * y.c; j++) y.data[at + j] = t->mask && !(t->mask[at + j] > 0) ? 0 : from[j];
	}
}

static long pieces(const gathers *all) {
	long blocks = (all->g.channels + all->g.m->nr - 1) / all->g.m->nr;
	return (blocks + all->blocks - 1) / all->blocks;
}

static void gather_group(void *data, size_t piece) {
	gathers *all = data;
	const gathering *g = &all->g;
	const microkernels *m = g->m;
	long group = (long)piece / pieces(all), from = (long)piece % pieces(all) * all->blocks * m->nr, to = from + all->blocks * m->nr;
	if (to > g->channels) to = g->channels;
	void *scratch = all->team->borrow(points_bytes(&g->reach, g->x.c));
	if (scratch == NULL) {
		all->failed = 1;
		return;
	}
	char *room = scratch;
	points p = take_points(&room, &g->reach, g->x.c);
	long first = group * all->size, left = g->n * g->h * g->w - first, n = left < all->size ? left : all->size;
	long run = g->reach.cols * g->x.c, panel = g->reach.rows * run * m->nr;
	float tile[MAX_MR * MAX_NR];
	locate(p, &g->reach, g->x, g->h, g->w, first, n);
	const target *t = &all->t;
	for (long block = from; block < to; block += m->nr) {
		const float *weights = g->weights + block / m->nr * panel;
		long col = first % g->w, row = first / g->w % g->h, number = first / g->w / g->h;
		int whole = t->mask == NULL && !t->phases && g->channels - block >= m->nr;
		for (long i = 0; i < n; i += m->mr) {
			float *out[MAX_MR];
			long places = n - i < m->mr ? n - i : m->mr;
			int at_once = whole && places == m->mr;
			if (!at_once) m->gather(p.at + i, GROUP, g->reach.rows, run, weights, tile);
			for (long k = 0; k < places; k++) {
				if (at_once)
					out[k] = t->y.data + pixel_at(t, number, row, col) + block;
				else
					write_place(m, t, number, row, col, block, tile + k * m->nr, g->bias, g->channels);
				if (++col == g->w) {
					col = 0;
					if (++row == g->h) {
						row = 0;
						number++;
					}
				}
			}
			if (at_once) m->gather_into(p.at + i, GROUP, g->reach.rows, run, weights, g->bias + block, t->rectify, out);
		}
	}
	all->team->give_back(scratch);
}

// together are the gatherings of a convolution, of which none waits for another.
#define MOST_TOGETHER 4
typedef struct {
	gathers all[MOST_TOGETHER];
	size_t end[MOST_TOGETHER]; // of a gathering's pieces, counted from the first's
} together;

static void gather_piece(void *data, size_t piece) {
	together *t = data;
	long i = 0;
	while (piece >= t->end[i]) i++;
	gather_group(&t->all[i], piece - (i > 0 ? t->end[i - 1] : 0));
}

// gather computes all places of n gatherings. Bias is that of y's channels, which a
// gathering of several phases has several times.
static int gather(const team *team, const gathering *g, const target *t, long n, const float *bias) {
	together all;
	size_t most = 0, pieces_of_all = 0;
	for (long i = 0; i < n; i++) {
		size_t bytes = (size_t)round_up(g[i].channels, g[i].m->nr) * sizeof(float);
		if (bytes > most) most = bytes;
	}
	float *repeated = team->borrow(most);
	if (repeated == NULL) return 0;
	memset(repeated, 0, most);
	for (long c = 0; bias != NULL && c < g[0].channels; c += t[0].y.c) memcpy(repeated + c, bias, (size_t)t[0].y.c * sizeof(float));
	for (long i = 0; i < n; i++) {
		gathers *one = &all.all[i];
		*one = (gathers){.team = team, .g = g[i], .t = t[i]};
		one->g.bias = repeated;
		long places = g[i].n * g[i].h * g[i].w, blocks = (g[i].channels + g[i].m->nr - 1) / g[i].m->nr;
		long groups = even_groups(places, (places + GROUP - 1) / GROUP, g[i].m->mr, &one->size);
		// Small images of many channels are few groups. Where threads may wait for work, a
		// group's channels are several pieces of it.
		long wanted = (team->pieces + groups * n - 1) / (groups * n);
		one->blocks = wanted >= blocks ? 1 : blocks / wanted;
		pieces_of_all += (size_t)(groups * pieces(one));
		all.end[i] = pieces_of_all;
	}
	team->each(team, gather_piece, pieces_of_all, &all);
	team->give_back(repeated);
	int failed = 0;
	for (long i = 0; i < n; i++) failed |= all.all[i].failed;
	return !failed;
}

static reach down_reach(window w) {
	reach r = {.step = w.stride, .rows = w.kernel, .col = -w.padding, .cols = w.kernel};
	for (long t = 0; t < w.kernel; t++) r.row[t] = t - w.padding;
	return r;
}

static long padded(const microkernels *m, long channels) { return round_up(channels, m->nr); }

int fits(window w, image small, image large) {
	// How far the kernel of the last pixel reaches beyond the image's end.
	long below = (small.h - 1) * w.stride + w.kernel - w.padding - large.h, beside = (small.w - 1) * w.stride + w.kernel - w.padding - large.w;
	return w.kernel >= 1 && w.kernel <= MAX_KERNEL && (w.stride == 1 || w.stride == 2) && w.padding >= 0 && w.padding < w.kernel &&
	       small.n == large.n && large.h == small.h * w.stride && large.w == small.w * w.stride && below < w.kernel && beside < w.kernel;
}

// microkernels_for are the microkernels for results of so many channels: those of narrow
// tiles where there are few.
static const microkernels *microkernels_for(long channels) {
	const microkernels *m = best_microkernels();
	return m->narrow != NULL && channels <= m->narrow->nr ? m->narrow : m;
}

// kernel_of is a kernel that is to be brought into the order in which products read it.
typedef struct {
	window w;
	long small, large; // channels
	const float *kernel;
} kernel_of;

static void order_down(const void *what, float *weights) {
	const kernel_of *k = what;
	const microkernels *m = microkernels_for(k->small);
	long taps = k->w.kernel * k->w.kernel;
	for (long block = 0; block < k->small; block += m->nr) {
		float *panel = weights + block * taps * k->large;
		const float *from = k->kernel + block * k->large * taps;
		long lanes = k->small - block < m->nr ? k->small - block : m->nr;
		// Lanes inside: as many places are read in turn, but each in its order.
		for (long l = 0; l < k->large; l++)
			for (long t = 0; t < taps; t++) {
				float *lane = panel + (t * k->large + l) * m->nr;
				for (long j = 0; j < lanes; j++) lane[j] = from[(j * k->large + l) * taps + t];
			}
	}
}

int down(const team *t, window w, image large, const float *kernel, kept *keep, float version, finish f, image small) {
	if (f.rectify != RECTIFY_SIX && by_squares(w, large, small)) return down_squares(t, w, large, kernel, keep, version, f, small);
	kernel_of k = {w, small.c, large.c, kernel};
	gathering g = {.m = microkernels_for(small.c), .reach = down_reach(w), .x = large, .n = small.n, .h = small.h, .w = small.w, .channels = small.c};
	float *weights = weights_of(t, keep, version, (size_t)(w.kernel * w.kernel * large.c * padded(g.m, small.c)), small.c % g.m->nr != 0, &k, order_down);
	if (weights == NULL) return 0;
	g.weights = weights;
	target to = {.y = small, .mask = f.mask, .rectify = f.rectify, .step = 1};
	int done = gather(t, &g, &to, 1, f.bias);
	release(t, keep, weights);
	return done;
}

// up_shifts is what the pixels of phases from…to read of the small image along an axis:
// pixel stride·q + phase of the large image takes tap phase + padding − stride·shift of
// the kernel from the small image's pixel q + shift.
static void up_shifts(window w, long from, long to, long *first, long *count) {
	long low = MAX_KERNEL, high = -MAX_KERNEL;
	for (long phase = from; phase <= to; phase++)
		for (long shift = -MAX_KERNEL; shift <= MAX_KERNEL; shift++) {
			long tap = phase + w.padding - w.stride * shift;
			if (tap < 0 || tap >= w.kernel) continue;
			if (shift < low) low = shift;
			if (shift > high) high = shift;
		}
	*first = low;
	*count = high < low ? 0 : high - low + 1;
}

// A transposed convolution is one computation for each phase of the stride, which wastes
// no product; or a single one, where the results of all phases fit into one block of
// channels. That multiplies by zeros, but leaves fewer lanes idle than four would.
static int merged(window w, long channels) { return w.stride * w.stride * channels <= best_microkernels()->nr; }

static reach up_reach(window w, long from_row, long to_row, long from_col, long to_col) {
	reach r = {.step = 1};
	long first;
	up_shifts(w, from_row, to_row, &first, &r.rows);
	for (long i = 0; i < r.rows; i++) r.row[i] = first + i;
	up_shifts(w, from_col, to_col, &r.col, &r.cols);
	return r;
}

// phases are those of rows and columns that one gathering computes.
typedef struct {
	long from_row, to_row, from_col, to_col;
} phases;

static long count_phases(phases p) { return (p.to_row - p.from_row + 1) * (p.to_col - p.from_col + 1); }

// cut gives the phases of the gatherings of a transposed convolution: those of the most taps
// first, as threads end sooner after each other when what they take last is small.
static long cut(window w, long channels, phases out[MOST_TOGETHER]) {
	long n = 0, last = w.stride - 1;
	if (merged(w, channels)) {
		out[n++] = (phases){0, last, 0, last};
		return n;
	}
	for (long row = last; row >= 0; row--)
		for (long col = last; col >= 0; col--) out[n++] = (phases){row, row, col, col};
	return n;
}

static reach reach_of(window w, phases p) { return up_reach(w, p.from_row, p.to_row, p.from_col, p.to_col); }

// phase_weights is how many weights a gathering has.
static long phase_weights(const kernel_of *k, phases p) {
	long channels = count_phases(p) * k->large;
	reach r = reach_of(k->w, p);
	return r.rows * r.cols * k->small * padded(microkernels_for(channels), channels);
}

static void order_phases(const kernel_of *k, phases p, float *weights) {
	long count = count_phases(p), cols = p.to_col - p.from_col + 1, taps = k->w.kernel * k->w.kernel;
	const microkernels *m = microkernels_for(count * k->large);
	reach r = reach_of(k->w, p);
	long panel = r.rows * r.cols * k->small * m->nr;
	for (long s = 0; s < k->small; s++) { // outside, as all taps of a channel lie together
		const float *all = k->kernel + s * k->large * taps;
		for (long phase = 0; phase < count; phase++)
			for (long i = 0; i < r.rows; i++)
				for (long j = 0; j < r.cols; j++) {
					long row = p.from_row + phase / cols + k->w.padding - k->w.stride * r.row[i];
					long col = p.from_col + phase % cols + k->w.padding - k->w.stride * (r.col + j);
					if (row < 0 || row >= k->w.kernel || col < 0 || col >= k->w.kernel) continue;
					const float *from = all + row * k->w.kernel + col;
					float *lane = weights + ((i * r.cols + j) * k->small + s) * m->nr;
					if (count > 1) { // all of them are lanes of one block
						for (long l = 0; l < k->large; l++) lane[phase * k->large + l] = from[l * taps];
						continue;
					}
					for (long block = 0; block < k->large; block += m->nr, lane += panel) {
						long lanes = k->large - block < m->nr ? k->large - block : m->nr;
						for (long l = 0; l < lanes; l++) lane[l] = from[(block + l) * taps];
					}
				}
	}
}

static void order_up(const void *what, float *weights) {
	const kernel_of *k = what;
	phases parts[MOST_TOGETHER];
	long n = cut(k->w, k->large, parts);
	for (long i = 0; i < n; i++) {
		order_phases(k, parts[i], weights);
		weights += phase_weights(k, parts[i]);
	}
}

int up(const team *t, window w, image small, const float *kernel, kept *keep, float version, finish f, image large) {
	if (f.rectify != RECTIFY_SIX && by_squares(w, small, large)) return up_squares(t, w, small, kernel, keep, version, f, large);
	if (by_taps(w, large, f)) return up_taps(t, small, kernel, keep, version, f, large);
	kernel_of k = {w, small.c, large.c, kernel};
	phases parts[MOST_TOGETHER];
	long n = cut(w, large.c, parts), count = 0;
	for (long i = 0; i < n; i++) count += phase_weights(&k, parts[i]);
	float *weights = weights_of(t, keep, version, (size_t)count, large.c % best_microkernels()->nr != 0, &k, order_up);
	if (weights == NULL) return 0;
	const float *own = weights;
	gathering g[MOST_TOGETHER];
	target to[MOST_TOGETHER];
	for (long i = 0; i < n; i++) {
		phases p = parts[i];
		long count = count_phases(p);
		g[i] = (gathering){.m = microkernels_for(count * large.c), .reach = reach_of(w, p), .x = small, .n = small.n, .h = small.h,
		                   .w = small.w, .channels = count * large.c, .weights = own};
		to[i] = (target){.y = large, .mask = f.mask, .rectify = f.rectify, .step = w.stride, .dr = p.from_row, .dc = p.from_col, .phases = count > 1};
		own += phase_weights(&k, p);
	}
	int done = gather(t, g, to, n, f.bias);
	release(t, keep, weights);
	return done;
}

// elements is how many tiles of mr cover a run; the last is moved back to end with it.
static long tiles(const microkernels *m, long run) { return (run + m->mr - 1) / m->mr; }

static long tile_at(const microkernels *m, long run, long tile) {
	long at = tile * m->mr;
	return at + m->mr > run && run >= m->mr ? run - m->mr : at;
}

static size_t sums_bytes(const microkernels *m, const reach *r, image small, image large) {
	return (size_t)(r->rows * tiles(m, r->cols * large.c) * m->mr * padded(m, small.c)) * sizeof(float);
}

int correlate(const team *t, window w, image small, image large, float *kernel) {
	if (by_squares(w, large, small)) return correlate_squares(t, w, small, large, kernel);
	const microkernels *m = microkernels_for(small.c);
	reach r = down_reach(w);
	void *scratch = t->borrow(points_bytes(&r, large.c) + taken(sums_bytes(m, &r, small, large)) +
	                          taken((size_t)(GROUP * padded(m, small.c)) * sizeof(float)));
	if (scratch == NULL) return 0;
	char *room = scratch;
	points p = take_points(&room, &r, large.c);
	size_t bytes = sums_bytes(m, &r, small, large);
	float *sums = take(&room, bytes), *copied = take(&room, (size_t)(GROUP * padded(m, small.c)) * sizeof(float));
	memset(sums, 0, bytes);
	long run = r.cols * large.c, all = small.n * small.h * small.w, step = padded(m, small.c);
	for (long first = 0; first < all; first += GROUP) {
		long n = all - first < GROUP ? all - first : GROUP;
		locate(p, &r, large, small.h, small.w, first, n);
		const float *from = small.data + first * small.c;
		if (step != small.c) { // so that whole vectors can be read
			memset(copied, 0, (size_t)(n * step) * sizeof(float));
			for (long i = 0; i < n; i++) memcpy(copied + i * step, from + i * small.c, (size_t)small.c * sizeof(float));
			from = copied;
		}
		float *tile = sums;
		for (long row = 0; row < r.rows; row++)
			for (long i = 0; i < tiles(m, run); i++)
				for (long block = 0; block < step; block += m->nr) {
					m->scatter(p.at + row * GROUP, n, tile_at(m, run, i), from + block, step, tile);
					tile += m->mr * m->nr;
				}
	}
	// From tiles to S×L×K×K.
	for (long block = 0; block < step; block += m->nr)
		for (long l = 0; l < large.c; l++)
			for (long row = 0; row < w.kernel; row++)
				for (long col = 0; col < w.kernel; col++) {
					long e = col * large.c + l, i = e / m->mr;
					const float *tile = sums + ((row * tiles(m, run) + i) * (step / m->nr) + block / m->nr) * m->mr * m->nr +
					                    (e - tile_at(m, run, i)) * m->nr;
					for (long j = 0; j < m->nr && block + j < small.c; j++)
						kernel[(((block + j) * large.c + l) * w.kernel + row) * w.kernel + col] = tile[j];
				}
	t->give_back(scratch);
	return 1;
}
