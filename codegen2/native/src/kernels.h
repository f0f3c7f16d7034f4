// The kernels of one instruction set as a table of functions; kernels_impl.h defines them once, each kernels_<isa>.cpp
// compiles them for its machine, dispatch.cpp chooses.
//
// Letters: M tokens, N out, K in, D head size. Every output of a token depends on that token's inputs alone and is
// summed in one order, whatever M is and however the work is cut: that is what makes a row's logits bitwise the same.
#pragma once
#include <cstddef>
#include <cstdint>
#include "layout.h"

// A packed weight.
struct View {
    const uint8_t* data;
    const float* scale;  // (Np,), int8 only
    int32_t kind, n, k;
    int64_t np, kp;
    int panels() const { return static_cast<int>(np / kPanel); }
};

// Activations as `linear` eats them, in tiles of Kernels::tile tokens (the last one narrower), so that the inner loop walks
// one stream: tile by tile [K/4][token][4] int8 with [K/32][token] scales and sums of a group, or [K][token] floats.
//
// For Tiles instead: span by span of 512 columns [tokens/16][span/64][token][64] int8, with [K/512][tokens] scales and sums
// of a span; the tokens that fill up the last 16 hold anything.
struct Acts {
    int8_t* q;
    float* scale;
    int32_t* sum;
    float* f;  // null: the int8 form is used
    int m;
    int64_t kp;
};

// y[token * ld + row] = result (+ bias), or += with add.
struct Out {
    float* y;
    int64_t ld;
    const float* bias;  // padded to whole panels, or null
    bool add;
};

// One head of one row of the cache: n tokens from position `first` on, which see all keys up to their own.
struct Attend {
    const float *q, *k, *v;  // first token's, at this head
    int64_t ld;
    int n, first;
    const float *cos, *sin;  // (n_ctx, half)
    int half, head_dim;
    void *keys, *values;  // [capacity/16][D][16] and [capacity][D]
    bool wide;            // they are float32, else float16
    float* out;
    int64_t out_ld;
};

// Matrix instructions, for prompts. Their results are not those of `linear` and `attend` bit by bit, since activations are
// rounded over other columns, but they too depend on a token alone: so prompts go on tiles whatever their length is, one
// token too, and decode steps never do.
struct Tiles {
    void (*put)(const float* row, int64_t from, int64_t to, int64_t valid, bool through_gelu, const Acts& x, int token);  // whole spans
    void (*linear)(const View& w, int from, int to, const Acts& x, const Out& out, float* scratch);  // int8 and int4
    void (*attend)(const Attend& a, float* scratch);
};

struct Kernels {
    const char* name;
    int tile;
    void (*linear)(const View& w, int from, int to, const Acts& x, const Out& out);  // panels from..to
    void (*put)(const float* row, int64_t from, int64_t to, int64_t valid, const Acts& x, int token);
    void (*norm)(const float* x, const float* weight, const float* bias, float epsilon, int n, float* out);
    void (*gelu)(float* x, int64_t n);
    void (*attend)(const Attend& a, float* scratch);
    float (*log_sum_exp)(const float* x, int64_t n);
    void (*weigh)(const float* x, int64_t n, const uint8_t* banned, float top, float temperature, float* out, double* sums);
    uint64_t (*read)(const void* p, int64_t bytes, int pattern);  // 0 where there is no such pattern
    const Tiles* tiles;  // null: none
};

constexpr int kKeyBlock = 256;
constexpr int kWeighed = 256;  // weights that are summed together
constexpr int kMostQueries = 8;

// Floats of scratch that `attend` needs.
inline size_t attend_scratch(int head_dim) {
    return static_cast<size_t>(kMostQueries) * (2 * head_dim + kKeyBlock) + 2 * static_cast<size_t>(head_dim) + 64;
}

constexpr int kSpan = 512;       // columns of an activation's scale on tiles
constexpr int kTilePairs = 4;    // pairs of panels that are worked on together

// Floats of scratch that `linear` and `attend` of Tiles need for m tokens: tiles of sums, two widened spans and partial
// sums; queries, a block of keys and of values, scores and weights of 32 queries.
inline size_t tiles_scratch(int m, int head_dim) {
    const size_t n = static_cast<size_t>(round_up(m, 32)), wide = static_cast<size_t>(round_up(head_dim, 32));
    const size_t linear = 2 * 32 * 32 + 2 * kSpan * kPanel / 4 + n * 32 * kTilePairs;
    const size_t attend = n * wide / 2 + kKeyBlock * wide + 32 * kKeyBlock / 2 + 32 * kKeyBlock + 32 * 32 + 2 * n + 16 * wide + 160;
    return linear > attend ? linear : attend;
}

const Kernels& kernels();  // the chosen ones
