// Every kernel, written once over the 16-lane types F and I of a simd_*.h, which is included before this file. All names
// are local to the including file: two instruction sets must never share a function.
//
// Letters as in kernels.h; S panels side by side (streams of memory), M tokens of a tile.
#pragma once
#include <cmath>
#include "half.h"
#include "kernels.h"

namespace {

// Bytes that weights are fetched ahead of use: a single stream has to have as many under way as several have together.
constexpr int ahead_of(int streams) { return streams == 1 ? 4096 : 1024; }

constexpr int streams(int m) { return m < static_cast<int>(sizeof kStreams / sizeof *kStreams) ? kStreams[m] : 1; }

inline int32_t load_int(const int8_t* p) {
    int32_t x;
    __builtin_memcpy(&x, p, 4);
    return x;
}

template <int M, int S> inline void put_out(F (&sums)[S][M], int panel, int first, const Out& out) {
    for (int s = 0; s < S; s++) {
        const int64_t n = static_cast<int64_t>(panel + s) * kPanel;
        for (int m = 0; m < M; m++) {
            float* y = out.y + (first + m) * out.ld + n;
            F v = sums[s][m];
            if (out.bias) v = add(v, load(out.bias + n));
            store(y, out.add ? add(load(y), v) : v);
        }
    }
}

// Integer dot products a group of 32 columns, scaled and added up in float.
template <int KIND, int M, int S>
inline void tile_int(const View& w, int panel, const Acts& x, int first, const Out& out, int64_t ahead) {
    const size_t bytes = panel_bytes(KIND, w.kp);
    const uint8_t* p[S];
    for (int s = 0; s < S; s++) p[s] = w.data + static_cast<size_t>(panel + s) * bytes;
    const int8_t* q = x.q + first * x.kp;
    const float* scale = x.scale + first * (x.kp / kGroup);
    const int32_t* sums = x.sum + first * (x.kp / kGroup);
    F f[S][M];
    for (int s = 0; s < S; s++)
        for (int m = 0; m < M; m++) f[s][m] = set1(0.0f);
    for (int64_t block = 0; block < w.kp / kBlock; block++) {
#pragma GCC unroll 2
        for (int g = 0; g < 2; g++) {
            I a[S][M];
            for (int m = 0; m < M; m++) {
                const I begin = KIND == kInt8 ? start8(sums[m]) : start4(sums[m]);
                for (int s = 0; s < S; s++) a[s][m] = begin;
            }
            if constexpr (KIND == kInt8) {
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++) {
                    I v[S];
                    for (int s = 0; s < S; s++) {
                        const uint8_t* at = p[s] + (g * 8 + j) * 64;
                        prefetch(at + ahead);
                        v[s] = load_bytes(at);
                    }
                    for (int m = 0; m < M; m++) {
                        const I xv = set1(load_int(q + (j * M + m) * 4));
                        for (int s = 0; s < S; s++) a[s][m] = dot8(a[s][m], v[s], xv);
                    }
                }
            } else {
                if (g == 0)
                    for (int s = 0; s < S; s++) prefetch(p[s] + ahead);  // the line of scales
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    I low[S], high[S];
                    for (int s = 0; s < S; s++) {
                        const uint8_t* at = p[s] + 64 + (g * 4 + j) * 64;
                        prefetch(at + ahead);
                        const I v = load_bytes(at);
                        low[s] = low_nibbles(v);
                        high[s] = high_nibbles(v);
                    }
                    for (int m = 0; m < M; m++) {
                        const I x0 = set1(load_int(q + (2 * j * M + m) * 4)), x1 = set1(load_int(q + ((2 * j + 1) * M + m) * 4));
                        for (int s = 0; s < S; s++) a[s][m] = dot4(dot4(a[s][m], low[s], x0), high[s], x1);
                    }
                }
            }
            for (int s = 0; s < S; s++) {
                if constexpr (KIND == kInt8) {
                    for (int m = 0; m < M; m++) f[s][m] = fma(to_float(a[s][m]), set1(scale[m]), f[s][m]);
                } else {
                    const F ws = load_half(reinterpret_cast<const uint16_t*>(p[s] + g * 32));
                    for (int m = 0; m < M; m++) f[s][m] = fma(to_float(a[s][m]), mul(ws, set1(scale[m])), f[s][m]);
                }
            }
            q += kGroup * M;
            scale += M;
            sums += M;
        }
        for (int s = 0; s < S; s++) p[s] += KIND == kInt8 ? size_t{kBlock} * 16 : kInt4Block;
    }
    if constexpr (KIND == kInt8)
        for (int s = 0; s < S; s++)
            for (int m = 0; m < M; m++) f[s][m] = mul(f[s][m], load(w.scale + static_cast<int64_t>(panel + s) * kPanel));
    put_out<M, S>(f, panel, first, out);
}

