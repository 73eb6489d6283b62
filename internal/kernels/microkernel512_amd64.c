// AVX-512: 32 registers of 16 float32, of which a tile takes 16. Tiles of 12 pixels were no faster,
// and need more pointers than there are general-purpose registers.
#include <immintrin.h>

#include "microkernel.h"

extern const microkernels microkernels_avx512_narrow;

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma")))
#define LANES 16
#define VECTORS 2
#define MR 8
#define NARROW &microkernels_avx512_narrow
#define NAME microkernels_avx512
#define VSQRT(v) _mm512_sqrt_ps(v)
#define VMIN(limit, v) _mm512_min_ps(limit, v)
#define VMAX(limit, v) _mm512_max_ps(limit, v)
#define LABEL "AVX-512"
#include "loops.h"
