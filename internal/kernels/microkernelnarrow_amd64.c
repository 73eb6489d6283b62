// AVX2 and FMA, with tiles for results of few channels.
#include <immintrin.h>

#include "microkernel.h"

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define VECTORS 1
#define MR 8
#define NARROW NULL
#define NAME microkernels_avx2_narrow
#define VSQRT(v) _mm256_sqrt_ps(v)
#define VMIN(limit, v) _mm256_min_ps(limit, v)
#define VMAX(limit, v) _mm256_max_ps(limit, v)
#define LABEL "AVX2"
#include "loops.h"
