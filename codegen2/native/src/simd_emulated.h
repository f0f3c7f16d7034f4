// What tiles_*.h use of AVX-512, as functions over AVX2's 16 lanes: with CODEGEN2_AMX_EMULATED=2 a machine that has
// neither AVX-512 nor tiles runs them. For tests; Intel's intrinsics guide says what each does. These functions hide the
// compiler's own of the same name, which take other types.
#pragma once
#include <cmath>
#include <cstring>
#include "half.h"
#include "simd_avx2.h"

namespace {

using __m512i = I;

template <class T> struct Lanes { T v[64 / sizeof(T)]; };
template <class T, class X> inline Lanes<T> lanes(const X& x) {
    Lanes<T> r;
    static_assert(sizeof r == sizeof x);
    std::memcpy(&r, &x, sizeof r);
    return r;
}
template <class X, class T, class Op> inline X make(Op op) {
    Lanes<T> r;
    for (int i = 0; i < static_cast<int>(64 / sizeof(T)); i++) r.v[i] = static_cast<T>(op(i));
    X x;
    std::memcpy(&x, &r, sizeof x);
    return x;
}

inline I _mm512_set1_epi16(int x) { return make<I, int16_t>([&](int) { return x; }); }
inline I _mm512_set1_epi64(int64_t x) { return make<I, int64_t>([&](int) { return x; }); }
template <class... X> inline I _mm512_set_epi32(X... x) {  // the last lane first
    const int32_t all[] = {static_cast<int32_t>(x)...};
    return make<I, int32_t>([&](int i) { return all[15 - i]; });
}
template <class... X> inline I _mm512_set_epi16(X... x) {
    const int16_t all[] = {static_cast<int16_t>(x)...};
    return make<I, int16_t>([&](int i) { return all[31 - i]; });
}

template <class T, class Op> inline I pairwise(const I& a, const I& b, Op op) {
    const auto x = lanes<T>(a), y = lanes<T>(b);
    return make<I, T>([&](int i) { return op(x.v[i], y.v[i]); });
}
inline I _mm512_and_si512(I a, I b) { return pairwise<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x & y; }); }
inline I _mm512_or_si512(I a, I b) { return pairwise<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x | y; }); }
inline I _mm512_xor_si512(I a, I b) { return pairwise<uint32_t>(a, b, [](uint32_t x, uint32_t y) { return x ^ y; }); }
inline I _mm512_sub_epi16(I a, I b) { return pairwise<int16_t>(a, b, [](int x, int y) { return x - y; }); }
inline I _mm512_mulhrs_epi16(I a, I b) { return pairwise<int16_t>(a, b, [](int x, int y) { return (x * y + (1 << 14)) >> 15; }); }
inline I _mm512_mullo_epi32(I a, I b) { return pairwise<int32_t>(a, b, [](int32_t x, int32_t y) { return x * y; }); }
inline I _mm512_slli_epi32(I a, int n) { return pairwise<uint32_t>(a, a, [&](uint32_t x, uint32_t) { return x << n; }); }
inline I _mm512_slli_epi16(I a, int n) { return pairwise<uint16_t>(a, a, [&](uint32_t x, uint32_t) { return x << n; }); }
inline I _mm512_srli_epi16(I a, int n) { return pairwise<uint16_t>(a, a, [&](uint32_t x, uint32_t) { return x >> n; }); }

// Lanes of `b` where the mask has a bit, else those of `a`.
template <class T, class X> inline X chosen(const X& a, uint64_t mask, const X& b) {
    const auto x = lanes<T>(a), y = lanes<T>(b);
    return make<X, T>([&](int i) { return mask >> i & 1 ? y.v[i] : x.v[i]; });
}
inline I _mm512_mask_mov_epi8(I a, uint64_t mask, I b) { return chosen<int8_t>(a, mask, b); }
inline F _mm512_mask_mov_ps(F a, uint32_t mask, F b) { return chosen<float>(a, mask, b); }
inline F _mm512_maskz_mov_ps(uint32_t mask, F b) { return chosen<float>(set1(0.0f), mask, b); }
inline F _mm512_maskz_div_ps(uint32_t mask, F a, F b) { return chosen<float>(set1(0.0f), mask, div(a, b)); }
inline F _mm512_maskz_loadu_ps(uint32_t mask, const float* p) {
    return make<F, float>([&](int i) { return mask >> i & 1 ? p[i] : 0.0f; });
}
inline __mmask16 _mm512_cmp_ps_mask(F a, F b, int) {  // greater than, the one comparison that is used
    const auto x = lanes<float>(a), y = lanes<float>(b);
    unsigned mask = 0;
    for (int i = 0; i < 16; i++) mask |= (x.v[i] > y.v[i] ? 1u : 0u) << i;
    return static_cast<__mmask16>(mask);
}

inline F _mm512_permutexvar_ps(I index, F a) {
    const auto at = lanes<int32_t>(index);
    const auto x = lanes<float>(a);
    return make<F, float>([&](int i) { return x.v[at.v[i] & 15]; });
}
inline I _mm512_permutexvar_epi16(I index, I a) {
    const auto at = lanes<int16_t>(index), x = lanes<int16_t>(a);
    return make<I, int16_t>([&](int i) { return x.v[at.v[i] & 31]; });
}
inline F _mm512_permute_ps(F a, int) {  // 0xB1: the two of each pair change places
    const auto x = lanes<float>(a);
    return make<F, float>([&](int i) { return x.v[i ^ 1]; });
}
inline F _mm512_mask_i32gather_ps(F a, uint32_t mask, I index, const float* p, int) {
    const auto x = lanes<float>(a);
    const auto at = lanes<int32_t>(index);
    return make<F, float>([&](int i) { return mask >> i & 1 ? p[at.v[i]] : x.v[i]; });
}

inline I _mm512_castps_si512(F a) { return make<I, float>([x = lanes<float>(a)](int i) { return x.v[i]; }); }
inline float _mm512_cvtss_f32(F a) { return lanes<float>(a).v[0]; }
inline __m256i _mm512_cvtps_ph(F a, int) {
    return _mm256_set_m128i(_mm256_cvtps_ph(a.b, _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(a.a, _MM_FROUND_TO_NEAREST_INT));
}
inline void _mm256_mask_storeu_epi16(void* p, uint32_t mask, __m256i a) {
    uint16_t v[16];
    std::memcpy(v, &a, sizeof v);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) std::memcpy(static_cast<uint16_t*>(p) + i, v + i, 2);
}
inline void _mm512_stream_ps(float* p, F a) { store(p, a); }
inline void _mm512_store_si512(void* p, I a) { std::memcpy(p, &a, sizeof a); }

// bfloat16 to nearest even, subnormals as zeros, of 32 values in order: vcvtne2ps2bf16.
inline uint16_t bfloat16_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if (std::isnan(x)) return static_cast<uint16_t>(bits >> 16 | 0x40);
    if (!(bits & 0x7F800000)) return static_cast<uint16_t>(bits >> 16 & 0x8000);
    return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline I to_bfloat16(F low, F high) {
    const auto x = lanes<float>(low), y = lanes<float>(high);
    return make<I, uint16_t>([&](int i) { return bfloat16_of(i < 16 ? x.v[i] : y.v[i - 16]); });
}

}  // namespace
