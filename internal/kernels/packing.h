// Helpers shared by the convolutions: splitting work, carving up scratch memory, and packing
// weights into the order in which the microkernels read them.
#ifndef ANOMALY_PACKING_H
#define ANOMALY_PACKING_H

#include "convolution.h"

static inline long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

// even_groups splits n into at most that many groups of equal size, except for the last, and returns
// their number. The size is a multiple of unit. A small remainder as a group of its own would read
// all weights again, and keep other threads waiting.
static inline long even_groups(long n, long groups, long unit, long *size) {
	*size = round_up((n + groups - 1) / groups, unit);
	return (n + *size - 1) / *size;
}

// scratch_take returns a piece of scratch memory, aligned to a cache line of 64 bytes. scratch_size is
// an upper bound of what a piece uses.
void *scratch_take(char **scratch, size_t bytes);
static inline size_t scratch_size(size_t bytes) { return bytes + 64; }

// packed_weights returns the packed weights of a kernel, from the cache or packed by pack, and NULL if
// there is no memory. If zeros is set, the weights are zeroed first, for padding lanes that pack does
// not write. release_weights frees them if there is no cache.
float *packed_weights(const team *t, weight_cache *cache, float version, size_t count, int zeros, const void *what,
                      void (*pack)(const void *what, float *weights));
void release_weights(const team *t, weight_cache *cache, float *weights);

#endif
