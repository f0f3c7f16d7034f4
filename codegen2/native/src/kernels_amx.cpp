// What AVX-512 has, and prompts on tiles. Linux alone gives a process the tiles in the way dispatch.cpp asks.
#if defined(__x86_64__) && defined(__linux__)
#if CODEGEN2_AMX_EMULATED + 0 == 2
#include "simd_emulated.h"
#else
#include "simd_avx512.h"
#endif
#include "kernels_impl.h"
#include "tiles_linear.h"
#include "tiles_attend.h"

namespace {

constexpr Tiles on_tiles = {put_on_tiles, linear_on_tiles, attend_on_tiles};

constexpr Kernels with_tiles() {
    Kernels all = table("amx");
    all.tiles = &on_tiles;
    return all;
}

}  // namespace

extern const Kernels kernels_amx;
const Kernels kernels_amx = with_tiles();
#endif
