#include "convolution.h"

#include <string.h>

#include "microkernel.h"
#include "packing.h"
#include "winograd.h"
#include "col2im.h"

// Convolutions here are indirect GEMMs (Dukhan, "The Indirect Convolution Algorithm", 2019). An
// output position is a pixel of the small image, or of an image of its size. For each row of the
// kernel, the position reads one contiguous run of the other image: neighbouring pixels of a row
// with all their channels. A position is therefore one pointer per kernel row, and all runs have
// the same length: the left matrix of the product is read in place, without im2col. Only runs at
// the left and right edges are copied, because they need zero padding.

// GROUP is the maximum number of output positions processed at a time: the pointers, and the
// pixels they point to, stay in the L2 cache while all channels of the result are computed. It is
// a multiple of every mr, and at least the 16×16 positions of the deepest layer of a 256 px image,
// whose weights would otherwise be read again for a small remainder.
#define GROUP 264

// footprint is the input an output position reads, relative to stride times the position: rows,
// and in each row the run of cols pixels that starts at col.
typedef struct {
	long stride, rows, row[MAX_KERNEL], col, cols;
} footprint;

// indirection is the indirection buffer of a group of positions: GROUP pointers for each row of the
// footprint, the zeros that rows outside the image read, and the copies of runs at the edges.
typedef struct {
	const float **at;
	float *zeros, *patches;
} indirection;

static size_t indirection_bytes(const footprint *r, long channels) {
	size_t run = (size_t)(r->cols * channels + MAX_MR) * sizeof(float);
	return scratch_size((size_t)r->rows * GROUP * sizeof(float *)) + scratch_size(run) + scratch_size((size_t)r->rows * GROUP * run);
}

static indirection take_indirection(char **scratch, const footprint *r, long channels) {
	size_t run = (size_t)(r->cols * channels + MAX_MR) * sizeof(float);
	indirection p;
	p.at = scratch_take(scratch, (size_t)r->rows * GROUP * sizeof(float *));
	p.zeros = scratch_take(scratch, run);
	p.patches = scratch_take(scratch, (size_t)r->rows * GROUP * run);
	memset(p.zeros, 0, run);
	return p;
}

