// What computations of several files share: memory in pieces, and weights in the order in
// which they are read.
#ifndef ANOMALY_SCRATCH_H
#define ANOMALY_SCRATCH_H

#include "convolution.h"

static inline long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

// even_groups cuts n into so many groups, or fewer, that are as large as each other, but for
// the last, and a multiple of unit: what is left over would be a group of its own that reads
// all weights, and a thread's, for which the others wait.
static inline long even_groups(long n, long groups, long unit, long *size) {
	*size = round_up((n + groups - 1) / groups, unit);
	return (n + *size - 1) / *size;
}

// take hands scratch memory out in pieces that begin at a cache line; taken is how much a
// piece takes at most.
void *take(char **scratch, size_t bytes);
static inline size_t taken(size_t bytes) { return bytes + 64; }

// weights_of gives a kernel's weights in the order that a computation reads them, which
// order writes: those that were kept, or new ones, which release ends. Where order leaves
// lanes out, it writes into zeros. It gives NULL where there is no memory.
float *weights_of(const team *t, kept *keep, float version, size_t count, int zeros, const void *what,
                  void (*order)(const void *what, float *weights));
void release(const team *t, kept *keep, float *weights);

#endif