// Float activations: weights are widened column by column.
template <int KIND, int M, int S>
inline void tile_float(const View& w, int panel, const Acts& x, int first, const Out& out) {
    const size_t bytes = panel_bytes(KIND, w.kp);
    const uint8_t* p[S];
    for (int s = 0; s < S; s++) p[s] = w.data + static_cast<size_t>(panel + s) * bytes;
    const float* xf = x.f + first * x.kp;
    F f[S][M], group[S][M];
    for (int s = 0; s < S; s++)
        for (int m = 0; m < M; m++) f[s][m] = group[s][m] = set1(0.0f);
    const auto column = [&](F (&to)[S][M], int s, F v, int c) {
        for (int m = 0; m < M; m++) to[s][m] = fma(v, set1(xf[c * M + m]), to[s][m]);
    };
    for (int64_t block = 0; block < w.kp / kBlock; block++) {
        for (int s = 0; s < S; s++) {
            const uint8_t* at = p[s];
            if constexpr (KIND == kFloat32) {
                for (int c = 0; c < kBlock; c++) column(f, s, load(reinterpret_cast<const float*>(at) + c * 16), c);
            } else if constexpr (KIND == kBFloat16) {
                for (int c = 0; c < kBlock; c += 2) {
                    const I v = load_bytes(at + c * 32);
                    column(f, s, as_float(shift_left<16>(v)), c);
                    column(f, s, as_float(high_halves(v)), c + 1);
                }
            } else if constexpr (KIND == kInt8) {
                for (int c = 0; c < kBlock; c += 4) {
                    const I v = exclusive_or(load_bytes(at + c * 16), set1(static_cast<int32_t>(0x80808080)));
                    column(f, s, to_float(shift_right_signed<24>(shift_left<24>(v))), c);
                    column(f, s, to_float(shift_right_signed<24>(shift_left<16>(v))), c + 1);
                    column(f, s, to_float(shift_right_signed<24>(shift_left<8>(v))), c + 2);
                    column(f, s, to_float(shift_right_signed<24>(v)), c + 3);
                }
            } else {
                for (int g = 0; g < 2; g++) {
                    for (int m = 0; m < M; m++) group[s][m] = set1(0.0f);
                    for (int j = g * 4; j < g * 4 + 4; j++) {
                        const I v = load_bytes(at + 64 + j * 64);
                        for (int high = 0; high < 2; high++) {
                            const I u = high ? high_nibbles(v) : low_nibbles(v);
                            const int c = j * 8 + high * 4;
                            const F eight = set1(8.0f);
                            column(group, s, sub(to_float(shift_right_signed<24>(shift_left<24>(u))), eight), c);
                            column(group, s, sub(to_float(shift_right_signed<24>(shift_left<16>(u))), eight), c + 1);
                            column(group, s, sub(to_float(shift_right_signed<24>(shift_left<8>(u))), eight), c + 2);
                            column(group, s, sub(to_float(shift_right_signed<24>(u)), eight), c + 3);
                        }
                    }
                    const F ws = load_half(reinterpret_cast<const uint16_t*>(at + g * 32));
                    for (int m = 0; m < M; m++) f[s][m] = fma(group[s][m], ws, f[s][m]);
                }
            }
            p[s] += panel_bytes(KIND, kBlock);
        }
        xf += kBlock * M;
    }
    if constexpr (KIND == kInt8)
        for (int s = 0; s < S; s++)
            for (int m = 0; m < M; m++) f[s][m] = mul(f[s][m], load(w.scale + static_cast<int64_t>(panel + s) * kPanel));
    put_out<M, S>(f, panel, first, out);
}

template <int KIND, bool FLOAT, int M, int S>
inline void tile(const View& w, int panel, const Acts& x, int first, const Out& out, int64_t ahead) {
    if constexpr (FLOAT)
        tile_float<KIND, M, S>(w, panel, x, first, out);
    else
        tile_int<KIND, M, S>(w, panel, x, first, out, ahead);
}

