// AVX-512, with tiles for results of few channels.
#include <immintrin.h>

#include "microkernel.h"

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma")))
#define LANES 16
#define VECTORS 1
#define MR 8
#define NARROW NULL
#define NAME microkernels_avx512_narrow
#define VSQRT(v) _mm512_sqrt_ps(v)
#define VMIN(limit, v) _mm512_min_ps(limit, v)
#define VMAX(limit, v) _mm512_max_ps(limit, v)
#define LABEL "AVX-512"
#include "loops.h"
