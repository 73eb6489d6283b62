// The baseline of the target architecture: 16 registers of 4 float32 (SSE2), or 32 on arm64 (NEON).
#include "microkernel.h"

#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#define TARGET
#define LANES 4
#ifdef __aarch64__
#define VECTORS 4
#define MR 6
#else
#define VECTORS 2
#define MR 4
#endif
// GCC's vector extension has no square root.
#define VSQRT(v) ((vector){sqrtf((v)[0]), sqrtf((v)[1]), sqrtf((v)[2]), sqrtf((v)[3])})
#define VMIN(limit, v) SELECT((bits)((v) > (limit)), limit, v)
#define VMAX(limit, v) SELECT((bits)((v) < (limit)), limit, v)
#define NARROW NULL
#define NAME microkernels_any
#define LABEL "any"
#include "loops.h"

#ifdef __x86_64__
extern const microkernels microkernels_avx2, microkernels_avx512;
#endif

// known is all instruction sets, the best first.
static const microkernels *const known[] = {
#ifdef __x86_64__
    &microkernels_avx512,
    &microkernels_avx2,
#endif
    &microkernels_any,
};

static int runs(const microkernels *m) {
#ifdef __x86_64__
	if (m == &microkernels_avx512)
		return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
		       __builtin_cpu_supports("avx512bw");
	if (m == &microkernels_avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
	return m == &microkernels_any;
}

static const microkernels *_Atomic chosen;

const microkernels *best_microkernels(void) {
	const microkernels *m = chosen;
	for (size_t i = 0; m == NULL; i++)
		if (runs(known[i])) chosen = m = known[i];
	return m;
}

int choose_microkernels(const char *name) {
	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (strcmp(known[i]->name, name) == 0 && runs(known[i])) {
			chosen = known[i];
			return 1;
		}
	return 0;
}

const char *microkernels_name(size_t i) { return i < sizeof known / sizeof *known ? known[i]->name : NULL; }
