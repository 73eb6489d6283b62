// AVX2 and FMA: 16 registers of 8 float32, of which a tile takes 12.
#include <immintrin.h>

#include "microkernel.h"

extern const microkernels microkernels_avx2_narrow;

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define VECTORS 2
#define MR 6
#define NARROW &microkernels_avx2_narrow
#define NAME microkernels_avx2
#define VSQRT(v) _mm256_sqrt_ps(v)
#define VMIN(limit, v) _mm256_min_ps(limit, v)
#define VMAX(limit, v) _mm256_max_ps(limit, v)
#define LABEL "AVX2"
#include "loops.h"
