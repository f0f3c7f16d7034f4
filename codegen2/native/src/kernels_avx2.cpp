#if defined(__x86_64__)
#include "simd_avx2.h"
#include "kernels_impl.h"

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = table("avx2");
#endif
