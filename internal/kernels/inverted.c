#include "inverted.h"

#include <string.h>

#include "microkernel.h"
#include "packing.h"

// The expanded image between the convolutions is several times as large as the input and output.
// The first two convolutions are therefore fused, for a group of channels and a strip of rows at a
// time: the expanded pixels stay in the L2 cache, in a zero-padded buffer. A group has the channels
// of one tile; groups share nothing but their input. The third convolution sums over all channels,
// and starts after the others have finished.

// BUFFER is the maximum size, in bytes, of the expanded pixels of a strip of several rows. It shares
// the L2 cache with the weights, the input and the output. Measured: 256 kB took the same time on
// one thread and 10 % longer on two; 64 kB took 5 % longer on one.
#define BUFFER (128 << 10)

// The third convolution is split into pieces of this many pixels: enough to amortize reading the
// weights for each piece, and few enough to keep all threads busy.
#define LEAST_PIXELS 64
#define MOST_PIXELS 512

// group_microkernels returns the microkernels for the channels from block on: those with narrow tiles for a
// remainder that fits into one.
static const microkernels *group_microkernels(long channels, long block) {
	const microkernels *m = best_microkernels();
	return m->narrow != NULL && channels - block <= m->narrow->nr ? m->narrow : m;
}

static long channel_groups(long channels) { return (channels + best_microkernels()->nr - 1) / best_microkernels()->nr; }

// padded returns the number of lanes of all channel groups together.
static long padded(long channels) {
	long last = (channel_groups(channels) - 1) * best_microkernels()->nr;
	return last + group_microkernels(channels, last)->nr;
}

// weight_layout is the offsets of a block's packed weights: the panels of each convolution, by
// channel group, product and lane, and its biases by lane.
typedef struct {
	long expand, expand_bias, depthwise, depthwise_bias, project, project_bias, all;
} weight_layout;

static weight_layout weight_layout_of(const inverted *b) {
	weight_layout p = {0};
	long hidden = padded(b->hidden), out = padded(b->out);
	p.expand_bias = p.expand + (b->expand != NULL ? hidden * b->in : 0);
	p.depthwise = p.expand_bias + hidden;
	p.depthwise_bias = p.depthwise + hidden * b->w.kernel * b->w.kernel;
	p.project = p.depthwise_bias + hidden;
	p.project_bias = p.project + out * b->hidden;
	p.all = p.project_bias + out;
	return p;
}

// pack_layer packs kernels with `products` weights per channel. Padding lanes are zero already.
static void pack_layer(const float *kernel, const float *bias, long channels, long products, float *weights, float *biases) {
	for (long block = 0; block < channels;) {
		const microkernels *m = group_microkernels(channels, block);
		long lanes = channels - block < m->nr ? channels - block : m->nr;
		for (long j = 0; j < lanes; j++)
			for (long k = 0; k < products; k++) weights[block * products + k * m->nr + j] = kernel[(block + j) * products + k];
		block += m->nr;
	}
	memcpy(biases, bias, (size_t)channels * sizeof(float));
}

static void pack(const void *what, float *weights) {
	const inverted *b = what;
	weight_layout p = weight_layout_of(b);
	if (b->expand != NULL) pack_layer(b->expand, b->expand_bias, b->hidden, b->in, weights + p.expand, weights + p.expand_bias);
	pack_layer(b->depthwise, b->depthwise_bias, b->hidden, b->w.kernel * b->w.kernel, weights + p.depthwise, weights + p.depthwise_bias);
	pack_layer(b->project, b->project_bias, b->out, b->hidden, weights + p.project, weights + p.project_bias);
}

// blocked is the computation of a block for one image, split into pieces.
typedef struct {
	const team *team;
	const inverted *b;
	weight_layout p;
	const float *weights, *x;
	float *hidden, *y;  // hidden: the depthwise convolution's result, ld numbers per pixel
	long ld;
	image from, to;     // shapes only
	long rows, pixels;  // of a piece
	atomic_int failed;
} blocked;

