#include "simd_scalar.h"
#include "kernels_impl.h"

extern const Kernels kernels_scalar;
const Kernels kernels_scalar = table("scalar");
