// Attention of prompts, on tiles: queries, keys, weights and values as bfloat16, sums, scores and softmax as
// float32. Included after tiles_linear.h.
//
// Block of 256 keys by block, as attend_queries has them: the block's keys and values become tiles once, then all queries
// pass, 32 at a time, each with its own softmax kept up to date. Keys that a query does not see add an exact zero, so a
// query's result does not depend on which others are beside it.
#pragma once
#include <cstring>

namespace {

constexpr int kPair = kTileBytes / 2;                 // bfloat16 in a row of a tile
constexpr int kKeySteps = kKeyBlock / kPair;          // tiles of weights of a block of keys

// bfloat16 of 32 values, in order, or of two rows with a's and b's values in turn, as the second operand wants them. By
// assembly, since the flag for it would let the compiler use it elsewhere.
#if CODEGEN2_AMX_EMULATED + 0 != 2
inline I to_bfloat16(F low, F high) {
    I both;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
    return both;
}
#endif
inline I in_turn(F a, F b) {
    const I order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
                                     4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, to_bfloat16(a, b));
}
inline void store_tile_row(void* p, I x) { _mm512_store_si512(p, x); }
inline F first_lanes(F x, int n) { return n >= 16 ? x : _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << n) - 1), x); }

// What attend_on_tiles keeps in its scratch; n is the number of queries in whole pairs of tiles.
struct Room {
    uint8_t *queries;  // [n/16][steps] tiles of 16 queries x 32 channels
    uint8_t *keys;     // [16][steps] tiles of 32 channels x 16 keys
    uint8_t *values;   // [D/16][8] tiles of 32 keys x 16 channels
    uint8_t *weights;  // [2][8] tiles of 16 queries x 32 keys
    float *scores;     // [32][256]
    float *sums;       // [32][32]
    float *widest, *total;  // of each query
    float *turned;     // [16][D]
};

inline Room room(float* scratch, int n, int D) {
    const int64_t steps = (D + kPair - 1) / kPair;
    Room r{};
    auto* p = reinterpret_cast<uint8_t*>(scratch);
    const auto take = [&p](int64_t bytes) {
        uint8_t* at = p;
        p += round_up(bytes, 64);
        return at;
    };
    r.queries = take(n / kTileRows * steps * kTileSize);
    r.keys = take(kKeyBlock / kTileRows * steps * kTileSize);
    r.values = take(int64_t{D} / kTileRows * kKeySteps * kTileSize);
    r.weights = take(2 * kKeySteps * kTileSize);
    r.scores = reinterpret_cast<float*>(take(kPairTokens * kKeyBlock * 4));
    r.sums = reinterpret_cast<float*>(take(kPairTokens * 32 * 4));
    r.widest = reinterpret_cast<float*>(take(n * 4));
    r.total = reinterpret_cast<float*>(take(n * 4));
    r.turned = reinterpret_cast<float*>(take(16 * D * 4));
    return r;
}

// rotate, 8 pairs at a time.
inline void turn(const float* x, const Attend& a, int position, float factor, float* out) {
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    const __m512i minus = _mm512_set1_epi64(static_cast<int64_t>(0x80000000));  // of the first of each pair
    const int64_t at = static_cast<int64_t>(position) * a.half;
    for (int d = 0; d < a.head_dim; d += 16) {
        F v = load(x + d);
        if (const int pairs = a.half - d / 2; pairs > 0) {
            const auto some = static_cast<__mmask16>(pairs < 8 ? (1u << pairs) - 1 : 0xFF);
            const F cos = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(some, a.cos + at + d / 2));
            const F sin = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(some, a.sin + at + d / 2));
            const F other = as_float(exclusive_or(_mm512_castps_si512(_mm512_permute_ps(v, 0xB1)), minus));
            const auto turned = static_cast<__mmask16>(pairs < 8 ? (1u << 2 * pairs) - 1 : 0xFFFF);
            v = _mm512_mask_mov_ps(v, turned, add(mul(v, cos), mul(other, sin)));
        }
        store(out + d, mul(v, set1(factor)));
    }
}

