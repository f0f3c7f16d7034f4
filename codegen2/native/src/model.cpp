// The forward pass on the CPU: model.py's twin, over packed weights. Chunk by chunk of tokens, layer by layer, in phases
// that the pool deals out:
//
//   norm      x -> activations for the layer's two wide matrices
//   wide      qkv_proj and fc_in, panel by panel
//   between   attention, head by head; gelu, slice by slice; both leave activations
//   narrow    out_proj and fc_out, panel by panel, added to x
//
// Letters: M tokens of a chunk, C n_embd, V vocab, D head size, R rotary_dim, S cached tokens.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>
#include "half.h"
#include "kernels.h"
#include "pool.h"

namespace {

constexpr int kMostTokens = 348;    // of a chunk: its int8 activations and a panel fit a core's second-level cache
constexpr int kMostHeadTokens = 64;  // whose logits are computed at once where only their log-sum-exp is wanted
constexpr int64_t kSlice = 512;      // columns of gelu that a thread takes at a time

struct Free {
    void operator()(void* p) const { std::free(p); }
};

// Grows and never shrinks; aligned to a cache line.
template <class T> class Buffer {
   public:
    T* get(size_t n) {
        if (n > size_) {
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

    Acts get(int m, int64_t kp, bool floating) {
        const size_t n = static_cast<size_t>(m) * static_cast<size_t>(kp);
        if (floating) return {nullptr, nullptr, nullptr, f.get(n), m, kp};
        return {q.get(n), scale.get(n / kGroup), sum.get(n / kGroup), nullptr, m, kp};
    }
};

View view_of(const cg2_matrix& m) {
    return {static_cast<const uint8_t*>(m.data), m.scale, m.kind, m.n, m.k, round_up(m.n, kPanel), round_up(m.k, kBlock)};
}

std::vector<float> padded(const float* from, int64_t n) {
    std::vector<float> out(static_cast<size_t>(round_up(n, kPanel)), 0.0f);
    std::memcpy(out.data(), from, static_cast<size_t>(n) * sizeof(float));
    return out;
}

struct Layer {
    View qkv, out, in, down;
    std::vector<float> norm_weight, norm_bias, in_bias, down_bias;
};

// A row of a packed matrix as float32: the embedding of a token.
void read_row(const View& w, int row, float* out) {
    const uint8_t* panel = w.data + static_cast<size_t>(row / kPanel) * panel_bytes(w.kind, w.kp);
    const int r = row % kPanel;
    for (int c = 0; c < w.k; c++) {
        if (w.kind == kFloat32) {
            out[c] = reinterpret_cast<const float*>(panel)[c * 16 + r];
        } else if (w.kind == kBFloat16) {
            out[c] = float_of(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(panel)[c / 2 * 32 + r * 2 + c % 2]) << 16);
        } else if (w.kind == kInt8) {
            out[c] = static_cast<float>(panel[c / 4 * 64 + r * 4 + c % 4] - 128) * w.scale[row];
        } else {
            const uint8_t* block = panel + c / kBlock * kInt4Block;
            const int at = c % kBlock;
            const uint8_t byte = block[64 + at / 8 * 64 + r * 4 + at % 4];
            const int q = at % 8 < 4 ? byte & 15 : byte >> 4;
            out[c] = static_cast<float>(q - 8) * half_to_float(reinterpret_cast<const uint16_t*>(block)[at / kGroup * 16 + r]);
        }
    }
}

// Panels that a thread takes at a time: enough to stream, few enough that all threads end together.
int panels_at_once(int panels, int threads, int m) {
    const int fewest = m <= 6 ? 4 : 1, most = m <= 6 ? 32 : 4;
    int n = panels / (threads * 8) / fewest * fewest;
    return n < fewest ? fewest : n > most ? most : n;
}

}  // namespace

struct cg2_cache {
    int32_t rows, capacity, layers, heads, head_dim;
    std::unique_ptr<uint16_t, Free> data;

    size_t head_size() const { return static_cast<size_t>(capacity) * head_dim; }
    // Keys of a layer, row and head; values follow.
    uint16_t* keys(int layer, int row, int head) const {
        return data.get() + ((static_cast<size_t>(layer) * rows + row) * heads + head) * 2 * head_size();
    }
    uint16_t* values(int layer, int row, int head) const { return keys(layer, row, head) + head_size(); }
};

struct cg2_model {
    cg2_shape shape;
    int head_dim;
    View embedding, head;
    std::vector<float> cos, sin, final_weight, final_bias, head_bias;
    std::vector<Layer> layers;

