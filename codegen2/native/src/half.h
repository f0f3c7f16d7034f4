// float16 and bfloat16 one value at a time, for machines or places without the instruction.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

inline uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}

inline float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

[[maybe_unused]] inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 31) return float_of(sign | 0x7F800000u | mantissa << 13);
    if (exponent == 0) {
        const float small = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -small : small;
    }
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

// Round to nearest, ties to even, as the hardware does.
[[maybe_unused]] inline uint16_t float_to_half(float x) {
    const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000, a = u & 0x7FFFFFFF;
    if (a > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
    if (a >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // 65520 and above: infinity
    if (a < 0x38800000) {                                              // below 2^-14: subnormal
        // Adding 0.5 puts the 10 bits that are kept at the end of the float's own mantissa, rounded by the addition.
        const uint32_t shifted = bits_of(float_of(a) + 0.5f) - bits_of(0.5f);
        return static_cast<uint16_t>(sign | shifted);
    }
    const uint32_t rounded = a + 0xFFF + ((a >> 13) & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

[[maybe_unused]] inline uint16_t float_to_bfloat16(float x) {
    const uint32_t u = bits_of(x);
    if ((u & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(u >> 16 | 0x40);
    return static_cast<uint16_t>((u + 0x7FFF + ((u >> 16) & 1)) >> 16);
}

}  // namespace
