// Intel's matrix instructions (AMX): eight tiles of 16 rows x 64 bytes, tmm0 to tmm7, as a thread's own state. Written
// as assembly: gcc 12's own _tile_loadconfig declares 8 of the 64 bytes that it reads, so that the rest may never be
// stored, and this way the file needs no compiler flag that older compilers lack.
//
// With CODEGEN2_AMX_EMULATED they are plain functions instead, after the pseudo-code of Intel's manual (Software
// Developer's Manual, volume 2, TILELOADD and TDP*): a machine without the instructions can then test what uses them; with
// CODEGEN2_AMX_EMULATED=2 one without AVX-512, too (simd_emulated.h).
#pragma once
#include <cstdint>
#if defined(CODEGEN2_AMX_EMULATED)
#include <cmath>
#include <cstdlib>
#include <cstring>
#include "half.h"
#endif

namespace {

constexpr int kTileRows = 16, kTileBytes = 64;  // of every tile
constexpr int kTileSize = kTileRows * kTileBytes;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_a_row[16] = {kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes, kTileBytes};
    uint8_t rows[16] = {kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows, kTileRows};
};
static_assert(sizeof(TileConfig) == 64);

#if !defined(CODEGEN2_AMX_EMULATED)

// Every use of the tiles lies between these two. What another library left in them is overwritten, and a thread that
// sleeps afterwards has no 8 KiB of tiles to be saved.
inline void tiles_begin() {
    const TileConfig config;
    asm volatile("ldtilecfg %0" : : "m"(config));
}
inline void tiles_end() { asm volatile("tilerelease" : : : "memory"); }

template <int T> inline void tile_zero() { asm volatile("tilezero %%tmm%c0" : : "i"(T)); }
template <int T> inline void tile_load(const void* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
template <int T> inline void tile_store(void* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride), "i"(T) : "memory");
}
// C[m][n] (int32) += sum over k of A[m][k] (int8) * B[k / 4][n][k % 4] (uint8), 64 k
template <int C, int A, int B> inline void tile_dot_int8() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// C[m][n] (float32) += sum over k of A[m][k] * B[k / 2][n][k % 2] (both bfloat16), 32 k
template <int C, int A, int B> inline void tile_dot_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#else

struct Tiles8 {
    uint8_t tile[8][kTileSize];
    bool configured;
};
thread_local Tiles8 emulated;

inline uint8_t* emulated_tile(int t) {
    if (!emulated.configured) std::abort();  // the processor would find the instruction invalid
    return emulated.tile[t];
}

inline void tiles_begin() {
    std::memset(&emulated, 0, sizeof emulated);
    emulated.configured = true;
}
inline void tiles_end() { emulated.configured = false; }

template <int T> inline void tile_zero() { std::memset(emulated_tile(T), 0, kTileSize); }
template <int T> inline void tile_load(const void* p, int64_t stride) {
    uint8_t* tile = emulated_tile(T);
    for (int r = 0; r < kTileRows; r++) std::memcpy(tile + r * kTileBytes, static_cast<const uint8_t*>(p) + r * stride, kTileBytes);
}
template <int T> inline void tile_store(void* p, int64_t stride) {
    const uint8_t* tile = emulated_tile(T);
    for (int r = 0; r < kTileRows; r++) std::memcpy(static_cast<uint8_t*>(p) + r * stride, tile + r * kTileBytes, kTileBytes);
}

template <int C, int A, int B> inline void tile_dot_int8() {
    static_assert(C != A && C != B && A != B);  // invalid
    const uint8_t *a = emulated_tile(A), *b = emulated_tile(B);
    int32_t c[16][16];
    std::memcpy(c, emulated_tile(C), sizeof c);
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 16; n++) {
                int32_t dot = 0;
                for (int t = 0; t < 4; t++) dot += static_cast<int8_t>(a[m * 64 + k * 4 + t]) * int32_t{b[k * 64 + n * 4 + t]};
                c[m][n] = static_cast<int32_t>(static_cast<uint32_t>(c[m][n]) + static_cast<uint32_t>(dot));
            }
    std::memcpy(emulated_tile(C), c, sizeof c);
}

inline float no_subnormal(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
inline void bfloat16_of_tile(int t, float (&out)[16][32]) {
    uint16_t halves[16][32];
    std::memcpy(halves, emulated_tile(t), sizeof halves);
    for (int r = 0; r < 16; r++)
        for (int i = 0; i < 32; i++) out[r][i] = no_subnormal(float_of(static_cast<uint32_t>(halves[r][i]) << 16));
}

// Even and odd k add up apart, by fused multiply-add from zero, and join before they reach C; subnormals are zeros.
template <int C, int A, int B> inline void tile_dot_bfloat16() {
    static_assert(C != A && C != B && A != B);
    float a[16][32], b[16][32], c[16][16];
    bfloat16_of_tile(A, a);
    bfloat16_of_tile(B, b);
    std::memcpy(c, emulated_tile(C), sizeof c);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float even = 0.0f, odd = 0.0f;
            for (int k = 0; k < 16; k++) {
                even = no_subnormal(std::fma(a[m][2 * k], b[k][2 * n], even));
                odd = no_subnormal(std::fma(a[m][2 * k + 1], b[k][2 * n + 1], odd));
            }
            c[m][n] = no_subnormal(no_subnormal(c[m][n]) + no_subnormal(even + odd));
        }
    std::memcpy(emulated_tile(C), c, sizeof c);
}

#endif

}  // namespace