// fill_indirection sets the pointers of n positions, starting at first, of images of h×w. Runs shorter
// than a tile are copied too, because a tile reads MAX_MR numbers of each.
static void fill_indirection(indirection p, const footprint *r, image x, long h, long w, long first, long n) {
	float *patch = p.patches;
	size_t run = (size_t)(r->cols * x.c);
	// Columns whose runs are inside the image; none where all runs are copied.
	long inner = (-r->col + r->stride - 1) / r->stride, outer = (x.w - r->cols - r->col) / r->stride + 1;
	if (inner < 0) inner = 0;
	if ((long)run < MAX_MR || x.w < r->cols + r->col) outer = 0;
	for (long i = 0, next; i < n; i = next) { // one row of positions at a time
		long col = (first + i) % w, row = (first + i) / w % h, number = (first + i) / w / h;
		next = i + w - col < n ? i + w - col : n;
		for (long t = 0; t < r->rows; t++) {
			long y = row * r->stride + r->row[t];
			const float **at = p.at + t * GROUP + i;
			const float *line = x.data + (number * x.h + y) * x.w * x.c;
			for (long c = col; c < col + next - i; c++) {
				long left = c * r->stride + r->col;
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
	// The last tile may have surplus positions.
	for (long i = n; i < n + MAX_MR && i < GROUP; i++)
		for (long t = 0; t < r->rows; t++) p.at[t * GROUP + i] = p.zeros;
}

// indirect_gemm is a product over the footprints of all output positions: `channels` results per
// position, of which lane j of block b is channel b·nr + j.
typedef struct {
	const microkernels *m;
	footprint footprint;
	image x;
	long n, h, w;         // output positions
	long channels;        // of an output position
	const float *weights; // by block, row, pixel of the run, channel of x, lane
	const float *bias;    // by channel, padded to whole blocks
} indirect_gemm;

// destination is where the results of a position are written: pixel (stride·row + dr, stride·col + dc)
// of the image y, from channel 0; or, if phases is set, all stride×stride pixels, row by row.
typedef struct {
	image y;
	const float *mask;
	int rectify;
	long stride, dr, dc;
	int phases;
} destination;

// igemm_task is an indirect_gemm and its destination, split into groups for several threads.
typedef struct {
	const team *team;
	indirect_gemm g;
	destination t;
	long size;   // output positions of a group
	long blocks; // blocks of channels of a piece of work
	atomic_int failed;
} igemm_task;

// pixel_at returns the offset in y of a position's result, for a destination without phases.
static long pixel_at(const destination *t, long number, long row, long col) {
	return ((number * t->y.h + row * t->stride + t->dr) * t->y.w + col * t->stride + t->dc) * t->y.c;
}

static void write_pixel(const microkernels *m, const destination *t, long number, long row, long col, long block, const float *tile,
                        const float *bias, long channels) {
	image y = t->y;
	if (!t->phases) {
		long at = pixel_at(t, number, row, col) + block;
		if (channels - block >= m->nr) {
			m->epilogue(tile, bias + block, t->mask ? t->mask + at : NULL, t->rectify, y.data + at);
			return;
		}
		float whole[MAX_NR];
		m->epilogue(tile, bias + block, NULL, t->rectify, whole);
		for (long j = 0; block + j < channels; j++) y.data[at + j] = t->mask && !(t->mask[at + j] > 0) ? 0 : whole[j];
		return;
	}
	// One block has all channels of stride×stride pixels; the pixels of a row are adjacent.
	float whole[MAX_NR];
	m->epilogue(tile, bias, NULL, t->rectify, whole);
	for (long phase = 0; phase < t->stride; phase++) {
		const float *from = whole + phase * t->stride * y.c;
		long at = (((number * y.h + row * t->stride + phase) * y.w) + col * t->stride) * y.c;
		if (t->mask == NULL) {
			copy_few(y.data + at, from, t->stride * y.c);
			continue;
		}
		for (long j = 0; j < t->stride * y.c; j++) y.data[at + j] = t->mask && !(t->mask[at + j] > 0) ? 0 : from[j];
	}
}

static long pieces(const igemm_task *all) {
	long blocks = (all->g.channels + all->g.m->nr - 1) / all->g.m->nr;
	return (blocks + all->blocks - 1) / all->blocks;
}

static void run_group(void *data, size_t piece) {
	igemm_task *all = data;
	const indirect_gemm *g = &all->g;
	const microkernels *m = g->m;
	long group = (long)piece / pieces(all), from = (long)piece % pieces(all) * all->blocks * m->nr, to = from + all->blocks * m->nr;
	if (to > g->channels) to = g->channels;
	void *scratch = all->team->scratch_alloc(indirection_bytes(&g->footprint, g->x.c));
	if (scratch == NULL) {
		all->failed = 1;
		return;
	}
	char *room = scratch;
	indirection p = take_indirection(&room, &g->footprint, g->x.c);
	long first = group * all->size, left = g->n * g->h * g->w - first, n = left < all->size ? left : all->size;
	long run = g->footprint.cols * g->x.c, panel = g->footprint.rows * run * m->nr;
	float tile[MAX_MR * MAX_NR];
	fill_indirection(p, &g->footprint, g->x, g->h, g->w, first, n);
	const destination *t = &all->t;
	for (long block = from; block < to; block += m->nr) {
		const float *weights = g->weights + block / m->nr * panel;
		long col = first % g->w, row = first / g->w % g->h, number = first / g->w / g->h;
		int whole = t->mask == NULL && !t->phases && g->channels - block >= m->nr;
		for (long i = 0; i < n; i += m->mr) {
			float *out[MAX_MR];
			long pixels = n - i < m->mr ? n - i : m->mr;
			int at_once = whole && pixels == m->mr;
			if (!at_once) m->igemm(p.at + i, GROUP, g->footprint.rows, run, weights, tile);
			for (long k = 0; k < pixels; k++) {
				if (at_once)
					out[k] = t->y.data + pixel_at(t, number, row, col) + block;
				else
					write_pixel(m, t, number, row, col, block, tile + k * m->nr, g->bias, g->channels);
				if (++col == g->w) {
					col = 0;
					if (++row == g->h) {
						row = 0;
						number++;
					}
				}
			}
			if (at_once) m->igemm_epilogue(p.at + i, GROUP, g->footprint.rows, run, weights, g->bias + block, t->rectify, out);
		}
	}
	all->team->scratch_free(scratch);
}

// igemm_batch is the independent indirect GEMMs of one convolution.
#define MAX_IGEMMS 4
typedef struct {
	igemm_task all[MAX_IGEMMS];
	size_t end[MAX_IGEMMS]; // cumulative number of pieces
} igemm_batch;

static void run_piece(void *data, size_t piece) {
	igemm_batch *t = data;
	long i = 0;
	while (piece >= t->end[i]) i++;
	run_group(&t->all[i], piece - (i > 0 ? t->end[i - 1] : 0));
}

// run_igemms computes n indirect GEMMs. bias has one element per channel of y; it is repeated for an
// indirect_gemm of several phases.
static int run_igemms(const team *team, const indirect_gemm *g, const destination *t, long n, const float *bias) {
	igemm_batch all;
	size_t most = 0, pieces_of_all = 0;
	for (long i = 0; i < n; i++) {
		size_t bytes = (size_t)round_up(g[i].channels, g[i].m->nr) * sizeof(float);
		if (bytes > most) most = bytes;
	}
	float *repeated = team->scratch_alloc(most);
	if (repeated == NULL) return 0;
	memset(repeated, 0, most);
	for (long c = 0; bias != NULL && c < g[0].channels; c += t[0].y.c) memcpy(repeated + c, bias, (size_t)t[0].y.c * sizeof(float));
	for (long i = 0; i < n; i++) {
		igemm_task *one = &all.all[i];
		*one = (igemm_task){.team = team, .g = g[i], .t = t[i]};
		one->g.bias = repeated;
		long pixels = g[i].n * g[i].h * g[i].w, blocks = (g[i].channels + g[i].m->nr - 1) / g[i].m->nr;
		long groups = even_groups(pixels, (pixels + GROUP - 1) / GROUP, g[i].m->mr, &one->size);
		// A small image with many channels has few groups. With several threads, the channels of
		// a group are split into several pieces.
		long wanted = (team->pieces + groups * n - 1) / (groups * n);
		one->blocks = wanted >= blocks ? 1 : blocks / wanted;
		pieces_of_all += (size_t)(groups * pieces(one));
		all.end[i] = pieces_of_all;
	}
	team->parallel_for(team, run_piece, pieces_of_all, &all);
	team->scratch_free(repeated);
	int failed = 0;
	for (long i = 0; i < n; i++) failed |= all.all[i].failed;
	return !failed;
}

static footprint conv_footprint(window w) {
	footprint r = {.stride = w.stride, .rows = w.kernel, .col = -w.padding, .cols = w.kernel};
	for (long t = 0; t < w.kernel; t++) r.row[t] = t - w.padding;
	return r;
}

static long padded(const microkernels *m, long channels) { return round_up(channels, m->nr); }

int conv_fits(window w, image small, image large) {
	// How far the kernel of the last pixel reaches beyond the image.
	long below = (small.h - 1) * w.stride + w.kernel - w.padding - large.h, beside = (small.w - 1) * w.stride + w.kernel - w.padding - large.w;
	return w.kernel >= 1 && w.kernel <= MAX_KERNEL && (w.stride == 1 || w.stride == 2) && w.padding >= 0 && w.padding < w.kernel &&
	       small.n == large.n && large.h == small.h * w.stride && large.w == small.w * w.stride && below < w.kernel && beside < w.kernel;
}

// microkernels_for returns the microkernels for a number of result channels: those with narrow tiles if
// the channels fit.
static const microkernels *microkernels_for(long channels) {
	const microkernels *m = best_microkernels();
	return m->narrow != NULL && channels <= m->narrow->nr ? m->narrow : m;
}

// kernel_of is a kernel to be packed.
typedef struct {
	window w;
	long small, large; // channels
	const float *kernel;
} kernel_of;

static void pack_conv(const void *what, float *weights) {
	const kernel_of *k = what;
	const microkernels *m = microkernels_for(k->small);
	long taps = k->w.kernel * k->w.kernel;
	for (long block = 0; block < k->small; block += m->nr) {
		float *panel = weights + block * taps * k->large;
		const float *from = k->kernel + block * k->large * taps;
		long lanes = k->small - block < m->nr ? k->small - block : m->nr;
		// Lanes in the inner loop: nr streams are read, each sequentially.
		for (long l = 0; l < k->large; l++)
			for (long t = 0; t < taps; t++) {
				float *lane = panel + (t * k->large + l) * m->nr;
				for (long j = 0; j < lanes; j++) lane[j] = from[(j * k->large + l) * taps + t];
			}
	}
}

int conv(const team *t, window w, image large, const float *kernel, weight_cache *cache, float version, epilogue f, image small) {
	if (f.rectify != RECTIFY_RELU6 && winograd_applies(w, large, small)) return conv_winograd(t, w, large, kernel, cache, version, f, small);
	kernel_of k = {w, small.c, large.c, kernel};
	indirect_gemm g = {.m = microkernels_for(small.c), .footprint = conv_footprint(w), .x = large, .n = small.n, .h = small.h, .w = small.w, .channels = small.c};
	float *weights = packed_weights(t, cache, version, (size_t)(w.kernel * w.kernel * large.c * padded(g.m, small.c)), small.c % g.m->nr != 0, &k, pack_conv);
	if (weights == NULL) return 0;
	g.weights = weights;
	destination to = {.y = small, .mask = f.mask, .rectify = f.rectify, .stride = 1};
	int done = run_igemms(t, &g, &to, 1, f.bias);
	release_weights(t, cache, weights);
	return done;
}

// phase_shifts computes which pixels of the small image the phases from…to read along an axis: pixel
// stride·q + phase of the large image is the sum over taps phase + padding − stride·shift of the
// kernel times pixel q + shift of the small image.
static void phase_shifts(window w, long from, long to, long *first, long *count) {
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

// A transposed convolution is one indirect GEMM per phase of the stride (sub-pixel decomposition),
// without wasted products; or a single one if the results of all phases fit into one block of
// channels. The latter multiplies by zeros, but leaves fewer lanes idle than four GEMMs would.
static int merged(window w, long channels) { return w.stride * w.stride * channels <= best_microkernels()->nr; }

static footprint phase_footprint(window w, long from_row, long to_row, long from_col, long to_col) {
	footprint r = {.stride = 1};
	long first;
	phase_shifts(w, from_row, to_row, &first, &r.rows);
	for (long i = 0; i < r.rows; i++) r.row[i] = first + i;
	phase_shifts(w, from_col, to_col, &r.col, &r.cols);
	return r;
}

// phases is the range of rows and columns of phases that one indirect_gemm computes.
typedef struct {
	long from_row, to_row, from_col, to_col;
} phases;

static long count_phases(phases p) { return (p.to_row - p.from_row + 1) * (p.to_col - p.from_col + 1); }

// split_phases returns the phases of each indirect GEMM of a transposed convolution, those with the most
// taps first: threads finish closer together if the last pieces are small.
static long split_phases(window w, long channels, phases out[MAX_IGEMMS]) {
	long n = 0, last = w.stride - 1;
	if (merged(w, channels)) {
		out[n++] = (phases){0, last, 0, last};
		return n;
	}
	for (long row = last; row >= 0; row--)
		for (long col = last; col >= 0; col--) out[n++] = (phases){row, row, col, col};
	return n;
}

static footprint footprint_of(window w, phases p) { return phase_footprint(w, p.from_row, p.to_row, p.from_col, p.to_col); }

// phase_weights returns the number of packed weights of an indirect_gemm.
static long phase_weights(const kernel_of *k, phases p) {
	long channels = count_phases(p) * k->large;
	footprint r = footprint_of(k->w, p);
	return r.rows * r.cols * k->small * padded(microkernels_for(channels), channels);
}

static void pack_phases(const kernel_of *k, phases p, float *weights) {
	long count = count_phases(p), cols = p.to_col - p.from_col + 1, taps = k->w.kernel * k->w.kernel;
	const microkernels *m = microkernels_for(count * k->large);
	footprint r = footprint_of(k->w, p);
	long panel = r.rows * r.cols * k->small * m->nr;
	for (long s = 0; s < k->small; s++) { // outer loop, because all taps of a channel are contiguous
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

static void pack_conv_transpose(const void *what, float *weights) {
	const kernel_of *k = what;
	phases parts[MAX_IGEMMS];
	long n = split_phases(k->w, k->large, parts);
	for (long i = 0; i < n; i++) {
		pack_phases(k, parts[i], weights);
		weights += phase_weights(k, parts[i]);
	}
}

int conv_transpose(const team *t, window w, image small, const float *kernel, weight_cache *cache, float version, epilogue f, image large) {
	if (f.rectify != RECTIFY_RELU6 && winograd_applies(w, small, large)) return conv_transpose_winograd(t, w, small, kernel, cache, version, f, large);
	if (col2im_applies(w, large, f)) return conv_transpose_col2im(t, small, kernel, cache, version, f, large);
	kernel_of k = {w, small.c, large.c, kernel};
	phases parts[MAX_IGEMMS];
	long n = split_phases(w, large.c, parts), count = 0;
	for (long i = 0; i < n; i++) count += phase_weights(&k, parts[i]);
	float *weights = packed_weights(t, cache, version, (size_t)count, large.c % best_microkernels()->nr != 0, &k, pack_conv_transpose);
	if (weights == NULL) return 0;
	const float *own = weights;
	indirect_gemm g[MAX_IGEMMS];
	destination to[MAX_IGEMMS];
	for (long i = 0; i < n; i++) {
		phases p = parts[i];
		long count = count_phases(p);
		g[i] = (indirect_gemm){.m = microkernels_for(count * large.c), .footprint = footprint_of(w, p), .x = small, .n = small.n, .h = small.h,
		                   .w = small.w, .channels = count * large.c, .weights = own};
		to[i] = (destination){.y = large, .mask = f.mask, .rectify = f.rectify, .stride = w.stride, .dr = p.from_row, .dc = p.from_col, .phases = count > 1};
		own += phase_weights(&k, p);
	}
	int done = run_igemms(t, g, to, n, f.bias);
	release_weights(t, cache, weights);
	return done;
}

// tiles returns how many tiles of mr cover a run; the last one is moved back to end with the run.
static long tiles(const microkernels *m, long run) { return (run + m->mr - 1) / m->mr; }

static long tile_at(const microkernels *m, long run, long tile) {
	long at = tile * m->mr;
	return at + m->mr > run && run >= m->mr ? run - m->mr : at;
}

static size_t sums_bytes(const microkernels *m, const footprint *r, image small, image large) {
	return (size_t)(r->rows * tiles(m, r->cols * large.c) * m->mr * padded(m, small.c)) * sizeof(float);
}

int conv_weight_grad(const team *t, window w, image small, image large, float *kernel) {
	if (winograd_applies(w, large, small)) return conv_weight_grad_winograd(t, w, small, large, kernel);
	const microkernels *m = microkernels_for(small.c);
	footprint r = conv_footprint(w);
	void *scratch = t->scratch_alloc(indirection_bytes(&r, large.c) + scratch_size(sums_bytes(m, &r, small, large)) +
	                          scratch_size((size_t)(GROUP * padded(m, small.c)) * sizeof(float)));
	if (scratch == NULL) return 0;
	char *room = scratch;
	indirection p = take_indirection(&room, &r, large.c);
	size_t bytes = sums_bytes(m, &r, small, large);
	float *sums = scratch_take(&room, bytes), *copied = scratch_take(&room, (size_t)(GROUP * padded(m, small.c)) * sizeof(float));
	memset(sums, 0, bytes);
	long run = r.cols * large.c, all = small.n * small.h * small.w, ld = padded(m, small.c);
	for (long first = 0; first < all; first += GROUP) {
		long n = all - first < GROUP ? all - first : GROUP;
		fill_indirection(p, &r, large, small.h, small.w, first, n);
		const float *from = small.data + first * small.c;
		if (ld != small.c) { // so that whole vectors can be loaded
			memset(copied, 0, (size_t)(n * ld) * sizeof(float));
			for (long i = 0; i < n; i++) memcpy(copied + i * ld, from + i * small.c, (size_t)small.c * sizeof(float));
			from = copied;
		}
		float *tile = sums;
		for (long row = 0; row < r.rows; row++)
			for (long i = 0; i < tiles(m, run); i++)
				for (long block = 0; block < ld; block += m->nr) {
					m->igemm_transposed(p.at + row * GROUP, n, tile_at(m, run, i), from + block, ld, tile);
					tile += m->mr * m->nr;
				}
	}
	// From tiles to S×L×K×K.
	for (long block = 0; block < ld; block += m->nr)
		for (long l = 0; l < large.c; l++)
			for (long row = 0; row < w.kernel; row++)
				for (long col = 0; col < w.kernel; col++) {
					long e = col * large.c + l, i = e / m->mr;
					const float *tile = sums + ((row * tiles(m, run) + i) * (ld / m->nr) + block / m->nr) * m->mr * m->nr +
					                    (e - tile_at(m, run, i)) * m->nr;
					for (long j = 0; j < m->nr && block + j < small.c; j++)
						kernel[(((block + j) * large.c + l) * w.kernel + row) * w.kernel + col] = tile[j];
				}
	t->scratch_free(scratch);
	return 1;
}
