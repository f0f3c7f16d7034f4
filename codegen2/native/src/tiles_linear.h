// Linear layers of prompts, on tiles (tiles.h), with AVX-512 around them. Included after kernels_impl.h.
//
// 32 tokens x 32 rows of weights at a time, which are four tiles of sums, over a span of 512 columns before the sums are
// scaled and added up in float. Why a span and not the 32 columns that share a scale elsewhere: a tile multiplies 64
// columns at once, so such scales would take the sums out twice a multiplication, and a tenth of the speed would be left.
// Why not one scale a token: one large channel, which these models have, would leave few steps to all others; so only the
// 511 beside it feel it.
//
// int8 weights lie in their panels as the tiles want them. int4 weights become int8 span by span, with one scale a row and
// span in place of sixteen: half a percent of error beside the seven that four bits have cost already. Keeping the groups
// exact would take the sums out every 32 columns.
//
// The sums of a span are exact integers, and spans are added in one order: neither threads, nor the tokens beside one, nor
// how work is cut change a bit.
#pragma once
#include <cstdint>
#include "tiles.h"

namespace {

constexpr int kPairTokens = 2 * kTileRows, kPairRows = 2 * kPanel;
constexpr int kSteps = kSpan / kTileBytes;            // tiles side by side in a span of bytes
constexpr int64_t kSpanBytes = kSpan * int64_t{kPanel};  // of a panel of int8

struct UseTiles {
    UseTiles() { tiles_begin(); }
    ~UseTiles() { tiles_end(); }
};

template <bool FLOAT, int C, int A, int B> inline void tile_dot() {
    if constexpr (FLOAT) tile_dot_bfloat16<C, A, B>();
    else tile_dot_int8<C, A, B>();
}

// TA x TB tiles of sums of `steps` tiles of each operand, which lie one after the other; A's second 16 tokens begin
// a_next bytes behind the first. The sums go to `out`, ld bytes from token to token. between(step) is called while the
// tiles multiply: they take 64 cycles a step, and half of the ports that read memory are idle.
template <bool FLOAT, int TA, int TB, class Between>
inline void multiply(const void* a, int64_t a_next, const uint8_t* const* b, int steps, void* out, int64_t ld, Between&& between) {
    const auto* x = static_cast<const uint8_t*>(a);
    auto* y = static_cast<uint8_t*>(out);
    tile_zero<0>();
    if constexpr (TB > 1) tile_zero<1>();
    if constexpr (TA > 1) tile_zero<2>();
    if constexpr (TA > 1 && TB > 1) tile_zero<3>();
    for (int step = 0; step < steps; step++) {
        const int64_t at = int64_t{step} * kTileSize;
        tile_load<4>(x + at, kTileBytes);
        tile_load<6>(b[0] + at, kTileBytes);
        tile_dot<FLOAT, 0, 4, 6>();
        if constexpr (TB > 1) {
            tile_load<7>(b[1] + at, kTileBytes);
            tile_dot<FLOAT, 1, 4, 7>();
        }
        if constexpr (TA > 1) {
            tile_load<5>(x + a_next + at, kTileBytes);
            tile_dot<FLOAT, 2, 5, 6>();
        }
        if constexpr (TA > 1 && TB > 1) tile_dot<FLOAT, 3, 5, 7>();
        between(step);
    }
    tile_store<0>(y, ld);
    if constexpr (TB > 1) tile_store<1>(y + kTileBytes, ld);
    if constexpr (TA > 1) tile_store<2>(y + kTileRows * ld, ld);
    if constexpr (TA > 1 && TB > 1) tile_store<3>(y + kTileRows * ld + kTileBytes, ld);
}

// Columns from..to (whole spans) of one token, through gelu first if it says so; those from `valid` (a multiple of 16) on
// are zeros. The row itself is only read: written back, it would go through memory once more.
void put_on_tiles(const float* row, int64_t from, int64_t to, int64_t valid, bool through_gelu, const Acts& x, int token) {
    const int64_t mp = round_up(x.m, kTileRows);
    alignas(64) float v[kSpan];
    for (int64_t begin = from; begin < to; begin += kSpan) {
        const int64_t width = x.kp - begin < kSpan ? x.kp - begin : kSpan;
        F most = set1(0.0f);
        for (int64_t c = 0; c < width; c += 16) {
            F u = begin + c < valid ? load(row + begin + c) : set1(0.0f);
            if (through_gelu) u = gelu_of(u);
            store(v + c, u);
            most = max(most, abs(u));
        }
        const float widest = largest(most);
        const F inverse = set1(widest > 0.0f ? 127.0f / widest : 0.0f);
        I sums = set1(0);
        int8_t* q = x.q + begin * mp + token / kTileRows * kTileRows * width + token % kTileRows * kTileBytes;
        for (int64_t c = 0; c < width; c += 16) {
            const I u = round_to_int(mul(load(v + c), inverse));
            sums = add(sums, u);
            store_bytes(q + c / kTileBytes * kTileSize + c % kTileBytes, u);
        }
        x.scale[begin / kSpan * mp + token] = widest / 127.0f;
        x.sum[begin / kSpan * mp + token] = sum(sums);
    }
}

// A panel's int4 span as int8: value + 128 as in a panel of int8, and its scale a row. A weight is (q - 8) s with its
// group's s; of the span's widest s, 8 s becomes 127, which makes the factor of every group at most 15.875, or 32512 of
// the 32768ths that the instruction multiplies 16 (q - 8) by, rounded to nearest, halves up.
// ahead: bytes from here to what is read next and fetched meanwhile, 0 for nothing.
inline F widen(const uint8_t* from, int blocks, uint8_t* to, int64_t ahead) {
    F widest = set1(0.0f), poison = set1(0.0f);
    for (int g = 0; g < 2 * blocks; g++) {
        const F s = load_half(reinterpret_cast<const uint16_t*>(from + g / 2 * kInt4Block + g % 2 * 32));
        widest = max(widest, abs(s));
        poison = fma(s, set1(0.0f), poison);  // a damaged scale, not a number, shall be seen in the result
    }
    const __m512i low4 = _mm512_set1_epi16(0x00F0), eight = _mm512_set1_epi16(128), flip = set1(static_cast<int32_t>(0x80808080));
    const auto nonzero = _mm512_cmp_ps_mask(widest, set1(0.0f), _CMP_GT_OQ);
    const F inverse = _mm512_maskz_div_ps(nonzero, set1(32512.0f), widest);
    for (int g = 0; g < 2 * blocks; g++) {
        const uint8_t* block = from + g / 2 * kInt4Block;
        if (ahead && g % 2 == 0) prefetch(block + ahead);
        const I one = round_to_int(mul(load_half(reinterpret_cast<const uint16_t*>(block + g % 2 * 32)), inverse));
        const I factor = _mm512_or_si512(_mm512_slli_epi32(one, 16), _mm512_and_si512(one, set1(0xFFFF)));
        const auto scaled = [&](I sixteen_q) { return _mm512_mulhrs_epi16(_mm512_sub_epi16(sixteen_q, eight), factor); };
        const auto joined = [&](I even, I odd) {  // of the 4 values of a row, 0 and 2, then 1 and 3
            return _mm512_xor_si512(_mm512_mask_mov_epi8(_mm512_slli_epi16(odd, 8), 0x5555555555555555, even), flip);
        };
        for (int j = 0; j < 4; j++) {
            const uint8_t* at = block + 64 + (g % 2 * 4 + j) * 64;
            if (ahead) prefetch(at + ahead);
            const I v = load_bytes(at);
            const I even_low = _mm512_and_si512(_mm512_slli_epi16(v, 4), low4), odd_low = _mm512_and_si512(_mm512_srli_epi16(v, 4), low4);
            const I even_high = _mm512_and_si512(v, low4), odd_high = _mm512_and_si512(_mm512_srli_epi16(v, 8), low4);
            _mm512_store_si512(to, joined(scaled(even_low), scaled(odd_low)));
            _mm512_store_si512(to + 64, joined(scaled(even_high), scaled(odd_high)));
            to += 128;
        }
    }
    return add(mul(widest, set1(8.0f / 127.0f)), poison);
}

// What the sums of 32 rows of weights and one span mean: where they are added up, and where they go in the end.
struct Span {
    F weight[2];     // int4: scale of the rows in this span; int8: in all of the row, used at the end
    F bias[2];
    const float* scale;  // of tokens in this span
    const int32_t* sum;
    float* partial;  // (M, 32)
    float* y;        // null before the last span
    int64_t ld;
    bool first, add, stream;
};

// Scale the sums (32 tokens, 32) of tokens token + from..to, take off what the weights' 128 added, and add them up.
template <int KIND, int TB> inline void fold(const Span& s, const int32_t* sums, int token, int from, int to) {
    for (int r = from; r < to; r++) {
        const F scale = set1(s.scale[token + r]);
        const I offset = set1(static_cast<int32_t>(-128u * static_cast<uint32_t>(s.sum[token + r])));
        for (int p = 0; p < TB; p++) {
            float* partial = s.partial + int64_t{token + r} * kPairRows + p * kPanel;
            const F f = to_float(add(load_bytes(sums + r * kPairRows + p * kPanel), offset));
            F v = fma(f, KIND == kInt4 ? mul(s.weight[p], scale) : scale, s.first ? set1(0.0f) : load(partial));
            if (!s.y) {
                store(partial, v);
                continue;
            }
            if constexpr (KIND == kInt8) v = mul(v, s.weight[p]);
            v = add(v, s.bias[p]);
            float* y = s.y + (token + r) * s.ld + p * kPanel;
            if (s.stream) _mm512_stream_ps(y, v);
            else store(y, s.add ? add(load(y), v) : v);
        }
    }
}

// TB panels of one span for all tokens. `ahead` are the bytes that are read next: a share of them is fetched each time. For
// up to 32 tokens, a few typed ones say, reading weights is most of the time: then they are fetched step by step while the
// tiles multiply (int4: while weights are widened), so that memory never waits.
template <int KIND, int TB>
void span_of_pair(const Span& s, const Acts& x, const int8_t* a, const uint8_t* const* b, int steps, const uint8_t* const* ahead,
                  int64_t ahead_bytes, int32_t* sums) {
    const int64_t a_next = int64_t{steps} * kTileSize;
    const int pairs = (x.m + kPairTokens - 1) / kPairTokens;
    const int64_t share = (ahead_bytes / 64 + pairs - 1) / pairs * 64;
    const int32_t* before = nullptr;
    for (int pair = 0; pair < pairs; pair++) {
        const int token = pair * kPairTokens;
        const auto fetch = [&](int64_t begin, int64_t end) {
            for (int p = 0; p < TB; p++)
                for (int64_t i = begin; ahead[p] && i < end && i < ahead_bytes; i += 64) prefetch(ahead[p] + i);
        };
        if (pairs > 1) fetch(pair * share, (pair + 1) * share);
        const auto between = [&](int step) {  // the last 32 tokens, which are whole, in 8 parts
            if (pairs == 1 && KIND == kInt8) fetch(int64_t{step} * kTileSize, int64_t{step + 1} * kTileSize);
            if (before) fold<KIND, TB>(s, before, token - kPairTokens, step * 4, step * 4 + 4);
        };
        int32_t* now = sums + pair % 2 * kPairTokens * kPairRows;
        const int8_t* from = a + token * int64_t{steps} * kTileBytes;
        if (x.m - token > kTileRows) multiply<false, 2, TB>(from, a_next, b, steps, now, kPairRows * 4, between);
        else multiply<false, 1, TB>(from, a_next, b, steps, now, kPairRows * 4, between);
        if (before && steps < kSteps) fold<KIND, TB>(s, before, token - kPairTokens, steps * 4, kPairTokens);
        before = now;
    }
    const int last = (pairs - 1) * kPairTokens;
    fold<KIND, TB>(s, before, last, 0, x.m - last);
}

// Panels from..to, in groups of kTilePairs pairs: while a group passes through a span, the span's activations stay in the
// second-level cache, whatever K is.
template <int KIND> void linear_spans(const View& w, int from, int to, const Acts& x, const Out& out, float* scratch) {
    const UseTiles use;
    const int64_t mp = round_up(x.m, kTileRows), bytes = static_cast<int64_t>(panel_bytes(KIND, w.kp));
    constexpr int64_t kBlockBytes = KIND == kInt8 ? int64_t{kBlock} * kPanel : static_cast<int64_t>(kInt4Block);
    auto* sums = reinterpret_cast<int32_t*>(scratch);
    auto* wide = reinterpret_cast<uint8_t*>(sums + 2 * kPairTokens * kPairRows);
    float* partial = reinterpret_cast<float*>(wide + 2 * kSpanBytes);
    const bool stream = !out.add && (reinterpret_cast<uintptr_t>(out.y) | static_cast<uintptr_t>(out.ld) * 4) % 64 == 0;
    for (int group = from; group < to; group += 2 * kTilePairs) {
        const int end = group + 2 * kTilePairs < to ? group + 2 * kTilePairs : to;
        for (int64_t begin = 0; begin < w.kp; begin += kSpan) {
            const int64_t width = w.kp - begin < kSpan ? w.kp - begin : kSpan;
            const int steps = static_cast<int>(width / kTileBytes);
            const bool last = begin + width == w.kp;
            for (int panel = group; panel < end; panel += 2) {
                const int n = end - panel < 2 ? 1 : 2;
                const int64_t row = int64_t{panel} * kPanel;
                Span s{{}, {}, x.scale + begin / kSpan * mp, x.sum + begin / kSpan * mp, partial + (panel - group) * kPanel * mp,
                       last ? out.y + row : nullptr, out.ld, begin == 0, out.add, stream};
                const uint8_t *b[2] = {}, *ahead[2] = {};
                const bool few = x.m <= kPairTokens;
                for (int p = 0; p < n; p++) {
                    const uint8_t* at = w.data + (panel + p) * bytes + begin / kBlock * kBlockBytes;
                    s.bias[p] = out.bias ? load(out.bias + row + p * kPanel) : set1(0.0f);
                    if (panel + 2 + p < end) ahead[p] = at + 2 * bytes;
                    else if (!last) ahead[p] = at - (panel - group) * bytes + kSpan / kBlock * kBlockBytes;
                    if constexpr (KIND == kInt8) {
                        s.weight[p] = load(w.scale + row + p * kPanel);
                        b[p] = at;
                    } else {
                        s.weight[p] = widen(at, steps, wide + p * kSpanBytes, few && ahead[p] ? ahead[p] - at : 0);
                        b[p] = wide + p * kSpanBytes;
                    }
                }
                const int8_t* a = x.q + begin * mp;
                if (n == 2) span_of_pair<KIND, 2>(s, x, a, b, steps, ahead, steps * kBlockBytes, sums);
                else span_of_pair<KIND, 1>(s, x, a, b, steps, ahead, steps * kBlockBytes, sums);
            }
        }
    }
    if (stream) _mm_sfence();  // such stores are in no order with the one that says that this work is done
}

void linear_on_tiles(const View& w, int from, int to, const Acts& x, const Out& out, float* scratch) {
    if (w.kind == kInt8) linear_spans<kInt8>(w, from, to, x, out, scratch);
    else linear_spans<kInt4>(w, from, to, x, out, scratch);
}

}  // namespace
