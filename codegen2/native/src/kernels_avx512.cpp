#if defined(__x86_64__)
#include "simd_avx512.h"
#include "kernels_impl.h"

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = table("avx512vnni");
#endif