// Panels from..to for the tile of `width` tokens that begins at token `first`. ahead: 0 where weights come from memory,
// else the bytes from a panel to the one that is read next.
template <int KIND, bool FLOAT, int M = kTile>
void panels(const View& w, int from, int to, const Acts& x, int first, int width, const Out& out, int64_t ahead = 0) {
    if constexpr (M > 1)
        if (width < M) return panels<KIND, FLOAT, M - 1>(w, from, to, x, first, width, out, ahead);
    constexpr int S = streams(M);
    int panel = from;
    for (; panel + S <= to; panel += S) tile<KIND, FLOAT, M, S>(w, panel, x, first, out, ahead ? ahead : ahead_of(S));
    if constexpr (S > 1)
        for (; panel < to; panel++) tile<KIND, FLOAT, M, 1>(w, panel, x, first, out, ahead ? ahead : ahead_of(1));
}

template <int KIND, bool FLOAT> void linear_kind(const View& w, int from, int to, const Acts& x, const Out& out) {
    if (x.m <= kTile) return panels<KIND, FLOAT>(w, from, to, x, 0, x.m, out);
    constexpr int S = streams(kTile);
    const auto bytes = static_cast<int64_t>(panel_bytes(KIND, w.kp));
    for (int panel = from; panel < to; panel += S)  // panels stay in the cache while all tokens pass them
        for (int first = 0; first < x.m; first += kTile) {
            const int width = x.m - first < kTile ? x.m - first : kTile;
            // While the last tokens pass, memory is idle: the next panels are fetched then. Behind many tokens it has time.
            const int64_t ahead = x.m > 4 * kTile || x.m - first > kTile ? 0 : S * bytes;
            panels<KIND, FLOAT>(w, panel, panel + S < to ? panel + S : to, x, first, width, out, ahead);
        }
}

void linear(const View& w, int from, int to, const Acts& x, const Out& out) {
    if (w.kind == kFloat32) return linear_kind<kFloat32, true>(w, from, to, x, out);
    if (w.kind == kBFloat16) return linear_kind<kBFloat16, true>(w, from, to, x, out);
    if (w.kind == kInt8)
        return x.f ? linear_kind<kInt8, true>(w, from, to, x, out) : linear_kind<kInt8, false>(w, from, to, x, out);
    return x.f ? linear_kind<kInt4, true>(w, from, to, x, out) : linear_kind<kInt4, false>(w, from, to, x, out);
}

// Columns from..to (whole groups) of one token; those from `valid` (a multiple of 16) on are zeros.
void put(const float* row, int64_t from, int64_t to, int64_t valid, const Acts& x, int token) {
    const int first = token / kTile * kTile, at = token - first, width = x.m - first < kTile ? x.m - first : kTile;
    if (x.f) {
        float* f = x.f + first * x.kp + at;
        for (int64_t c = from; c < to; c++) f[c * width] = c < valid ? row[c] : 0.0f;
        return;
    }
    for (int64_t c = from; c < to; c += kGroup) {
        const F zero = set1(0.0f), a = c < valid ? load(row + c) : zero, b = c + 16 < valid ? load(row + c + 16) : zero;
        const float widest = largest(max(abs(a), abs(b)));
        const F inverse = set1(widest > 0.0f ? 127.0f / widest : 0.0f);
        const I qa = round_to_int(mul(a, inverse)), qb = round_to_int(mul(b, inverse));
        const int64_t g = first * (x.kp / kGroup) + c / kGroup * width + at;
        x.scale[g] = widest / 127.0f;
        x.sum[g] = sum(add(qa, qb));
        int8_t bytes[kGroup];
        store_bytes(bytes, qa);
        store_bytes(bytes + 16, qb);
        int8_t* q = x.q + first * x.kp + c * width + at * 4;
        for (int i = 0; i < 8; i++) __builtin_memcpy(q + i * width * 4, bytes + i * 4, 4);
    }
}

// n is a multiple of 16.
void norm(const float* x, const float* weight, const float* bias, float epsilon, int n, float* out) {
    F s = set1(0.0f);
    for (int c = 0; c < n; c += 16) s = add(s, load(x + c));
    const F mean = set1(sum(s) / static_cast<float>(n));
    F squares = set1(0.0f);
    for (int c = 0; c < n; c += 16) {
        const F off = sub(load(x + c), mean);
        squares = fma(off, off, squares);
    }
    const F inverse = set1(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + epsilon));
    for (int c = 0; c < n; c += 16)
        store(out + c, fma(mul(sub(load(x + c), mean), inverse), load(weight + c), load(bias + c)));
}

