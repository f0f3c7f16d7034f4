#if defined(__aarch64__)
#include "simd_neon.h"
#include "kernels_impl.h"

extern const Kernels kernels_neon;
const Kernels kernels_neon = table("neon");
#endif
