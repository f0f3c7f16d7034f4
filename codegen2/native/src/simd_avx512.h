// 16 lanes in one AVX-512 register. The names are those of simd_scalar.h, which says what each does.
#pragma once
#include <immintrin.h>
#include <cstdint>

namespace {

using F = __m512;
using I = __m512i;
constexpr int kTile = 12;  // tokens side by side: 12 integer and 12 float sums, 1 to 4 registers of weights
constexpr int kStreams[] = {0, 4, 4, 2, 2, 2, 2};  // panels side by side for 1 to 6 tokens

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float largest(F a) { return _mm512_reduce_max_ps(a); }

inline I load_bytes(const void* p) { return _mm512_loadu_si512(p); }
inline I set1(int32_t x) { return _mm512_set1_epi32(x); }
inline I add(I a, I b) { return _mm512_add_epi32(a, b); }
inline int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }
template <int N> inline I shift_left(I a) { return _mm512_slli_epi32(a, N); }
template <int N> inline I shift_right_signed(I a) { return _mm512_srai_epi32(a, N); }
inline I low_nibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
inline I high_nibbles(I a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
inline I high_halves(I a) { return _mm512_and_si512(a, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))); }
inline I exclusive_or(I a, I b) { return _mm512_xor_si512(a, b); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline I round_to_int(F a) { return _mm512_cvtps_epi32(a); }
inline F as_float(I a) { return _mm512_castsi512_ps(a); }

inline I start8(int32_t activations) { return set1(static_cast<int32_t>(-128u * static_cast<uint32_t>(activations))); }
inline I dot8(I sums, I weights, I activations) { return _mm512_dpbusd_epi32(sums, weights, activations); }
inline I start4(int32_t activations) { return set1(static_cast<int32_t>(-8u * static_cast<uint32_t>(activations))); }
inline I dot4(I sums, I weights, I activations) { return _mm512_dpbusd_epi32(sums, weights, activations); }

inline F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void store_half(uint16_t* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_bytes(int8_t* p, I x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x)); }
inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