// e^x to 2e-7 relative, x clamped to where the result is a normal number. Taylor's series on |r| <= ln(2)/2.
inline F exponential(F x) {
    x = min(max(x, set1(-87.0f)), set1(88.0f));
    const I n = round_to_int(mul(x, set1(1.44269504f)));
    const F nf = to_float(n);
    F r = fma(nf, set1(-0.693145752f), x);  // ln 2 in two parts, so that n ln 2 is exact enough
    r = fma(nf, set1(-1.42860677e-6f), r);
    F p = set1(1.0f / 720);
    p = fma(p, r, set1(1.0f / 120));
    p = fma(p, r, set1(1.0f / 24));
    p = fma(p, r, set1(1.0f / 6));
    p = fma(p, r, set1(0.5f));
    p = fma(p, r, set1(1.0f));
    p = fma(p, r, set1(1.0f));
    return mul(p, as_float(shift_left<23>(add(n, set1(127)))));
}

// gelu_new: 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
inline F gelu_of(F v) {
    const F one = set1(1.0f), cubic = fma(mul(v, v), set1(0.044715f), one);
    return div(v, add(one, exponential(mul(mul(v, set1(-1.595769122f)), cubic))));
}

void gelu(float* x, int64_t n) {
    for (int64_t c = 0; c < n; c += 16) store(x + c, gelu_of(load(x + c)));
}

float log_sum_exp(const float* x, int64_t n) {
    float widest = x[0];
    for (int64_t i = 1; i < n; i++) widest = x[i] > widest ? x[i] : widest;
    F s = set1(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) s = add(s, exponential(sub(load(x + i), set1(widest))));
    float total = sum(s);
    for (; i < n; i++) total += __builtin_expf(x[i] - widest);
    return widest + __builtin_logf(total);
}

// Weights e^((x - top) / temperature), 0 for what is banned or no normal number, and the sum of every kWeighed of them.
void weigh(const float* x, int64_t n, const uint8_t* banned, float top, float temperature, float* out, double* sums) {
    const F least = exponential(set1(-1000.0f));  // what the clamped ones would have
    const auto weights = [&](const float* some) {
        return sub(exponential(div(sub(load(some), set1(top)), set1(temperature))), least);
    };
    for (int64_t begin = 0; begin < n; begin += kWeighed) {
        const int64_t end = n - begin < kWeighed ? n : begin + kWeighed;
        int64_t i = begin;
        for (; i + 16 <= end; i += 16) store(out + i, weights(x + i));
        if (i < end) {
            float some[16] = {};
            __builtin_memcpy(some, x + i, static_cast<size_t>(end - i) * sizeof(float));
            store(some, weights(some));
            __builtin_memcpy(out + i, some, static_cast<size_t>(end - i) * sizeof(float));
        }
        if (banned)
            for (int64_t j = begin; j < end; j++) out[j] = banned[j] ? 0.0f : out[j];
        F s = set1(0.0f);
        for (i = begin; i + 16 <= end; i += 16) s = add(s, load(out + i));
        double total = static_cast<double>(sum(s));
        for (; i < end; i++) total += static_cast<double>(out[i]);
        sums[begin / kWeighed] = total;
    }
}

// ---- attention

// Turn pairs (2i, 2i+1) by the position's angle; the channels beyond stay.
inline void rotate(const float* x, const float* cos, const float* sin, int half, int head_dim, float factor, float* out) {
    for (int i = 0; i < half; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        out[2 * i] = (a * cos[i] - b * sin[i]) * factor;
        out[2 * i + 1] = (b * cos[i] + a * sin[i]) * factor;
    }
    for (int d = 2 * half; d < head_dim; d++) out[d] = x[d] * factor;
}

// Keys and values are float16, or float32 beside float32 weights: T.
inline F load_as_float(const uint16_t* p) { return load_half(p); }
inline F load_as_float(const float* p) { return load(p); }

inline void store_as(uint16_t* p, const float* x, int n) {  // what float16 cannot hold becomes its largest value
    for (int d = 0; d < n; d += 16) store_half(p + d, max(min(load(x + d), set1(65504.0f)), set1(-65504.0f)));
}
inline void store_as(float* p, const float* x, int n) {
    for (int d = 0; d < n; d += 16) store(p + d, load(x + d));
}