// What write_keys_and_values does, 16 keys, which are a panel of the cache, at a time.
inline void write_panels(const Attend& a, const Room& r) {
    const int D = a.head_dim;
    const I rows = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), set1(static_cast<int32_t>(D)));
    const F most = set1(65504.0f), least = set1(-65504.0f);
    for (int i = 0, n; i < a.n; i += n) {
        const int position = a.first + i, lane = position % 16;
        n = a.n - i < 16 - lane ? a.n - i : 16 - lane;
        for (int t = 0; t < n; t++) {
            turn(a.k + (i + t) * a.ld, a, position + t, 1.0f, r.turned + t * D);
            store_as(static_cast<uint16_t*>(a.values) + static_cast<int64_t>(position + t) * D, a.v + (i + t) * a.ld, D);
        }
        const auto these = static_cast<__mmask16>((1u << n) - 1);
        uint16_t* panel = static_cast<uint16_t*>(a.keys) + static_cast<int64_t>(position / 16) * D * 16 + lane;
        for (int d = 0; d < D; d++) {
            const F column = _mm512_mask_i32gather_ps(set1(0.0f), these, rows, r.turned + d, 4);
            const __m256i halves = _mm512_cvtps_ph(max(min(column, most), least), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            _mm256_mask_storeu_epi16(panel + d * 16, these, halves);
        }
    }
}

inline void queries_to_tiles(const Attend& a, const Room& r, int n) {
    const int D = a.head_dim, steps = (D + kPair - 1) / kPair;
    std::memset(r.queries, 0, static_cast<size_t>(n) / kTileRows * steps * kTileSize);
    const float factor = 1.0f / __builtin_sqrtf(static_cast<float>(D));
    for (int i = 0; i < a.n; i++) {
        turn(a.q + i * a.ld, a, a.first + i, factor, r.turned);
        uint8_t* to = r.queries + int64_t{i} / kTileRows * steps * kTileSize + i % kTileRows * kTileBytes;
        for (int d = 0; d < D; d += kPair, to += kTileSize)
            store_tile_row(to, to_bfloat16(load(r.turned + d), d + 16 < D ? load(r.turned + d + 16) : set1(0.0f)));
    }
}

// Keys and values begin..begin + n of the cache; the rest of the last pair of panels are zeros.
inline void keys_to_tiles(const Attend& a, const Room& r, int begin, int n) {
    const int D = a.head_dim, steps = (D + kPair - 1) / kPair;
    const int panels = (n + 15) / 16, whole = (n + kPair - 1) / kPair;
    for (int panel = 0; panel < 2 * whole; panel++) {
        uint8_t* to = r.keys + int64_t{panel} * steps * kTileSize;
        if (panel >= panels || D % kPair) std::memset(to, 0, static_cast<size_t>(steps) * kTileSize);
        if (panel >= panels) continue;
        const uint16_t* from = static_cast<const uint16_t*>(a.keys) + (static_cast<int64_t>(begin) / 16 + panel) * D * 16;
        for (int d = 0; d < D; d += 2, to += kTileBytes) store_tile_row(to, in_turn(load_half(from + d * 16), load_half(from + d * 16 + 16)));
    }
    const auto value = [&](int key, int d) {
        return key < n ? load_half(static_cast<const uint16_t*>(a.values) + static_cast<int64_t>(begin + key) * D + d) : set1(0.0f);
    };
    for (int d = 0; d < D; d += 16) {
        uint8_t* to = r.values + int64_t{d} / 16 * kKeySteps * kTileSize;
        for (int key = 0; key < whole * kPair; key += 2, to += kTileBytes) store_tile_row(to, in_turn(value(key, d), value(key + 1, d)));
    }
}

// The softmax of a query that sees the first `seen` of a block's keys: weights to row `row` of the tiles of weights, and
// the factor that what came before is to be multiplied with.
inline float soften(const Room& r, int row, int seen, int keys, float& widest, float& total, bool begun) {
    float* s = r.scores + row * kKeyBlock;
    uint8_t* to = r.weights + row / kTileRows * kKeySteps * kTileSize + row % kTileRows * kTileBytes;
    float factor = 1.0f;
    if (seen > 0) {
        F w = set1(-INFINITY);
        for (int k = 0; k < seen; k += 16) {
            const F u = load(s + k);
            w = max(w, k + 16 <= seen ? u : _mm512_mask_mov_ps(set1(-INFINITY), static_cast<__mmask16>((1u << (seen - k)) - 1), u));
        }
        const float before = widest, now = largest(w);
        widest = now > before ? now : before;
        F sums = set1(0.0f);
        for (int k = 0; k < seen; k += 16) {
            const F u = first_lanes(exponential(sub(load(s + k), set1(widest))), seen - k);
            store(s + k, u);
            sums = add(sums, u);
        }
        if (begun) factor = _mm512_cvtss_f32(exponential(set1(before - widest)));
        total = total * factor + sum(sums);
    }
    for (int k = seen > 0 ? static_cast<int>(round_up(seen, 16)) : 0; k < keys; k += 16) store(s + k, set1(0.0f));
    for (int k = 0; k < keys; k += kPair, to += kTileSize) store_tile_row(to, to_bfloat16(load(s + k), load(s + k + 16)));
    return factor;
}

