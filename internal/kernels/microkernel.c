// What every processor that the program is compiled for has: 16 registers of 4 numbers at
// the least (SSE2), 32 on arm64.
#include "microkernel.h"

#define TARGET
#define LANES 4
#ifdef __aarch64__
#define VECTORS 4
#define MR 6
#else
#define VECTORS 2
#define MR 4
#endif
#define NAME microkernels_any
#define LABEL "any"
#include "loops.h"

#ifdef __x86_64__
extern const microkernels microkernels_avx2, microkernels_avx512;
#endif

const microkernels *best_microkernels(void) {
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
	    __builtin_cpu_supports("avx512bw"))
		return &microkernels_avx512;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &microkernels_avx2;
#endif
	return &microkernels_any;
}