template <class T> void write_keys_and_values(const Attend& a, float* scratch) {
    const int D = a.head_dim;
    float* turned = scratch;
    auto* stored = reinterpret_cast<T*>(scratch + D);
    for (int i = 0; i < a.n; i++) {
        const int position = a.first + i;
        rotate(a.k + i * a.ld, a.cos + static_cast<int64_t>(position) * a.half, a.sin + static_cast<int64_t>(position) * a.half,
               a.half, D, 1.0f, turned);
        store_as(stored, turned, D);
        T* panel = static_cast<T*>(a.keys) + static_cast<int64_t>(position / 16) * D * 16 + position % 16;
        for (int d = 0; d < D; d++) panel[d * 16] = stored[d];
        store_as(static_cast<T*>(a.values) + static_cast<int64_t>(position) * D, a.v + i * a.ld, D);
    }
}

// Scores of M queries (scaled, [D][M]) against P panels of 16 keys from `keys` on, to scores[m * kKeyBlock + ...].
template <int M, int P, class T> inline void score(const T* keys, const float* q, int D, float* scores) {
    F s[P][M];
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++) s[p][m] = set1(0.0f);
    for (int d = 0; d < D; d++)
        for (int p = 0; p < P; p++) {
            const F k = load_as_float(keys + (static_cast<int64_t>(p) * D + d) * 16);
            for (int m = 0; m < M; m++) s[p][m] = fma(k, set1(q[d * M + m]), s[p][m]);
        }
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++) store(scores + m * kKeyBlock + p * 16, s[p][m]);
}

// out[m][d..] = out * factor[m] + sum over keys of weight * value, W registers of d at a time.
template <int M, int W, class T>
inline void gather(const T* values, const float* weights, const float* factor, int n, int D, int d, float* out) {
    F s[M][W];
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) s[m][w] = mul(load(out + m * D + d + w * 16), set1(factor[m]));
    for (int key = 0; key < n; key++) {
        F v[W];
        for (int w = 0; w < W; w++) v[w] = load_as_float(values + static_cast<int64_t>(key) * D + d + w * 16);
        for (int m = 0; m < M; m++) {
            const F p = set1(weights[m * kKeyBlock + key]);
            for (int w = 0; w < W; w++) s[m][w] = fma(v[w], p, s[m][w]);
        }
    }
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) store(out + m * D + d + w * 16, s[m][w]);
}

// M queries from query i on; the softmax is kept up to date block by block of keys, so no row of scores is ever whole.
// Blocks lie at fixed keys and what a query does not see adds an exact zero, so M does not change a bit of the result.
template <int M, class T> void attend_queries(const Attend& a, int i, float* scratch) {
    const int D = a.head_dim, first = a.first + i, end = first + M;
    float *q = scratch, *out = q + M * D, *scores = out + M * D, *turned = scores + M * kKeyBlock;
    float widest[M], total[M], factor[M];
    for (int m = 0; m < M; m++) {
        const int64_t at = static_cast<int64_t>(first + m) * a.half;
        rotate(a.q + (i + m) * a.ld, a.cos + at, a.sin + at, a.half, D, 1.0f / __builtin_sqrtf(static_cast<float>(D)), turned);
        for (int d = 0; d < D; d++) q[d * M + m] = turned[d];
        widest[m] = -INFINITY;
        total[m] = 0.0f;
    }
    for (int d = 0; d < M * D; d++) out[d] = 0.0f;
    for (int begin = 0; begin < end; begin += kKeyBlock) {
        const int n = end - begin < kKeyBlock ? end - begin : kKeyBlock, key_panels = (n + 15) / 16;
        const T* keys = static_cast<const T*>(a.keys) + static_cast<int64_t>(begin / 16) * D * 16;
        constexpr int P = M <= 2 ? 4 : 1;
        int panel = 0;
        for (; panel + P <= key_panels; panel += P) score<M, P>(keys + static_cast<int64_t>(panel) * D * 16, q, D, scores + panel * 16);
        for (; panel < key_panels; panel++) score<M, 1>(keys + static_cast<int64_t>(panel) * D * 16, q, D, scores + panel * 16);
        for (int m = 0; m < M; m++) {
            float* s = scores + m * kKeyBlock;
            const int seen = first + m + 1 - begin < 0 ? 0 : first + m + 1 - begin < n ? first + m + 1 - begin : n;
            for (int k = seen; k < key_panels * 16; k++) s[k] = seen ? -INFINITY : 0.0f;
            factor[m] = 1.0f;
            if (!seen) continue;
            F w = load(s);
            for (int k = 16; k < key_panels * 16; k += 16) w = max(w, load(s + k));
            const float before = widest[m], now = largest(w);
            widest[m] = now > before ? now : before;
            F sums = set1(0.0f);
            for (int k = 0; k < key_panels * 16; k += 16) {
                store(s + k, exponential(sub(load(s + k), set1(widest[m]))));
                if (k + 16 > seen)
                    for (int j = k < seen ? seen : k; j < k + 16; j++) s[j] = 0.0f;
                sums = add(sums, load(s + k));
            }
            if (begin) {
                alignas(64) float both[16];
                store(both, exponential(set1(before - widest[m])));
                factor[m] = both[0];
            }
            total[m] = total[m] * factor[m] + sum(sums);
        }
        const T* values = static_cast<const T*>(a.values) + static_cast<int64_t>(begin) * D;
        constexpr int W = M <= 2 ? 4 : 2;
        int d = 0;
        for (; d + W * 16 <= D; d += W * 16) gather<M, W>(values, scores, factor, n, D, d, out);
        for (; d < D; d += 16) gather<M, 1>(values, scores, factor, n, D, d, out);
    }
    for (int m = 0; m < M; m++) {
        const F inverse = set1(1.0f / total[m]);
        for (int d = 0; d < D; d += 16) store(a.out + (i + m) * a.out_ld + d, mul(load(out + m * D + d), inverse));
    }
}

