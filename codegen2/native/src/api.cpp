// The C interface: what a caller may get wrong is checked here, and calls are cut into chunks.
#include <cstdio>
#include "model.h"
#include "pool.h"

namespace {

// Tokens of a chunk. Off tiles its int8 activations and a panel fit a core's second-level cache; on tiles a span of them
// does, and weights are read half as often. Whole tiles of either kind.
constexpr int kMostTokens = 348, kMostTiled = 512;
constexpr int kMostHeadTokens = 64;  // whose logits are computed at once where only their log-sum-exp is wanted

std::vector<float> padded(const float* from, int64_t n) {
    std::vector<float> out(static_cast<size_t>(round_up(n, kPanel)), 0.0f);
    std::memcpy(out.data(), from, static_cast<size_t>(n) * sizeof(float));
    return out;
}

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

CG2_API int32_t cg2_abi() { return 3; }

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
    *cache = {rows, static_cast<int32_t>(round_up(capacity, 16)), model->shape.n_layer, model->shape.n_head, model->head_dim,
              model->layers[0].qkv.kind == kFloat32, nullptr};
    const size_t n = static_cast<size_t>(cache->layers) * rows * cache->heads * 2;
    // Fresh pages are zeros and cost nothing until they are written.
    cache->data.reset(static_cast<uint8_t*>(std::calloc(n, cache->head_size())));
    return cache->data ? cache.release() : nullptr;
} catch (const std::bad_alloc&) {
    return nullptr;
}

CG2_API void cg2_cache_free(cg2_cache* cache) { delete cache; }

CG2_API int32_t cg2_cache_copy(const cg2_cache* from, cg2_cache* to, const int32_t* rows, int32_t n, const int32_t* lengths) {
    if (n > to->rows || from->layers != to->layers || from->heads != to->heads || from->head_dim != to->head_dim || from->wide != to->wide)
        return 1;
    for (int i = 0; i < n; i++)
        if (rows[i] < 0 || rows[i] >= from->rows || lengths[i] < 0 || lengths[i] > from->capacity || lengths[i] > to->capacity) return 1;
    for (int l = 0; l < from->layers; l++)
        for (int i = 0; i < n; i++)
            for (int h = 0; h < from->heads; h++) {
                const size_t length = static_cast<size_t>(lengths[i]);
                const size_t whole = static_cast<size_t>(round_up(lengths[i], 16));  // keys lie in panels of 16
                std::memcpy(to->keys(l, i, h), from->keys(l, rows[i], h), whole * from->each());
                std::memcpy(to->values(l, i, h), from->values(l, rows[i], h), length * from->each());
            }
    return 0;
}

CG2_API int32_t cg2_one_arithmetic(const cg2_model* model) { return !(model->rounded() && kernels().tiles); }

CG2_API int32_t cg2_forward(cg2_model* model, cg2_cache* cache, int32_t m, const int32_t* ids, const int32_t* rows,
                            const int32_t* positions, int32_t prompt, int32_t n_wanted, const int32_t* wanted,
                            float* logits, float* hidden, const volatile int32_t* cancel) try {
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
    const Tiles* const tiles = prompt && model->rounded() ? k.tiles : nullptr;
    const int most = tiles ? kMostTiled : kMostTokens, chunks = (m + most - 1) / most;
    const int size = m ? static_cast<int>(round_up((m + chunks - 1) / chunks, tiles ? 32 : 12)) : 0;
    for (int begin = 0; begin < m; begin += size) {
        const int now = m - begin < size ? m - begin : size;
        const int status = model->chunk({k, tiles, cancel}, *cache, now, ids + begin, rows + begin, positions + begin, n_wanted,
                                        wanted, begin, logits, hidden ? hidden + static_cast<int64_t>(begin) * s.n_embd : nullptr);
        if (status) return status;
        while (logits && n_wanted && *wanted < begin + now) {  // the chunk has written these
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
        const Pass pass{k, nullptr, cancel};
        if (!model->put_rows(pass, hidden + static_cast<int64_t>(begin) * s.n_embd, s.n_embd, nullptr, nullptr, nullptr, a) ||
            !model->head_linear(pass, a, wide) ||
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

CG2_API void cg2_weigh(const float* logits, int32_t n, const uint8_t* banned, float top, float temperature, float* out,
                       double* sums) {
    kernels().weigh(logits, n, banned, top, temperature, out, sums);
}

CG2_API int32_t cg2_linear(const cg2_matrix* matrix, const float* x, int32_t m, int32_t arithmetic, float* y) try {
    const View w = view_of(*matrix);
    const Kernels& k = kernels();
    const Pool::Use use(Pool::the());
    ActsBuffer buffer;
    Buffer<float> scratch;
    const bool floating = arithmetic == 1 || w.kind <= kBFloat16;
    const Tiles* const tiles = arithmetic == 2 && !floating ? k.tiles : nullptr;
    const Acts a = buffer.get(m, w.kp, floating, tiles);
    std::vector<float> row(static_cast<size_t>(w.kp), 0.0f), wide(static_cast<size_t>(m) * w.np);
    for (int i = 0; i < m; i++) {
        std::memcpy(row.data(), x + static_cast<int64_t>(i) * w.k, static_cast<size_t>(w.k) * sizeof(float));
        if (tiles) tiles->put(row.data(), 0, w.kp, w.kp, false, a, i);
        else k.put(row.data(), 0, w.kp, w.kp, a, i);
    }
    const Out out{wide.data(), w.np, nullptr, false};
    if (tiles) tiles->linear(w, 0, w.panels(), a, out, scratch.get(tiles_scratch(m, 0)));
    else k.linear(w, 0, w.panels(), a, out);
    for (int i = 0; i < m; i++) std::memcpy(y + static_cast<int64_t>(i) * w.n, wide.data() + i * w.np, static_cast<size_t>(w.n) * sizeof(float));
    return 0;
} catch (const std::bad_alloc&) {
    return 3;
}
