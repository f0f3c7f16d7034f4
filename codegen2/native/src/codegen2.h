// The C interface of the native engine; codegen2/native/__init__.py mirrors it. Nothing here throws or keeps a pointer
// longer than a call, but for what cg2_model_new is given: weights stay where the caller mapped them.
//
// Letters: M tokens in a call, C n_embd, V vocab, N out, K in.
#pragma once
#include <cstdint>

#define CG2_API extern "C" __attribute__((visibility("default")))

enum Kind : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kInt4 = 3 };

struct cg2_shape {
    int32_t vocab_size, n_ctx, n_embd, n_layer, n_head, rotary_dim;
    float layer_norm_epsilon;
    int32_t float_activations;  // 1: activations stay float32, whatever the weights are
};

struct cg2_matrix {
    const void* data;    // packed as layout.h draws it
    const float* scale;  // (Np,) for int8, else null
    int32_t kind, n, k;
};

struct cg2_model;
struct cg2_cache;

CG2_API int32_t cg2_abi();

// Instruction sets that this machine has, best first, separated by blanks; choosing one gives 0, or 1 if it is not there.
CG2_API const char* cg2_isas();
CG2_API int32_t cg2_set_isa(const char* name);

// Threads of the process's pool, 1 to 256; gives the number that is used.
CG2_API int32_t cg2_set_threads(int32_t n);

// Pack rows (n, k) of float32 into out, scales into scale (Np,) for int8. Gives 1 for values that are not finite.
CG2_API int64_t cg2_packed_bytes(int32_t kind, int32_t n, int32_t k);
CG2_API int32_t cg2_pack(int32_t kind, const float* w, int32_t n, int32_t k, void* out, float* scale);

// matrices: wte (data null where the head is the embedding), lm_head, then qkv_proj, out_proj, fc_in, fc_out of every
// layer. vectors: cos and sin (n_ctx, R/2), ln_f weight and bias, lm_head bias, then ln_1 weight and bias, fc_in bias,
// fc_out bias of every layer. Gives null and a sentence in error for a shape that does not fit.
CG2_API cg2_model* cg2_model_new(const cg2_shape* shape, const cg2_matrix* matrices, const float* const* vectors,
                                 char* error, int32_t error_size);
CG2_API void cg2_model_free(cg2_model* model);

// Keys and values of `rows` rows of `capacity` tokens, in 16 bits; null when there is no memory.
CG2_API cg2_cache* cg2_cache_new(const cg2_model* model, int32_t rows, int32_t capacity);
CG2_API void cg2_cache_free(cg2_cache* cache);

// Row i of `to` becomes the first lengths[i] tokens of row rows[i] of `from`. Gives 1 when they do not fit.
CG2_API int32_t cg2_cache_copy(const cg2_cache* from, cg2_cache* to, const int32_t* rows, int32_t n,
                               const int32_t* lengths);

// Whether decode steps compute as a prompt does, bit by bit: everywhere but where prompts go on matrix tiles.
CG2_API int32_t cg2_one_arithmetic(const cg2_model* model);

// Take in M tokens: ids, the cache row of each and its position; tokens of one row stand together, positions rising by 1.
// prompt: 1 where all of them are read as a prompt, 0 for decode steps; see cg2_one_arithmetic.
// logits (n_wanted, V) of the tokens whose numbers (rising) are in `wanted`; hidden (M, C) after the last LayerNorm;
// either may be null. cancel: looked at between pieces of work. Gives 0, 1 cancelled, 2 for arguments out of range.
CG2_API int32_t cg2_forward(cg2_model* model, cg2_cache* cache, int32_t m, const int32_t* ids, const int32_t* rows,
                            const int32_t* positions, int32_t prompt, int32_t n_wanted, const int32_t* wanted,
                            float* logits, float* hidden, const volatile int32_t* cancel);

// log p (nats) of targets (M,) by the head, from hidden (M, C). Gives what cg2_forward gives.
CG2_API int32_t cg2_logprobs(cg2_model* model, const float* hidden, const int32_t* targets, int32_t m, float* out,
                             const volatile int32_t* cancel);

// out (V,) = e^((logits - top) / temperature), 0 where banned (V,), which may be null; sums: of every 256 of them.
CG2_API void cg2_weigh(const float* logits, int32_t n, const uint8_t* banned, float top, float temperature, float* out,
                       double* sums);

// y (M, N) = x (M, K) times a packed matrix, for tests. arithmetic: 0 a decode step's, 1 with float activations, 2 a prompt's.
CG2_API int32_t cg2_linear(const cg2_matrix* matrix, const float* x, int32_t m, int32_t arithmetic, float* y);

// Read bytes once with all threads by one of the patterns 0, 1, ... and give GB/s; negative where there is no such pattern.
CG2_API double cg2_read_bandwidth(const void* data, int64_t bytes, int32_t pattern, int32_t repeats);
