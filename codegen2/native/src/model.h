// A model and a cache of its keys and values, as the C interface hands them out.
//
// Letters: M tokens of a chunk, C n_embd, V vocab, D head size.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>
#include "kernels.h"

struct Free {
    void operator()(void* p) const { std::free(p); }
};

// Grows and never shrinks; aligned to a cache line.
template <class T> class Buffer {
   public:
    T* get(size_t n) {
        if (n > size_) {
            size_ = 0;
            data_.reset(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64)));
            if (!data_) throw std::bad_alloc();
            size_ = n;
        }
        return data_.get();
    }

   private:
    std::unique_ptr<T, Free> data_;
    size_t size_ = 0;
};

struct ActsBuffer {
    Buffer<int8_t> q;
    Buffer<float> scale, f;
    Buffer<int32_t> sum;

    Acts get(int m, int64_t kp, bool floating, bool tiled = false) {
        const size_t n = static_cast<size_t>(m) * static_cast<size_t>(kp);
        if (tiled) {
            const size_t mp = static_cast<size_t>(round_up(m, 16)), spans = static_cast<size_t>(round_up(kp, kSpan) / kSpan);
            return {q.get(mp * static_cast<size_t>(kp)), scale.get(mp * spans), sum.get(mp * spans), nullptr, m, kp};
        }
        if (floating) return {nullptr, nullptr, nullptr, f.get(n), m, kp};
        return {q.get(n), scale.get(n / kGroup), sum.get(n / kGroup), nullptr, m, kp};
    }
};

inline View view_of(const cg2_matrix& m) {
    return {static_cast<const uint8_t*>(m.data), m.scale, m.kind, m.n, m.k, round_up(m.n, kPanel), round_up(m.k, kBlock)};
}

struct Layer {
    View qkv, out, in, down;
    std::vector<float> norm_weight, norm_bias, in_bias, down_bias;
};

struct cg2_cache {
    int32_t rows, capacity, layers, heads, head_dim;
    bool wide;  // float32, else float16
    std::unique_ptr<uint8_t, Free> data;

    size_t each() const { return static_cast<size_t>(head_dim) * (wide ? sizeof(float) : sizeof(uint16_t)); }  // bytes of a key
    size_t head_size() const { return static_cast<size_t>(capacity) * each(); }
    // Keys of a layer, row and head; values follow.
    uint8_t* keys(int layer, int row, int head) const {
        return data.get() + ((static_cast<size_t>(layer) * rows + row) * heads + head) * 2 * head_size();
    }
    uint8_t* values(int layer, int row, int head) const { return keys(layer, row, head) + head_size(); }
};

// How a chunk of tokens is computed, and what ends it early.
struct Pass {
    const Kernels& k;
    const Tiles* tiles;  // null: none, or decode steps
    const volatile int32_t* cancel;
};

// What a chunk of tokens works on.
struct Chunk {
    struct Run { int begin, n; };  // tokens of one row
    int m;
    const int32_t *rows, *positions;
    std::vector<Run> runs;
    float *x, *qkv, *up, *attention, *scratch;
    size_t scratch_size;  // of a thread
    float* scratch_of(int thread) const { return scratch + scratch_size * static_cast<size_t>(thread); }
};

struct cg2_model {
    cg2_shape shape;
    int head_dim;
    View embedding, head;
    std::vector<float> cos, sin, final_weight, final_bias, head_bias;
    std::vector<Layer> layers;

    Buffer<float> x, normed, qkv, up, attention, logits, scratch;
    ActsBuffer acts, acts_up, acts_head;

    // Whether prompts may go on tiles: those know rounded activations alone.
    bool rounded() const { return !shape.float_activations && layers[0].qkv.kind > kBFloat16; }
    // Put rows of x into activations, by LayerNorm or as they are.
    bool put_rows(const Pass& p, const float* rows, int64_t ld, const int* which, const float* weight, const float* bias,
                  const Acts& to);
    // Logits (M, Vp) or, by head_logits, (M, V).
    bool head_linear(const Pass& p, const Acts& a, float* out);
    bool head_logits(const Pass& p, const Acts& a, float* out);
    int chunk(const Pass& p, cg2_cache& cache, int m, const int32_t* ids, const int32_t* rows, const int32_t* positions,
              int n_wanted, const int32_t* wanted, int32_t offset, float* logits_out, float* hidden_out);

   private:
    // The phases; each gives false when it is cancelled.
    Chunk begin_chunk(int m, const int32_t* ids, const int32_t* rows, const int32_t* positions, bool tiled);
    bool wide(const Pass& p, const Layer& layer, const Chunk& c, const Acts& a);
    bool between(const Pass& p, int l, cg2_cache& cache, const Chunk& c, const Acts& a_out, const Acts& a_up);
    bool narrow(const Pass& p, const Layer& layer, const Chunk& c, const Acts& a_out, const Acts& a_up);
};