constexpr int kQueries = kTile >= kMostQueries ? kMostQueries : 3;

template <class T, int M = kQueries> void attend_rest(const Attend& a, int i, float* scratch) {
    if constexpr (M > 1)
        if (a.n - i < M) return attend_rest<T, M - 1>(a, i, scratch);
    attend_queries<M, T>(a, i, scratch);
}

template <class T> void attend_as(const Attend& a, float* scratch) {
    write_keys_and_values<T>(a, scratch);
    int i = 0;
    for (; i + kQueries <= a.n; i += kQueries) attend_queries<kQueries, T>(a, i, scratch);
    if (i < a.n) attend_rest<T>(a, i, scratch);
}

void attend(const Attend& a, float* scratch) { a.wide ? attend_as<float>(a, scratch) : attend_as<uint16_t>(a, scratch); }

// ---- how fast memory can be read: S streams, fetched AHEAD bytes before use

template <int S, int AHEAD> uint64_t read_streams(const uint8_t* p, int64_t bytes) {
    const int64_t part = bytes / S / 256 * 256;
    I x[4] = {set1(0), set1(0), set1(0), set1(0)};
    for (int64_t i = 0; i < part; i += 256)
        for (int s = 0; s < S; s++)
            for (int k = 0; k < 4; k++) {
                const uint8_t* at = p + s * part + i + k * 64;
                if (AHEAD) prefetch(at + AHEAD);
                x[k] = exclusive_or(x[k], load_bytes(at));
            }
    return static_cast<uint64_t>(static_cast<uint32_t>(sum(exclusive_or(exclusive_or(x[0], x[1]), exclusive_or(x[2], x[3])))));
}

uint64_t read(const void* p, int64_t bytes, int pattern) {
    const auto* b = static_cast<const uint8_t*>(p);
    switch (pattern) {  // each answers 1 at least
        case 0: return read_streams<1, 0>(b, bytes) | 1;
        case 1: return read_streams<1, 2048>(b, bytes) | 1;
        case 2: return read_streams<2, 0>(b, bytes) | 1;
        case 3: return read_streams<4, 0>(b, bytes) | 1;
        case 4: return read_streams<4, 1024>(b, bytes) | 1;
        case 5: return read_streams<4, 4096>(b, bytes) | 1;
        case 6: return read_streams<8, 0>(b, bytes) | 1;
        case 7: return read_streams<8, 1024>(b, bytes) | 1;
        case 8: return read_streams<16, 0>(b, bytes) | 1;
        case 9: return read_streams<16, 2048>(b, bytes) | 1;
        default: return 0;
    }
}

constexpr Kernels table(const char* name) {
    return {name, kTile, linear, put, norm, gelu, attend, log_sum_exp, weigh, read, nullptr};
}

}  // namespace