// expand_rows writes rows of expanded pixels and their zero padding to out. The first is row y of
// the image, which may be outside of it. line is the number of pixels of a row of out.
static void expand_rows(const blocked *all, const microkernels *m, long block, long y, long rows, long line, float *out) {
	const inverted *b = all->b;
	long w = all->from.w, left = b->w.padding, right = line - left - w, first = y < 0 ? -y : 0;
	long end = y + rows > all->from.h ? all->from.h - y : rows, n = (end - first) * w;
	memset(out, 0, (size_t)(first * line * m->nr) * sizeof(float));
	memset(out + end * line * m->nr, 0, (size_t)((rows - end) * line * m->nr) * sizeof(float));
	for (long row = first; row < end; row++) {
		memset(out + row * line * m->nr, 0, (size_t)(left * m->nr) * sizeof(float));
		memset(out + (row * line + left + w) * m->nr, 0, (size_t)(right * m->nr) * sizeof(float));
	}
	const float *x = all->x + (y + first) * w * b->in;
	out += (first * line + left) * m->nr;
	if (b->expand == NULL) {
		long lanes = b->hidden - block < m->nr ? b->hidden - block : m->nr;
		if (lanes < m->nr) memset(out, 0, (size_t)(((end - first) * line - left) * m->nr) * sizeof(float)); // padding lanes
		for (long row = first; row < end; row++, out += (line - w) * m->nr)
			for (long col = 0; col < w; col++, x += b->in, out += m->nr) copy_few(out, x + block, lanes);
		return;
	}
	const float *weights = all->weights + all->p.expand + block * b->in, *bias = all->weights + all->p.expand_bias + block;
	float spare[MAX_NR];
	long tile = n < m->mr ? 1 : m->mr; // fewer pixels than a tile: one at a time
	for (long i = 0; i < n; i += tile) {
		if (i + tile > n) i = n - tile; // recomputes some
		float *to[MAX_MR];
		long row = i / w, col = i % w;
		for (long k = 0; k < m->mr; k++) {
			to[k] = k < tile ? out + (row * line + col) * m->nr : spare;
			if (++col == w) col = 0, row++;
		}
		m->pointwise(x + i * b->in, tile == 1 ? 0 : b->in, b->in, weights, bias, 1, NULL, to);
	}
}

static void hidden_piece(void *data, size_t piece) {
	blocked *all = data;
	const inverted *b = all->b;
	window w = b->w;
	long groups = channel_groups(b->hidden), block = (long)piece % groups * best_microkernels()->nr, row = (long)piece / groups * all->rows;
	const microkernels *m = group_microkernels(b->hidden, block);
	long n = all->to.h - row < all->rows ? all->to.h - row : all->rows;
	long rows = (n - 1) * w.stride + w.kernel, line = (all->to.w - 1) * w.stride + w.kernel;
	void *scratch = all->team->scratch_alloc(scratch_size((size_t)(rows * line * m->nr) * sizeof(float)));
	if (scratch == NULL) {
		all->failed = 1;
		return;
	}
	char *room = scratch;
	float *expanded = scratch_take(&room, (size_t)(rows * line * m->nr) * sizeof(float));
	expand_rows(all, m, block, row * w.stride - w.padding, rows, line, expanded);
	const float *weights = all->weights + all->p.depthwise + block * w.kernel * w.kernel, *bias = all->weights + all->p.depthwise_bias + block;
	for (long i = 0; i < n; i++)
		m->depthwise(expanded + i * w.stride * line * m->nr, line * m->nr, w.kernel, w.stride, all->to.w, weights, bias,
		             all->hidden + (row + i) * all->to.w * all->ld + block, all->ld);
	all->team->scratch_free(scratch);
}

