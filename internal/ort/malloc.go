package ort

/*
#include <stdlib.h>
#ifdef __linux__
#include <malloc.h>
#endif

// Where the C library is not glibc nothing is set.
static void keep_less(int arenas, int mapped) {
#if defined(__GLIBC__)
	if (getenv("MALLOC_ARENA_MAX") == NULL) mallopt(M_ARENA_MAX, arenas);
	if (getenv("MALLOC_MMAP_THRESHOLD_") == NULL) mallopt(M_MMAP_THRESHOLD, mapped);
#endif
}
*/
import "C"

// keepLessMemory has the C library give back what sessions took. Models come and
// go, each on another thread: by itself glibc keeps a heap for each thread, up to
// eight for each processor, and puts large blocks into them once some were given
// back, where they leave holes. Tensors of a network are larger than mapped bytes,
// what ONNX Runtime takes again and again comes from its own arena.
func keepLessMemory() {
	const (
		arenas = 2
		mapped = 256 << 10
	)
	C.keep_less(arenas, mapped)
}