// Queries i..i + rows, at most 32, against the block of keys that begins at `begin`.
template <int TA> void attend_block(const Attend& a, const Room& r, int i, int rows, int begin, int n) {
    const int D = a.head_dim, steps = (D + kPair - 1) / kPair;
    const int most = a.first + i + rows - begin < n ? a.first + i + rows - begin : n;
    const int keys = static_cast<int>(round_up(most, kPair));
    const auto nothing = [](int) {};
    const uint8_t* queries = r.queries + int64_t{i} / kTileRows * steps * kTileSize;
    for (int key = 0; key < keys; key += kPair) {
        const uint8_t* at = r.keys + int64_t{key} / kTileRows * steps * kTileSize;
        const uint8_t* const b[2] = {at, at + int64_t{steps} * kTileSize};
        multiply<true, TA, 2>(queries, int64_t{steps} * kTileSize, b, steps, r.scores + key, kKeyBlock * 4, nothing);
    }
    float factor[kPairTokens];
    for (int row = 0; row < rows; row++) {
        const int sees = a.first + i + row + 1 - begin;
        factor[row] = soften(r, row, sees < most ? sees : most, keys, r.widest[i + row], r.total[i + row], begin > 0);
    }
    for (int d = 0; d < D; d += 32) {
        const int width = D - d < 32 ? D - d : 32;
        const uint8_t* at = r.values + int64_t{d} / 16 * kKeySteps * kTileSize;
        const uint8_t* const b[2] = {at, at + kKeySteps * kTileSize};
        if (width == 32) multiply<true, TA, 2>(r.weights, kKeySteps * kTileSize, b, keys / kPair, r.sums, 32 * 4, nothing);
        else multiply<true, TA, 1>(r.weights, kKeySteps * kTileSize, b, keys / kPair, r.sums, 32 * 4, nothing);
        for (int row = 0; row < rows; row++) {
            float* out = a.out + (i + row) * a.out_ld + d;
            for (int c = 0; c < width; c += 16) {
                const F now = load(r.sums + row * 32 + c);
                store(out + c, begin ? fma(load(out + c), set1(factor[row]), now) : now);
            }
        }
    }
}

void attend_on_tiles(const Attend& a, float* scratch) {
    const int n = static_cast<int>(round_up(a.n, kPairTokens)), end = a.first + a.n;
    const Room r = room(scratch, n, a.head_dim);
    write_panels(a, r);
    queries_to_tiles(a, r, n);
    for (int i = 0; i < a.n; i++) {
        r.widest[i] = -INFINITY;
        r.total[i] = 0.0f;
    }
    const UseTiles use;
    for (int begin = 0; begin < end; begin += kKeyBlock) {
        const int keys = end - begin < kKeyBlock ? end - begin : kKeyBlock;
        keys_to_tiles(a, r, begin, keys);
        for (int i = 0; i < a.n; i += kPairTokens) {
            const int rows = a.n - i < kPairTokens ? a.n - i : kPairTokens;
            if (a.first + i + rows <= begin) continue;  // they see nothing of it
            if (rows > kTileRows) attend_block<2>(a, r, i, rows, begin, keys);
            else attend_block<1>(a, r, i, rows, begin, keys);
        }
    }
    for (int i = 0; i < a.n; i++) {
        const F inverse = set1(1.0f / r.total[i]);
        float* out = a.out + i * a.out_ld;
        for (int d = 0; d < a.head_dim; d += 16) store(out + d, mul(load(out + d), inverse));
    }
}

}  // namespace
