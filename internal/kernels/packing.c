#include "packing.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *scratch_take(char **scratch, size_t bytes) {
	char *at = (char *)(((uintptr_t)*scratch + 63) & ~(uintptr_t)63);
	*scratch = at + bytes;
	return at;
}

static float *packed(float *weights, size_t bytes, int zeros, const void *what, void (*pack)(const void *what, float *weights)) {
	if (weights == NULL) return NULL;
	if (zeros) memset(weights, 0, bytes);
	pack(what, weights);
	return weights;
}

float *packed_weights(const team *t, weight_cache *cache, float version, size_t count, int zeros, const void *what,
                      void (*pack)(const void *what, float *weights)) {
	size_t bytes = count * sizeof(float);
	if (cache == NULL) return packed(t->scratch_alloc(bytes), bytes, zeros, what, pack);
	// A second thread waits here, and then uses the weights that the first has packed.
	pthread_mutex_lock(&cache->lock);
	if (cache->weights == NULL) cache->weights = malloc(bytes);
	if (!cache->filled || cache->version != version) {
		cache->filled = packed(cache->weights, bytes, zeros, what, pack) != NULL;
		cache->version = version;
	}
	pthread_mutex_unlock(&cache->lock);
	return cache->weights;
}

void release_weights(const team *t, weight_cache *cache, float *weights) {
	if (cache == NULL) t->scratch_free(weights);
}