static void project_piece(void *data, size_t piece) {
	blocked *all = data;
	const inverted *b = all->b;
	long groups = channel_groups(b->out), block = (long)piece % groups * best_microkernels()->nr, first = (long)piece / groups * all->pixels;
	const microkernels *m = group_microkernels(b->out, block);
	long n = all->to.h * all->to.w - first < all->pixels ? all->to.h * all->to.w - first : all->pixels;
	long lanes = b->out - block < m->nr ? b->out - block : m->nr;
	const float *weights = all->weights + all->p.project + block * b->hidden, *bias = all->weights + all->p.project_bias + block;
	const float *from = all->hidden + first * all->ld, *added = b->residual ? all->x + first * b->out + block : NULL;
	float *y = all->y + first * b->out + block, spare[MAX_MR * MAX_NR];
	int whole = lanes == m->nr;
	long tile = n < m->mr ? 1 : m->mr;
	for (long i = 0; i < n; i += tile) {
		if (i + tile > n) i = n - tile;
		const float *add[MAX_MR];
		float *to[MAX_MR];
		for (long k = 0; k < m->mr; k++) {
			int used = whole && k < tile;
			to[k] = used ? y + (i + k) * b->out : spare + k * m->nr;
			add[k] = b->residual && used ? added + (i + k) * b->out : bias; // surplus lanes add arbitrary numbers
		}
		m->pointwise(from + i * all->ld, tile == 1 ? 0 : all->ld, b->hidden, weights, bias, 0, b->residual && whole ? add : NULL, to);
		for (long k = 0; !whole && k < tile; k++) {
			for (long j = 0; b->residual && j < lanes; j++) spare[k * m->nr + j] += added[(i + k) * b->out + j];
			copy_few(y + (i + k) * b->out, spare + k * m->nr, lanes);
		}
	}
}

int inverted_fits(const inverted *b, image x, image y) {
	window w = b->w;
	return (w.kernel == 3 || w.kernel == 5) && conv_fits(w, y, x) && x.c == b->in && y.c == b->out && (b->expand != NULL || b->hidden == b->in) &&
	       (!b->residual || (w.stride == 1 && b->in == b->out));
}

int inverted_residual(const team *t, const inverted *b, weight_cache *cache, image x, image y) {
	blocked all = {.team = t, .b = b, .p = weight_layout_of(b), .from = x, .to = y, .ld = padded(b->hidden)};
	float *weights = packed_weights(t, cache, 0, (size_t)all.p.all, 1, b, pack);
	if (weights == NULL) return 0;
	all.weights = weights;
	void *scratch = t->scratch_alloc(scratch_size((size_t)(y.h * y.w * all.ld) * sizeof(float)));
	if (scratch == NULL) {
		release_weights(t, cache, weights);
		return 0;
	}
	char *room = scratch;
	all.hidden = scratch_take(&room, (size_t)(y.h * y.w * all.ld) * sizeof(float));
	// As many rows as fit into the buffer, in strips of equal height.
	window w = b->w;
	long line = ((y.w - 1) * w.stride + w.kernel) * best_microkernels()->nr * (long)sizeof(float);
	long most = (BUFFER / line - w.kernel) / w.stride + 1, pixels = y.h * y.w;
	if (most < 1) most = 1;
	long strips = even_groups(y.h, (y.h + most - 1) / most, 1, &all.rows);
	long size = pixels / t->pieces < LEAST_PIXELS ? LEAST_PIXELS : pixels / t->pieces > MOST_PIXELS ? MOST_PIXELS : pixels / t->pieces;
	long groups = even_groups(pixels, (pixels + size - 1) / size, best_microkernels()->mr, &all.pixels);
	for (long i = 0; i < x.n && !all.failed; i++) {
		all.x = x.data + i * x.h * x.w * x.c;
		all.y = y.data + i * y.h * y.w * y.c;
		t->parallel_for(t, hidden_piece, (size_t)(strips * channel_groups(b->hidden)), &all);
		t->parallel_for(t, project_piece, (size_t)(groups * channel_groups(b->out)), &all);
	}
	t->scratch_free(scratch);
	release_weights(t, cache, weights);
	return !all.failed;
}
