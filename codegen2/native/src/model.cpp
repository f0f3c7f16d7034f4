// The forward pass on the CPU: model.py's twin, over packed weights. Chunk by chunk of tokens, layer by layer, in phases
// that the pool deals out:
//
//   norm      x -> activations for the layer's two wide matrices
//   wide      qkv_proj and fc_in, panel by panel
//   between   attention, head by head; gelu, slice by slice; both leave activations
//   narrow    out_proj and fc_out, panel by panel, added to x
//
// Prompts go on tiles where the machine has them (kernels.h), but for the head: so a token's logits from given hidden
// states are the same whether one is asked for or all.
//
// Letters: M tokens of a chunk, C n_embd, V vocab, D head size, R rotary_dim, S cached tokens.
#include "model.h"
#include "half.h"
#include "pool.h"

namespace {

constexpr int64_t kSlice = kSpan;  // columns of gelu that a thread takes at a time: whole spans, too

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

// Panels that a thread takes at a time: enough to stream, few enough that all threads end together. On tiles whole pairs.
int panels_at_once(int panels, int m, bool tiled) {
    const int fewest = tiled ? 2 : m <= 6 ? 4 : 1, most = tiled ? 2 * kTilePairs : m <= 6 ? 32 : 4;
    const int n = panels / (Pool::the().threads() * (tiled ? 4 : 8)) / fewest * fewest;
    return n < fewest ? fewest : n > most ? most : n;
}

// Panels of a chunk's layer, on tiles or not.
void panels(const Pass& p, const Chunk& c, const View& w, int from, int step, const Acts& a, const Out& out, int thread) {
    const int to = from + step < w.panels() ? from + step : w.panels();
    if (p.tiles) p.tiles->linear(w, from, to, a, out, c.scratch_of(thread));
    else p.k.linear(w, from, to, a, out);
}

}  // namespace

bool cg2_model::put_rows(const Pass& p, const float* rows, int64_t ld, const int* which, const float* weight, const float* bias,
                         const Acts& to) {
    const int C = shape.n_embd;
    float* scratch_rows = normed.get(static_cast<size_t>(Pool::the().threads()) * C);
    return Pool::the().each(to.m, p.cancel, [&](int m, int thread) {
        const float* row = rows + (which ? which[m] : m) * ld;
        if (weight) {
            float* out = scratch_rows + static_cast<int64_t>(thread) * C;
            p.k.norm(row, weight, bias, shape.layer_norm_epsilon, C, out);
            row = out;
        }
        if (p.tiles) p.tiles->put(row, 0, to.kp, C, false, to, m);
        else p.k.put(row, 0, to.kp, C, to, m);
    });
}

bool cg2_model::head_linear(const Pass& p, const Acts& a, float* out) {
    const int step = panels_at_once(head.panels(), a.m, false);
    return Pool::the().each((head.panels() + step - 1) / step, p.cancel, [&](int item, int) {
        const int from = item * step, to = from + step < head.panels() ? from + step : head.panels();
        p.k.linear(head, from, to, a, {out, head.np, head_bias.data(), false});
    });
}

bool cg2_model::head_logits(const Pass& p, const Acts& a, float* out) {
    const int64_t V = shape.vocab_size, Vp = head.np;
    if (V == Vp) return head_linear(p, a, out);
    float* wide = logits.get(static_cast<size_t>(a.m) * Vp);
    if (!head_linear(p, a, wide)) return false;
    for (int m = 0; m < a.m; m++) std::memcpy(out + m * V, wide + m * Vp, static_cast<size_t>(V) * sizeof(float));
    return true;
}

Chunk cg2_model::begin_chunk(int m, const int32_t* ids, const int32_t* rows, const int32_t* positions, bool tiled) {
    const int C = shape.n_embd;
    const size_t M = static_cast<size_t>(m), threads = static_cast<size_t>(Pool::the().threads());
    const size_t each = tiled ? tiles_scratch(m, head_dim) : attend_scratch(head_dim);
    Chunk c{m, rows, positions, {}, x.get(M * C), qkv.get(M * layers[0].qkv.np), up.get(M * layers[0].in.np), attention.get(M * C),
            nullptr, (each + 15) / 16 * 16};
    c.scratch = scratch.get(c.scratch_size * threads);
    for (int i = 0; i < m; i++) {
        read_row(embedding, ids[i], c.x + static_cast<int64_t>(i) * C);
        if (i && rows[i] == rows[i - 1]) c.runs.back().n++;
        else c.runs.push_back({i, 1});
    }
    return c;
}

bool cg2_model::wide(const Pass& p, const Layer& layer, const Chunk& c, const Acts& a) {
    const int q_panels = layer.qkv.panels(), u_panels = layer.in.panels();
    const int step = panels_at_once(q_panels + u_panels, c.m, p.tiles);
    const int q_items = (q_panels + step - 1) / step, u_items = (u_panels + step - 1) / step;
    return Pool::the().each(q_items + u_items, p.cancel, [&](int item, int thread) {
        if (item < q_items) panels(p, c, layer.qkv, item * step, step, a, {c.qkv, layer.qkv.np, nullptr, false}, thread);
        else panels(p, c, layer.in, (item - q_items) * step, step, a, {c.up, layer.in.np, layer.in_bias.data(), false}, thread);
    });
}

