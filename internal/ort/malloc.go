package ort

/*
#include <stdlib.h>
#ifdef __linux__
#include <malloc.h>
#endif

// keep_less sets nothing if the C library is not glibc.
static void keep_less(int arenas, int mapped) {
#if defined(__GLIBC__)
	if (getenv("MALLOC_ARENA_MAX") == NULL) mallopt(M_ARENA_MAX, arenas);
	if (getenv("MALLOC_MMAP_THRESHOLD_") == NULL) mallopt(M_MMAP_THRESHOLD, mapped);
#endif
}
*/
import "C"

// keepLessMemory configures glibc to return the memory of closed sessions to the system.
// By default glibc has a heap for each thread, up to eight per processor, and raises
// the threshold for mmap once a large block was freed. Models are loaded on different
// threads, so large blocks would fragment all heaps. A network's tensors are larger
// than the mapped bytes set here, and ONNX Runtime serves frequent allocations from
// its own arena.
func keepLessMemory() {
	const (
		arenas = 2
		mapped = 256 << 10
	)
	C.keep_less(arenas, mapped)
}
