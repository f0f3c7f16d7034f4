// 16 lanes in plain C++: what every other simd_*.h is held against, and what runs where no other fits.
// F is 16 floats, I is 64 bytes seen as 16 int32 or as 64 int8.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include "half.h"

namespace {

struct F { float v[16]; };
struct I { int32_t v[16]; };
constexpr int kTile = 2;  // tokens side by side in the inner loop
constexpr int kStreams[] = {0, 1, 1};  // panels side by side for 1, 2, ... tokens

template <class Op> inline F each(Op op) {
    F r;
    for (int i = 0; i < 16; i++) r.v[i] = op(i);
    return r;
}
template <class Op> inline I each_int(Op op) {
    I r;
    for (int i = 0; i < 16; i++) r.v[i] = op(i);
    return r;
}

inline F load(const float* p) { return each([&](int i) { return p[i]; }); }
inline void store(float* p, const F& x) { std::memcpy(p, x.v, sizeof x.v); }
inline F set1(float x) { return each([&](int) { return x; }); }
inline F fma(const F& a, const F& b, const F& c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline F add(const F& a, const F& b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline F sub(const F& a, const F& b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline F mul(const F& a, const F& b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline F div(const F& a, const F& b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline F max(const F& a, const F& b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline F min(const F& a, const F& b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline F abs(const F& a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
inline float sum(F a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
    return a.v[0];
}
inline float largest(F a) {
    for (int i = 1; i < 16; i++) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
    return a.v[0];
}

inline I load_bytes(const void* p) {
    I r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline I set1(int32_t x) { return each_int([&](int) { return x; }); }
inline int32_t wrap(int64_t x) { return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(x))); }
inline I add(const I& a, const I& b) { return each_int([&](int i) { return wrap(int64_t{a.v[i]} + b.v[i]); }); }
inline int32_t sum(const I& a) {
    int64_t s = 0;
    for (int i = 0; i < 16; i++) s += a.v[i];
    return wrap(s);
}
template <int N> inline I shift_left(const I& a) {
    return each_int([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N); });
}
template <int N> inline I shift_right_signed(const I& a) { return each_int([&](int i) { return a.v[i] >> N; }); }
inline I low_nibbles(const I& a) { return each_int([&](int i) { return a.v[i] & 0x0F0F0F0F; }); }  // of each byte
inline I high_nibbles(const I& a) { return each_int([&](int i) { return (a.v[i] >> 4) & 0x0F0F0F0F; }); }
inline I high_halves(const I& a) { return each_int([&](int i) { return static_cast<int32_t>(a.v[i] & 0xFFFF0000u); }); }
inline I exclusive_or(const I& a, const I& b) { return each_int([&](int i) { return a.v[i] ^ b.v[i]; }); }
inline F to_float(const I& a) { return each([&](int i) { return static_cast<float>(a.v[i]); }); }
inline I round_to_int(const F& a) {  // to nearest even; out of range and NaN give the lowest int, as the hardware does
    return each_int([&](int i) {
        const bool fits = a.v[i] >= -2147483648.0f && a.v[i] < 2147483648.0f;
        return fits ? static_cast<int32_t>(std::nearbyintf(a.v[i])) : INT32_MIN;
    });
}
inline F as_float(const I& a) {
    F r;
    std::memcpy(r.v, a.v, sizeof r.v);
    return r;
}

// Sums that dot8 and dot4 begin with, given the sum of the group's activations, so that the result is that of signed
// weights: where an instruction multiplies unsigned bytes, the offset is taken off here, once a group.
inline I start8(int32_t) { return set1(0); }
inline I start4(int32_t activations) { return set1(static_cast<int32_t>(-8u * static_cast<uint32_t>(activations))); }

// Add to each lane the dot product of its 4 weights (dot8: byte - 128, dot4: 0..15) and 4 signed activations.
inline I dot_bytes(const I& s, const I& w, const I& x, int32_t offset) {
    return each_int([&](int i) {
        uint8_t wb[4];
        int8_t xb[4];
        std::memcpy(wb, &w.v[i], 4);
        std::memcpy(xb, &x.v[i], 4);
        int64_t total = s.v[i];
        for (int t = 0; t < 4; t++) total += (int32_t{wb[t]} - offset) * xb[t];
        return wrap(total);
    });
}
inline I dot8(const I& s, const I& w, const I& x) { return dot_bytes(s, w, x, 128); }
inline I dot4(const I& s, const I& w, const I& x) { return dot_bytes(s, w, x, 0); }

inline F load_half(const uint16_t* p) { return each([&](int i) { return half_to_float(p[i]); }); }
inline void store_half(uint16_t* p, const F& x) {
    for (int i = 0; i < 16; i++) p[i] = float_to_half(x.v[i]);
}
inline void store_bytes(int8_t* p, const I& x) {  // clamped
    for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(x.v[i] < -128 ? -128 : x.v[i] > 127 ? 127 : x.v[i]);
}
inline void prefetch(const void*) {}

}  // namespace