    Buffer<float> x, normed, qkv, up, attention, logits, scratch;
    ActsBuffer acts, acts_up, acts_head;

    // Put rows of x into activations, by LayerNorm or as they are.
    bool put_rows(const Kernels& k, const float* rows, int64_t ld, const int* which, const float* weight, const float* bias,
                  const Acts& to, const volatile int32_t* cancel);
    bool linear(const Kernels& k, const View& w, const Acts& x, const Out& out, const volatile int32_t* cancel);
    int chunk(const Kernels& k, cg2_cache& cache, int m, const int32_t* ids, const int32_t* rows, const int32_t* positions,
              int n_wanted, const int32_t* wanted, int32_t offset, float* logits_out, float* hidden_out,
              const volatile int32_t* cancel);
    bool head_logits(const Kernels& k, const Acts& a, float* out, const volatile int32_t* cancel);
};

bool cg2_model::put_rows(const Kernels& k, const float* rows, int64_t ld, const int* which, const float* weight,
                         const float* bias, const Acts& to, const volatile int32_t* cancel) {
    const int C = shape.n_embd;
    float* scratch_rows = normed.get(static_cast<size_t>(Pool::the().threads()) * C);
    return Pool::the().each(to.m, cancel, [&](int m, int thread) {
        const float* row = rows + (which ? which[m] : m) * ld;
        if (weight) {
            float* out = scratch_rows + static_cast<int64_t>(thread) * C;
            k.norm(row, weight, bias, shape.layer_norm_epsilon, C, out);
            row = out;
        }
        k.put(row, 0, to.kp, C, to, m);
    });
}

bool cg2_model::linear(const Kernels& k, const View& w, const Acts& a, const Out& out, const volatile int32_t* cancel) {
    const int step = panels_at_once(w.panels(), Pool::the().threads(), a.m);
    return Pool::the().each((w.panels() + step - 1) / step, cancel, [&](int item, int) {
        const int from = item * step, to = from + step < w.panels() ? from + step : w.panels();
        k.linear(w, from, to, a, out);
    });
}

bool cg2_model::head_logits(const Kernels& k, const Acts& a, float* out, const volatile int32_t* cancel) {
    const int64_t V = shape.vocab_size, Vp = head.np;
    if (V == Vp) return linear(k, head, a, {out, Vp, head_bias.data(), false}, cancel);
    float* wide = logits.get(static_cast<size_t>(a.m) * Vp);
    if (!linear(k, head, a, {wide, Vp, head_bias.data(), false}, cancel)) return false;
    for (int m = 0; m < a.m; m++) std::memcpy(out + m * V, wide + m * Vp, static_cast<size_t>(V) * sizeof(float));
    return true;
}

int cg2_model::chunk(const Kernels& k, cg2_cache& cache, int m, const int32_t* ids, const int32_t* rows,
                     const int32_t* positions, int n_wanted, const int32_t* wanted, int32_t offset, float* logits_out,
                     float* hidden_out, const volatile int32_t* cancel) {
    Pool& pool = Pool::the();
    const int C = shape.n_embd, H = shape.n_head, D = head_dim;
    const bool floating = shape.float_activations != 0;
    const bool plain = layers[0].qkv.kind <= kBFloat16;  // such weights know float activations only
    const int64_t qkv_np = layers[0].qkv.np, up_np = layers[0].in.np;
    float* xs = x.get(static_cast<size_t>(m) * C);
    float* qkvs = qkv.get(static_cast<size_t>(m) * qkv_np);
    float* ups = up.get(static_cast<size_t>(m) * up_np);
    float* att = attention.get(static_cast<size_t>(m) * C);
    const size_t scratch_size = (attend_scratch(D) + 15) / 16 * 16;
    float* scratches = scratch.get(scratch_size * pool.threads());
    for (int i = 0; i < m; i++) read_row(embedding, ids[i], xs + static_cast<int64_t>(i) * C);

    struct Run { int begin, n; };  // tokens of one row
    std::vector<Run> runs;
    for (int i = 0; i < m; i++) {
        if (i && rows[i] == rows[i - 1]) runs.back().n++;
        else runs.push_back({i, 1});
    }
    const int n_runs = static_cast<int>(runs.size());
    const bool by_head = D % kGroup == 0;  // a head is whole groups, so whoever has it can quantise it at once

    for (int l = 0; l < shape.n_layer; l++) {
        Layer& layer = layers[static_cast<size_t>(l)];
        const Acts a = acts.get(m, layer.qkv.kp, floating || plain);
        if (!put_rows(k, xs, C, nullptr, layer.norm_weight.data(), layer.norm_bias.data(), a, cancel)) return 1;

        const int q_panels = layer.qkv.panels(), u_panels = layer.in.panels();
        const int step = panels_at_once(q_panels + u_panels, pool.threads(), m);
        const int q_items = (q_panels + step - 1) / step, u_items = (u_panels + step - 1) / step;
        if (!pool.each(q_items + u_items, cancel, [&](int item, int) {
                const bool up_side = item >= q_items;
                const View& w = up_side ? layer.in : layer.qkv;
                const int from = (up_side ? item - q_items : item) * step;
                const int to = from + step < w.panels() ? from + step : w.panels();
                k.linear(w, from, to, a, up_side ? Out{ups, up_np, layer.in_bias.data(), false} : Out{qkvs, qkv_np, nullptr, false});
            }))
            return 1;

        const Acts a_out = acts.get(m, layer.out.kp, floating || plain), a_up = acts_up.get(m, layer.down.kp, floating || plain);
        const int64_t slice = m <= 6 ? kSlice : layer.down.kp;  // many tokens: one token is work enough
        const int slices = static_cast<int>((layer.down.kp + slice - 1) / slice);
        const int tokens_at_once = m <= 6 ? m : 4, token_items = (m + tokens_at_once - 1) / tokens_at_once;
        const int heads = n_runs * H;
        if (!pool.each(heads + slices * token_items, cancel, [&](int item, int thread) {
                if (item < heads) {
                    const Run run = runs[static_cast<size_t>(item / H)];
                    const int head = item % H, row = rows[run.begin];
                    const float* q = qkvs + run.begin * qkv_np + head * D;
                    k.attend({q, q + C, q + 2 * C, qkv_np, run.n, positions[run.begin], cos.data(), sin.data(),
                              shape.rotary_dim / 2, D, cache.keys(l, row, head), cache.values(l, row, head),
                              att + static_cast<int64_t>(run.begin) * C + head * D, C},
                             scratches + scratch_size * static_cast<size_t>(thread));
                    if (by_head) {
                        const int64_t to = head == H - 1 ? a_out.kp : (head + 1) * D;
                        for (int i = run.begin; i < run.begin + run.n; i++)
                            k.put(att + static_cast<int64_t>(i) * C, head * D, to, C, a_out, i);
                    }
                    return;
                }
                item -= heads;
                const int64_t from = item % slices * slice;
                const int64_t to = from + slice < layer.down.kp ? from + slice : layer.down.kp;
                const int first = item / slices * tokens_at_once;
                for (int i = first; i < m && i < first + tokens_at_once; i++) {
                    float* row = ups + i * up_np;
                    const int64_t end = to < up_np ? to : up_np;
                    if (end > from) k.gelu(row + from, end - from);
                    k.put(row, from, to, layer.down.k, a_up, i);
                }
            }))
            return 1;
        if (!by_head && !put_rows(k, att, C, nullptr, nullptr, nullptr, a_out, cancel)) return 1;

        const int panels = layer.out.panels(), narrow = panels_at_once(panels, pool.threads(), m);
        if (!pool.each((panels + narrow - 1) / narrow, cancel, [&](int item, int) {
                const int from = item * narrow, to = from + narrow < panels ? from + narrow : panels;
                k.linear(layer.out, from, to, a_out, {xs, C, nullptr, true});
                k.linear(layer.down, from, to, a_up, {xs, C, layer.down_bias.data(), true});
            }))
            return 1;
    }
    std::vector<int> which;
    for (int i = 0; i < n_wanted; i++)
        if (logits_out && wanted[i] >= offset && wanted[i] < offset + m) which.push_back(wanted[i] - offset);
    if (hidden_out) {
        if (!pool.each(m, cancel, [&](int i, int) {
                k.norm(xs + static_cast<int64_t>(i) * C, final_weight.data(), final_bias.data(), shape.layer_norm_epsilon, C,
                       hidden_out + static_cast<int64_t>(i) * C);
            }))
            return 1;
    }
    if (!which.empty()) {
        const Acts a = acts_head.get(static_cast<int>(which.size()), head.kp, floating || head.kind <= kBFloat16);
        if (!put_rows(k, xs, C, which.data(), final_weight.data(), final_bias.data(), a, cancel)) return 1;
        if (!head_logits(k, a, logits_out, cancel)) return 1;
    }
    return 0;
}

namespace {

bool fail(char* error, int32_t size, const char* text) {
    std::snprintf(error, static_cast<size_t>(size), "%s", text);
    return false;
}

bool check(const cg2_shape& s, const cg2_matrix* m, char* error, int32_t size) {
    const int64_t C = s.n_embd;
    if (s.n_head < 1 || C < 16 || C % s.n_head || (C / s.n_head) % 16)
        return fail(error, size, "the size of a head must be a multiple of 16");
    if (s.rotary_dim < 2 || s.rotary_dim % 2 || s.rotary_dim > C / s.n_head || s.n_layer < 1 || s.n_ctx < 1 || s.vocab_size < 1)
        return fail(error, size, "the shape is not one of a CodeGen2 model");
    const auto matches = [](const cg2_matrix& w, int64_t n, int64_t k) {
        return w.data && w.n == n && w.k == k && w.kind >= kFloat32 && w.kind <= kInt4 && (w.kind != kInt8 || w.scale);
    };
    bool good = (!m[0].data || matches(m[0], s.vocab_size, C)) && matches(m[1], s.vocab_size, C);
    for (int l = 0; l < s.n_layer; l++) {
        const cg2_matrix* w = m + 2 + 4 * l;
        good = good && matches(w[0], 3 * C, C) && matches(w[1], C, C) && matches(w[2], 4 * C, C) && matches(w[3], C, 4 * C);
        for (int i = 0; i < 4; i++)  // activations are made once for all of a chunk, in one form
            good = good && (w[i].kind <= kBFloat16) == (m[2].kind <= kBFloat16);
    }
    return good || fail(error, size, "a matrix is missing or has another shape than the model");
}

}  // namespace

CG2_API int32_t cg2_abi() { return 1; }

CG2_API cg2_model* cg2_model_new(const cg2_shape* shape, const cg2_matrix* matrices, const float* const* vectors,
                                 char* error, int32_t error_size) try {
    if (!check(*shape, matrices, error, error_size)) return nullptr;
    auto model = std::make_unique<cg2_model>();
    const int64_t C = shape->n_embd, half = shape->rotary_dim / 2;
    model->shape = *shape;
    model->head_dim = shape->n_embd / shape->n_head;
    model->head = view_of(matrices[1]);
    model->embedding = matrices[0].data ? view_of(matrices[0]) : model->head;
    model->cos = padded(vectors[0], shape->n_ctx * half);
    model->sin = padded(vectors[1], shape->n_ctx * half);
    model->final_weight = padded(vectors[2], C);
    model->final_bias = padded(vectors[3], C);
    model->head_bias = padded(vectors[4], shape->vocab_size);
    for (int l = 0; l < shape->n_layer; l++) {
        const cg2_matrix* m = matrices + 2 + 4 * l;
        const float* const* v = vectors + 5 + 4 * l;
        model->layers.push_back({view_of(m[0]), view_of(m[1]), view_of(m[2]), view_of(m[3]), padded(v[0], C),
                                 padded(v[1], C), padded(v[2], 4 * C), padded(v[3], C)});
    }
    return model.release();
} catch (const std::bad_alloc&) {
    fail(error, error_size, "there is not enough memory");
    return nullptr;
}

CG2_API void cg2_model_free(cg2_model* model) { delete model; }

CG2_API cg2_cache* cg2_cache_new(const cg2_model* model, int32_t rows, int32_t capacity) try {
    auto cache = std::make_unique<cg2_cache>();
    *cache = {rows, static_cast<int32_t>(round_up(capacity, 16)), model->shape.n_layer, model->shape.n_head, model->head_dim, nullptr};
    const size_t n = static_cast<size_t>(cache->layers) * rows * cache->heads * 2 * cache->head_size();
    // Fresh pages are zeros and cost nothing until they are written.
    cache->data.reset(static_cast<uint16_t*>(std::calloc(n, sizeof(uint16_t))));
    return cache->data ? cache.release() : nullptr;
} catch (const std::bad_alloc&) {
    return nullptr;
}

CG2_API void cg2_cache_free(cg2_cache* cache) { delete cache; }

CG2_API int32_t cg2_cache_copy(const cg2_cache* from, cg2_cache* to, const int32_t* rows, int32_t n, const int32_t* lengths) {
    if (n > to->rows || from->layers != to->layers || from->heads != to->heads || from->head_dim != to->head_dim) return 1;
    for (int i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= from->rows || lengths[i] < 0 || lengths[i] > from->capacity || lengths[i] > to->capacity) return 1;
    for (int l = 0; l < from->layers; l++)
        for (int i = 0; i < n; i++)
            for (int h = 0; h < from->heads; h++) {
                const size_t D = static_cast<size_t>(from->head_dim), length = static_cast<size_t>(lengths[i]);
                const size_t whole = static_cast<size_t>(round_up(lengths[i], 16));  // keys lie in panels of 16
                std::memcpy(to->keys(l, i, h), from->keys(l, rows[i], h), whole * D * sizeof(uint16_t));
                std::memcpy(to->values(l, i, h), from->values(l, rows[i], h), length * D * sizeof(uint16_t));
            }
    return 0;
}

CG2_API int32_t cg2_forward(cg2_model* model, cg2_cache* cache, int32_t m, const int32_t* ids, const int32_t* rows,
                            const int32_t* positions, int32_t n_wanted, const int32_t* wanted, float* logits,
                            float* hidden, const volatile int32_t* cancel) try {
    const cg2_shape& s = model->shape;
    for (int i = 0; i < m; i++) {
        if (ids[i] < 0 || ids[i] >= s.vocab_size || rows[i] < 0 || rows[i] >= cache->rows) return 2;
        if (positions[i] < 0 || positions[i] >= s.n_ctx || positions[i] >= cache->capacity) return 2;
        if (i && rows[i] == rows[i - 1] && positions[i] != positions[i - 1] + 1) return 2;
    }
    for (int i = 0; i < n_wanted; i++)
        if (wanted[i] < (i ? wanted[i - 1] + 1 : 0) || wanted[i] >= m) return 2;
    const Pool::Use use(Pool::the());
    const Kernels& k = kernels();
    const int chunks = (m + kMostTokens - 1) / kMostTokens;
    const int size = chunks ? static_cast<int>(round_up((m + chunks - 1) / chunks, 12)) : 1;
    for (int begin = 0; begin < m; begin += size) {
        const int n = m - begin < size ? m - begin : size;
        const int status = model->chunk(k, *cache, n, ids + begin, rows + begin, positions + begin, n_wanted, wanted, begin,
                                        logits, hidden ? hidden + static_cast<int64_t>(begin) * s.n_embd : nullptr, cancel);
        if (status) return status;
        while (logits && n_wanted && *wanted < begin + n) {  // the chunk has written these
            logits += s.vocab_size;
            wanted++;
            n_wanted--;
        }
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 3;
}

CG2_API int32_t cg2_logprobs(cg2_model* model, const float* hidden, const int32_t* targets, int32_t m, float* out,
                             const volatile int32_t* cancel) try {
    const cg2_shape& s = model->shape;
    for (int i = 0; i < m; i++)
        if (targets[i] < 0 || targets[i] >= s.vocab_size) return 2;
    const Pool::Use use(Pool::the());
    const Kernels& k = kernels();
    for (int begin = 0; begin < m; begin += kMostHeadTokens) {
        const int n = m - begin < kMostHeadTokens ? m - begin : kMostHeadTokens;
        const Acts a = model->acts_head.get(n, model->head.kp, s.float_activations || model->head.kind <= kBFloat16);
        const int64_t Vp = model->head.np;
        float* wide = model->logits.get(static_cast<size_t>(n) * Vp);
        if (!model->put_rows(k, hidden + static_cast<int64_t>(begin) * s.n_embd, s.n_embd, nullptr, nullptr, nullptr, a, cancel) ||
            !model->linear(k, model->head, a, {wide, Vp, model->head_bias.data(), false}, cancel) ||
            !Pool::the().each(n, cancel, [&](int i, int) {
                const float* row = wide + i * Vp;
                out[begin + i] = row[targets[begin + i]] - k.log_sum_exp(row, s.vocab_size);
            }))
            return 1;
    }
    return 0;
} catch (const std::bad_alloc&) {
    return 3;
}

CG2_API int32_t cg2_linear(const cg2_matrix* matrix, const float* x, int32_t m, int32_t float_activations, float* y) try {
    const View w = view_of(*matrix);
    const Kernels& k = kernels();
    const Pool::Use use(Pool::the());
    ActsBuffer buffer;
    const Acts a = buffer.get(m, w.kp, float_activations || w.kind <= kBFloat16);
    std::vector<float> row(static_cast<size_t>(w.kp), 0.0f), wide(static_cast<size_t>(m) * w.np);
    for (int i = 0; i < m; i++) {
        std::memcpy(row.data(), x + static_cast<int64_t>(i) * w.k, static_cast<size_t>(w.k) * sizeof(float));
        k.put(row.data(), 0, w.kp, w.kp, a, i);
    }
    k.linear(w, 0, w.panels(), a, {wide.data(), w.np, nullptr, false});
    for (int i = 0; i < m; i++) std::memcpy(y + static_cast<int64_t>(i) * w.n, wide.data() + i * w.np, static_cast<size_t>(w.n) * sizeof(float));
    return 0;
} catch (const std::bad_alloc&) {
    return 3;
}
