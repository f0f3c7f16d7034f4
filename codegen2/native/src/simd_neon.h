// 16 lanes in four NEON registers, with the dot product and half-precision conversions of Armv8.2. The names are those of
// simd_scalar.h, which says what each does.
#pragma once
#include <arm_neon.h>
#include <cstdint>

namespace {

struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
constexpr int kTile = 3;  // of 32 registers, 12 hold integer and 12 float sums
constexpr int kStreams[] = {0, 2, 1, 1};

#define CG2_F(expression) F r; for (int i = 0; i < 4; i++) r.v[i] = expression; return r
#define CG2_I(expression) I r; for (int i = 0; i < 4; i++) r.v[i] = expression; return r
inline F load(const float* p) { CG2_F(vld1q_f32(p + 4 * i)); }
inline void store(float* p, const F& x) { for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]); }
inline F set1(float x) { CG2_F(vdupq_n_f32(x)); }
inline F fma(const F& a, const F& b, const F& c) { CG2_F(vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
inline F add(const F& a, const F& b) { CG2_F(vaddq_f32(a.v[i], b.v[i])); }
inline F sub(const F& a, const F& b) { CG2_F(vsubq_f32(a.v[i], b.v[i])); }
inline F mul(const F& a, const F& b) { CG2_F(vmulq_f32(a.v[i], b.v[i])); }
inline F div(const F& a, const F& b) { CG2_F(vdivq_f32(a.v[i], b.v[i])); }
inline F max(const F& a, const F& b) { CG2_F(vmaxq_f32(a.v[i], b.v[i])); }
inline F min(const F& a, const F& b) { CG2_F(vminq_f32(a.v[i], b.v[i])); }
inline F abs(const F& a) { CG2_F(vabsq_f32(a.v[i])); }
inline float sum(const F& a) {
    const float32x4_t q = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    return (vgetq_lane_f32(q, 0) + vgetq_lane_f32(q, 2)) + (vgetq_lane_f32(q, 1) + vgetq_lane_f32(q, 3));
}
inline float largest(const F& a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[2]), vmaxq_f32(a.v[1], a.v[3]))); }

inline I load_bytes(const void* p) { CG2_I(vld1q_s32(static_cast<const int32_t*>(p) + 4 * i)); }
inline I set1(int32_t x) { CG2_I(vdupq_n_s32(x)); }
inline I add(const I& a, const I& b) { CG2_I(vaddq_s32(a.v[i], b.v[i])); }
inline int32_t sum(const I& a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
template <int N> inline I shift_left(const I& a) { CG2_I(vshlq_n_s32(a.v[i], N)); }
template <int N> inline I shift_right_signed(const I& a) { CG2_I(vshrq_n_s32(a.v[i], N)); }
inline I low_nibbles(const I& a) { CG2_I(vandq_s32(a.v[i], vdupq_n_s32(0x0F0F0F0F))); }
inline I high_nibbles(const I& a) {
    CG2_I(vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a.v[i]), 4)));
}
inline I high_halves(const I& a) { CG2_I(vandq_s32(a.v[i], vdupq_n_s32(static_cast<int32_t>(0xFFFF0000u)))); }
inline I exclusive_or(const I& a, const I& b) { CG2_I(veorq_s32(a.v[i], b.v[i])); }
inline F to_float(const I& a) { CG2_F(vcvtq_f32_s32(a.v[i])); }
inline I round_to_int(const F& a) { CG2_I(vcvtnq_s32_f32(a.v[i])); }
inline F as_float(const I& a) { CG2_F(vreinterpretq_f32_s32(a.v[i])); }

inline I start8(int32_t) { return set1(0); }
inline I start4(int32_t activations) { return set1(static_cast<int32_t>(-8u * static_cast<uint32_t>(activations))); }
inline I dot8(const I& s, const I& w, const I& x) {
    CG2_I(vdotq_s32(s.v[i], veorq_s8(vreinterpretq_s8_s32(w.v[i]), vdupq_n_s8(-128)), vreinterpretq_s8_s32(x.v[i])));
}
inline I dot4(const I& s, const I& w, const I& x) {
    CG2_I(vdotq_s32(s.v[i], vreinterpretq_s8_s32(w.v[i]), vreinterpretq_s8_s32(x.v[i])));
}

inline F load_half(const uint16_t* p) { CG2_F(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)))); }
inline void store_half(uint16_t* p, const F& x) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
inline void store_bytes(int8_t* p, const I& x) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }
#undef CG2_F
#undef CG2_I

}  // namespace
