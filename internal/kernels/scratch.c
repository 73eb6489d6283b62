#include "scratch.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *take(char **scratch, size_t bytes) {
	char *at = (char *)(((uintptr_t)*scratch + 63) & ~(uintptr_t)63);
	*scratch = at + bytes;
	return at;
}

float *weights_of(const team *t, kept *keep, size_t count, int zeros, const void *what, void (*order)(const void *what, float *weights)) {
	if (keep != NULL && *keep != NULL) return *keep;
	size_t bytes = count * sizeof(float);
	float *weights = keep != NULL ? malloc(bytes) : t->borrow(bytes);
	if (weights == NULL) return NULL;
	if (zeros) memset(weights, 0, bytes);
	order(what, weights);
	float *none = NULL;
	if (keep != NULL && !atomic_compare_exchange_strong(keep, &none, weights)) { // another was first
		free(weights);
		return none;
	}
	return weights;
}

void release(const team *t, kept *keep, float *weights) {
	if (keep == NULL) t->give_back(weights);
}
