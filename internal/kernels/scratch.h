// What computations of several files share: memory in pieces, and weights in the order in
// which they are read.
#ifndef ANOMALY_SCRATCH_H
#define ANOMALY_SCRATCH_H

#include "convolution.h"

static inline long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

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
