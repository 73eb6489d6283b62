// Processors with AVX2 and FMA: 16 registers of 8 numbers, of which a tile takes 12.
#include "microkernel.h"

#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define VECTORS 2
#define MR 6
#define NAME microkernels_avx2
#define LABEL "AVX2"
#include "loops.h"