bool cg2_model::between(const Pass& p, int l, cg2_cache& cache, const Chunk& c, const Acts& a_out, const Acts& a_up) {
    const Layer& layer = layers[static_cast<size_t>(l)];
    const int C = shape.n_embd, H = shape.n_head, D = head_dim, m = c.m;
    const int64_t qkv_np = layer.qkv.np, up_np = layer.in.np;
    const bool by_head = !p.tiles && D % kGroup == 0;  // a head is whole groups, so whoever has it can quantise it at once
    const int64_t slice = m <= 6 ? kSlice : layer.down.kp;  // many tokens: one token is work enough
    const int slices = static_cast<int>((layer.down.kp + slice - 1) / slice);
    const int tokens_at_once = m <= 6 ? m : 4, token_items = (m + tokens_at_once - 1) / tokens_at_once;
    const int heads = static_cast<int>(c.runs.size()) * H;
    const auto attend = [&](int item, int thread) {
        const Chunk::Run run = c.runs[static_cast<size_t>(item / H)];
        const int head = item % H, row = c.rows[run.begin];
        const float* q = c.qkv + run.begin * qkv_np + head * D;
        const Attend a{q, q + C, q + 2 * C, qkv_np, run.n, c.positions[run.begin], cos.data(), sin.data(), shape.rotary_dim / 2, D,
                       cache.keys(l, row, head), cache.values(l, row, head), cache.wide,
                       c.attention + static_cast<int64_t>(run.begin) * C + head * D, C};
        if (p.tiles) p.tiles->attend(a, c.scratch_of(thread));
        else p.k.attend(a, c.scratch_of(thread));
        const int64_t to = head == H - 1 ? a_out.kp : (head + 1) * D;
        for (int i = run.begin; by_head && i < run.begin + run.n; i++)
            p.k.put(c.attention + static_cast<int64_t>(i) * C, head * D, to, C, a_out, i);
    };
    const auto activate = [&](int first, int64_t from, int64_t to) {
        for (int i = first; i < m && i < first + tokens_at_once; i++) {
            float* row = c.up + i * up_np;
            if (p.tiles) {
                p.tiles->put(row, from, to, layer.down.k, true, a_up, i);
                continue;
            }
            const int64_t end = to < up_np ? to : up_np;
            if (end > from) p.k.gelu(row + from, end - from);
            p.k.put(row, from, to, layer.down.k, a_up, i);
        }
    };
    if (!Pool::the().each(heads + slices * token_items, p.cancel, [&](int item, int thread) {
            if (item < heads) return attend(item, thread);
            item -= heads;
            const int64_t from = item % slices * slice;
            activate(item / slices * tokens_at_once, from, from + slice < layer.down.kp ? from + slice : layer.down.kp);
        }))
        return false;
    return by_head || put_rows(p, c.attention, C, nullptr, nullptr, nullptr, a_out);
}

bool cg2_model::narrow(const Pass& p, const Layer& layer, const Chunk& c, const Acts& a_out, const Acts& a_up) {
    const int C = shape.n_embd, step = panels_at_once(layer.out.panels(), c.m, p.tiles), items = (layer.out.panels() + step - 1) / step;
    auto out = [&](int item, int thread) { panels(p, c, layer.out, item * step, step, a_out, {c.x, C, nullptr, true}, thread); };
    auto down = [&](int item, int thread) {
        panels(p, c, layer.down, item * step, step, a_up, {c.x, C, layer.down_bias.data(), true}, thread);
    };
    // On tiles one matrix after the other, so that the smaller one's activations stay in the cache.
    if (p.tiles) return Pool::the().each(items, p.cancel, out) && Pool::the().each(items, p.cancel, down);
    return Pool::the().each(items, p.cancel, [&](int item, int thread) {
        out(item, thread);
        down(item, thread);
    });
}

int cg2_model::chunk(const Pass& p, cg2_cache& cache, int m, const int32_t* ids, const int32_t* rows, const int32_t* positions,
                     int n_wanted, const int32_t* wanted, int32_t offset, float* logits_out, float* hidden_out) {
    const int C = shape.n_embd;
    const bool floating = shape.float_activations || layers[0].qkv.kind <= kBFloat16;  // such weights know float activations only
    const Chunk c = begin_chunk(m, ids, rows, positions, p.tiles);
    for (int l = 0; l < shape.n_layer; l++) {
        const Layer& layer = layers[static_cast<size_t>(l)];
        const Acts a = acts.get(m, layer.qkv.kp, floating, p.tiles);
        if (!put_rows(p, c.x, C, nullptr, layer.norm_weight.data(), layer.norm_bias.data(), a) || !wide(p, layer, c, a)) return 1;
        const Acts a_out = acts.get(m, layer.out.kp, floating, p.tiles), a_up = acts_up.get(m, layer.down.kp, floating, p.tiles);
        if (!between(p, l, cache, c, a_out, a_up) || !narrow(p, layer, c, a_out, a_up)) return 1;
    }
    std::vector<int> which;
    for (int i = 0; i < n_wanted; i++)
        if (logits_out && wanted[i] >= offset && wanted[i] < offset + m) which.push_back(wanted[i] - offset);
    if (hidden_out) {
        if (!Pool::the().each(m, p.cancel, [&](int i, int) {
                p.k.norm(c.x + static_cast<int64_t>(i) * C, final_weight.data(), final_bias.data(), shape.layer_norm_epsilon, C,
                         hidden_out + static_cast<int64_t>(i) * C);
            }))
            return 1;
    }
    if (!which.empty()) {
        const Pass plain{p.k, nullptr, p.cancel};
        const Acts a = acts_head.get(static_cast<int>(which.size()), head.kp, shape.float_activations || head.kind <= kBFloat16);
        if (!put_rows(plain, c.x, C, which.data(), final_weight.data(), final_bias.data(), a)) return 1;
        if (!head_logits(plain, a, logits_out)) return 1;
    }
    return 0;
}
