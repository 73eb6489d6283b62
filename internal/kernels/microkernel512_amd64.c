// Processors with AVX-512: 32 registers of 16 numbers, of which a tile takes 16. As many
// as 12 pixels were no faster, and need more pointers than there are registers for them.
#include <immintrin.h>

#include "microkernel.h"

extern const microkernels microkernels_avx512_narrow;

#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma")))
#define LANES 16
#define VECTORS 2
#define MR 8
#define NARROW &microkernels_avx512_narrow
#define NAME microkernels_avx512
#define ROOT(v) _mm512_sqrt_ps(v)
#define LOWER(limit, v) _mm512_min_ps(limit, v)
#define UPPER(limit, v) _mm512_max_ps(limit, v)
#define LABEL "AVX-512"
#include "loops.h"
