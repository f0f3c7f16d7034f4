// Checks the native engine without Python: every instruction set against the scalar one, tiles against their own twin, a
// small model's prefill against its single steps, a cache copied and cut back, a cancelled call, odd arguments. Prints one line and exits with 0 if all
// hold. For machines that only run programs (another processor under an emulator) and for builds with sanitizers.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>
#include "codegen2.h"
#include "half.h"
#include "layout.h"

namespace {

int failures = 0;

void expect(bool good, const std::string& what) {
    if (good) return;
    failures++;
    std::printf("FAILED: %s\n", what.c_str());
}

std::mt19937 generator(1);

std::vector<float> normal(size_t n, float spread) {
    std::normal_distribution<float> draw(0.0f, spread);
    std::vector<float> out(n);
    for (float& x : out) x = draw(generator);
    return out;
}

std::vector<std::string> isas() {
    std::istringstream words(cg2_isas());
    std::vector<std::string> found;
    for (std::string word; words >> word;) found.push_back(word);
    return found;
}

struct Aligned {  // packed weights begin at a cache line, as in a mapped file
    std::vector<uint8_t> memory;
    uint8_t* data;
    explicit Aligned(size_t n) : memory(n + 64) {
        data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    }
};

struct Packed {
    Aligned bytes;
    std::vector<float> scale;
    cg2_matrix matrix;
    Packed(int kind, int n, int k, float spread)
        : bytes(static_cast<size_t>(cg2_packed_bytes(kind, n, k))), scale(static_cast<size_t>(round_up(n, kPanel)), 0.0f) {
        const auto w = normal(static_cast<size_t>(n) * k, spread);
        expect(cg2_pack(kind, w.data(), n, k, bytes.data, scale.data()) == 0, "packing");
        matrix = {bytes.data, kind == kInt8 ? scale.data() : nullptr, kind, n, k};
    }
};

// Tiles round activations, and int4 weights, span by span of 512 columns (tiles_linear.h): the same, one value at a time.
struct TileTwin {
    const cg2_matrix& w;
    int64_t kp, columns;

    int q4(int row, int64_t c) const {
        const uint8_t byte = block(row, c)[64 + c % 64 / 8 * 64 + row % 16 * 4 + c % 4];
        return (c % 8 < 4 ? byte & 15 : byte >> 4) - 8;
    }
    float s4(int row, int64_t c) const {
        return half_to_float(reinterpret_cast<const uint16_t*>(block(row, c))[c % 64 / kGroup * 16 + row % 16]);
    }
    const uint8_t* block(int row, int64_t c) const {
        return static_cast<const uint8_t*>(w.data) + row / 16 * static_cast<int64_t>(panel_bytes(kInt4, kp)) + c / 64 * static_cast<int64_t>(kInt4Block);
    }

    // Whole numbers of a row's span, and what they are multiplied with.
    float span(int row, int64_t begin, std::vector<int>& out) const {
        const int64_t end = begin + 512 < kp ? begin + 512 : kp;
        out.clear();
        if (w.kind == kInt8) {
            const uint8_t* panel = static_cast<const uint8_t*>(w.data) + row / 16 * static_cast<int64_t>(panel_bytes(kInt8, kp));
            for (int64_t c = begin; c < end; c++) out.push_back(panel[c / 4 * 64 + row % 16 * 4 + c % 4] - 128);
            return w.scale[row];
        }
        float widest = 0.0f;
        for (int64_t c = begin; c < end; c += kGroup) widest = std::fmax(widest, std::fabs(s4(row, c)));
        const float inverse = widest > 0.0f ? 32512.0f / widest : 0.0f;
        for (int64_t c = begin; c < end; c++)
            out.push_back((q4(row, c) * 16 * static_cast<int>(std::nearbyint(s4(row, c) * inverse)) + (1 << 14)) >> 15);
        return widest * (8.0f / 127.0f);
    }

    // Token x (K) times a row; with it the sum of the products' sizes.
    double product(const float* x, int row, double& size) const {
        double total = 0;
        std::vector<int> weights;
        for (int64_t begin = 0; begin < kp; begin += 512) {
            const float scale = span(row, begin, weights);
            float widest = 0.0f;
            for (size_t i = 0; i < weights.size(); i++) widest = std::fmax(widest, std::fabs(at(x, begin, i)));
            const float inverse = widest > 0.0f ? 127.0f / widest : 0.0f, step = widest / 127.0f;
            int64_t sum = 0;
            for (size_t i = 0; i < weights.size(); i++) {
                sum += weights[i] * static_cast<int64_t>(std::nearbyint(at(x, begin, i) * inverse));
                size += std::fabs(double{at(x, begin, i)} * weights[i] * scale);
            }
            total += static_cast<double>(sum) * step * scale;
        }
        return total;
    }
    float at(const float* x, int64_t begin, size_t i) const {
        const int64_t c = begin + static_cast<int64_t>(i);
        return c < columns ? x[c] : 0.0f;
    }
};

bool on_tiles(const std::string& isa, int kind, int floating) { return isa == "amx" && kind >= kInt8 && !floating; }

void check_tiles() {
    if (cg2_set_isa("amx")) return;
    const int shapes[][3] = {{2, 16, 64}, {3, 300, 1100}, {17, 16, 64}, {31, 50, 100}, {32, 33, 512}, {33, 16, 513}, {48, 130, 1000}, {70, 64, 1600}, {530, 33, 2048}};
    for (int kind = kInt8; kind <= kInt4; kind++)
        for (const auto& s : shapes) {
            const int m = s[0], n = s[1], k = s[2];
            Packed w(kind, n, k, 0.1f);
            auto x = normal(static_cast<size_t>(m) * k, 1.0f);
            for (int c = 0; c < k; c++) x[static_cast<size_t>(k) + c] = 0.0f;  // a token of nothing
            x[5] = 1000.0f;                                                     // a large channel
            std::vector<float> y(static_cast<size_t>(m) * n);
            cg2_linear(&w.matrix, x.data(), m, 2, y.data());
            const TileTwin twin{w.matrix, round_up(k, kBlock), k};
            double worst = 0;
            for (int i = 0; i < m; i += m > 100 ? 7 : 1)
                for (int row = 0; row < n; row++) {
                    double size = 1e-9;
                    const double right = twin.product(&x[static_cast<size_t>(i) * k], row, size);
                    worst = std::fmax(worst, std::fabs(right - y[static_cast<size_t>(i) * n + row]) / size);
                }
            expect(worst <= 1e-5, "tiles differ from their twin, kind " + std::to_string(kind) + ", m " + std::to_string(m) + ": " + std::to_string(worst));
        }
}

void check_linear() {
    const int shapes[][3] = {{1, 16, 64}, {2, 48, 128}, {3, 50, 100}, {7, 33, 65}, {14, 130, 320}, {31, 64, 1000}};
    for (int kind = 0; kind < 4; kind++)
        for (const auto& s : shapes)
            for (int floating = 0; floating < 2; floating++) {
                const int m = s[0], n = s[1], k = s[2];
                Packed w(kind, n, k, 0.1f);
                const auto x = normal(static_cast<size_t>(m) * k, 1.0f);
                std::vector<float> plain(static_cast<size_t>(m) * n), y(plain.size());
                cg2_set_isa("scalar");
                cg2_linear(&w.matrix, x.data(), m, floating, plain.data());
                for (const std::string& isa : isas()) {
                    expect(cg2_set_isa(isa.c_str()) == 0, "choosing " + isa);
                    cg2_linear(&w.matrix, x.data(), m, floating, y.data());
                    double worst = 0;
                    for (size_t i = 0; i < y.size(); i++) worst = std::fmax(worst, std::fabs(y[i] - plain[i]));
                    expect(worst <= 2e-4, isa + " differs from scalar, kind " + std::to_string(kind) + ": " + std::to_string(worst));
                }
            }
}

// A prompt on tiles: near a decode step's logits, and bit by bit the same however it is cut, beside another row, and by
// other threads.
void check_cuts(cg2_model* model, int T, int V, int n_ctx, const std::vector<int32_t>& ids, const std::vector<float>& whole) {
    std::vector<int32_t> both(ids), rows(T, 0), positions(T), all(2 * T);
    both.insert(both.end(), ids.begin(), ids.end());
    for (int i = 0; i < T; i++) positions[i] = i;
    rows.insert(rows.end(), T, 1);
    for (int i = 0; i < T; i++) positions.push_back(i);
    for (int i = 0; i < 2 * T; i++) all[i] = i;
    std::vector<float> y(2 * whole.size());
    cg2_cache* cache = cg2_cache_new(model, 2, n_ctx);
    for (const int size : {1, 5, 16, 17, 100, 277}) {
        std::fill(y.begin(), y.end(), 0.0f);
        for (int i = 0; i < T; i += size) {
            const int n = T - i < size ? T - i : size;
            expect(!cg2_forward(model, cache, n, &ids[i], rows.data(), &positions[i], 1, n, all.data(), &y[static_cast<size_t>(i) * V], nullptr, nullptr), "a piece");
        }
        expect(!std::memcmp(y.data(), whole.data(), whole.size() * sizeof(float)), "pieces of " + std::to_string(size) + " on tiles differ from the whole");
    }
    for (const int threads : {1, 3, 2}) {
        cg2_set_threads(threads);
        expect(!cg2_forward(model, cache, 2 * T, both.data(), rows.data(), positions.data(), 1, 2 * T, all.data(), y.data(), nullptr, nullptr), "two rows");
        for (int row = 0; row < 2; row++)
            expect(!std::memcmp(&y[row * whole.size()], whole.data(), whole.size() * sizeof(float)), "a row on tiles differs beside another");
    }
    // A row of one token beside one of many is what it is alone.
    expect(!cg2_forward(model, cache, T + 1, both.data(), rows.data(), positions.data(), 1, T + 1, all.data(), y.data(), nullptr, nullptr), "many and one");
    expect(!std::memcmp(&y[whole.size()], whole.data(), V * sizeof(float)), "a row of one token differs beside one of many");
    expect(!std::memcmp(y.data(), whole.data(), whole.size() * sizeof(float)), "a row on tiles differs beside one of one token");
    expect(!cg2_forward(model, cache, T, ids.data(), rows.data(), positions.data(), 0, T, all.data(), y.data(), nullptr, nullptr), "without tiles");
    double off = 0, size = 0;
    for (size_t i = 0; i < whole.size(); i++) off += (y[i] - whole[i]) * double{y[i] - whole[i]}, size += y[i] * double{y[i]};
    expect(off > 0, "a decode step went on tiles");
    expect(off <= 0.05 * 0.05 * size, "tiles are far from decode steps: " + std::to_string(std::sqrt(off / size)));
    cg2_cache_free(cache);
}

void check_model(const std::string& isa, int kind, int floating, int n_head, int head) {
    expect(cg2_set_isa(isa.c_str()) == 0, "choosing " + isa);
    const int C = n_head * head, V = 77, L = 2, n_ctx = 320, half = head / 4;
    const cg2_shape shape = {V, n_ctx, C, L, n_head, 2 * half, 1e-5f, floating};
    std::vector<Packed> weights;
    weights.reserve(2 + 4 * L);
    weights.emplace_back(kind, V, C, 0.3f);
    weights.emplace_back(kind, V, C, 0.3f);
    for (int l = 0; l < L; l++) {
        weights.emplace_back(kind, 3 * C, C, 0.1f);
        weights.emplace_back(kind, C, C, 0.1f);
        weights.emplace_back(kind, 4 * C, C, 0.1f);
        weights.emplace_back(kind, C, 4 * C, 0.1f);
    }
    std::vector<cg2_matrix> matrices;
    for (const Packed& w : weights) matrices.push_back(w.matrix);
    std::vector<std::vector<float>> vectors = {normal(static_cast<size_t>(n_ctx) * half, 0.7f), normal(static_cast<size_t>(n_ctx) * half, 0.7f),
                                               normal(C, 1.0f), normal(C, 0.1f), normal(V, 0.1f)};
    for (int l = 0; l < L; l++)
        for (const int n : {C, C, 4 * C, C}) vectors.push_back(normal(static_cast<size_t>(n), 0.5f));
    std::vector<const float*> pointers;
    for (const auto& v : vectors) pointers.push_back(v.data());
    char error[200] = "";
    cg2_model* model = cg2_model_new(&shape, matrices.data(), pointers.data(), error, sizeof error);
    expect(model != nullptr, std::string("model: ") + error);
    if (!model) return;

    const int T = isa == "scalar" ? 40 : 300;
    std::vector<int32_t> ids(T), rows(T, 0), positions(T), all(T);
    for (int i = 0; i < T; i++) {
        ids[i] = static_cast<int32_t>(generator() % V);
        positions[i] = all[i] = i;
    }
    std::vector<float> whole(static_cast<size_t>(T) * V), hidden(static_cast<size_t>(T) * C), step(V), lp(T);
    cg2_cache* cache = cg2_cache_new(model, 1, n_ctx);
    expect(!cg2_forward(model, cache, T, ids.data(), rows.data(), positions.data(), 1, T, all.data(), whole.data(), hidden.data(), nullptr), "forward");
    for (const float x : whole) expect(std::isfinite(x), "a logit is no number");
    if (on_tiles(isa, kind, floating)) {
        check_cuts(model, T, V, n_ctx, ids, whole);
        // Decode steps are compared with a whole of their own.
        expect(!cg2_forward(model, cache, T, ids.data(), rows.data(), positions.data(), 0, T, all.data(), whole.data(), hidden.data(), nullptr), "forward");
    }
    expect(cg2_one_arithmetic(model) == !on_tiles(isa, kind, floating), "one arithmetic");
    // Half at once, the rest step by step behind a copy of the cache.
    const int32_t zero = 0, before = T - 4;
    cg2_cache* copy = cg2_cache_new(model, 2, n_ctx);
    const int32_t both[] = {0, 0}, lengths[] = {before, before};
    expect(!cg2_cache_copy(cache, copy, both, 2, lengths), "copying a cache");
    for (int i = before; i < T; i++) {
        const int32_t row = 1, position = i;
        expect(!cg2_forward(model, copy, 1, &ids[i], &row, &position, 0, 1, &zero, step.data(), nullptr, nullptr), "a step");
        expect(!std::memcmp(step.data(), &whole[static_cast<size_t>(i) * V], V * sizeof(float)), isa + ": a step differs from the whole");
    }
    expect(!cg2_logprobs(model, hidden.data(), ids.data(), T, lp.data(), nullptr), "logprobs");
    for (const float x : lp) expect(x < 1e-4f, "a probability above 1");

    const int32_t cancelled = 1, wrong = V, far = n_ctx;
    expect(cg2_forward(model, cache, T, ids.data(), rows.data(), positions.data(), 0, 0, nullptr, nullptr, nullptr, &cancelled) == 1, "cancelling");
    expect(cg2_forward(model, cache, 1, &wrong, &zero, &zero, 0, 0, nullptr, nullptr, nullptr, nullptr) == 2, "an id out of range");
    expect(cg2_forward(model, cache, 1, &zero, &zero, &far, 0, 0, nullptr, nullptr, nullptr, nullptr) == 2, "a position out of range");
    expect(cg2_forward(model, cache, 1, &zero, &far, &zero, 0, 0, nullptr, nullptr, nullptr, nullptr) == 2, "a row out of range");
    expect(cg2_logprobs(model, hidden.data(), &wrong, 1, lp.data(), nullptr) == 2, "a target out of range");
    cg2_cache_free(copy);
    cg2_cache_free(cache);
    cg2_model_free(model);
}

// Activations and scales that are no numbers, and weights too small to be divided: the sanitizer sees what overflows.
void check_no_numbers() {
    const int m = 2, n = 16, k = 64;
    for (const std::string& isa : isas())
        for (int kind = kInt8; kind <= kInt4; kind++)
            for (const float value : {NAN, INFINITY, -INFINITY, 3e38f})
                for (int where = 0; where < 2; where++) {
                    cg2_set_isa(isa.c_str());
                    Packed w(kind, n, k, 0.1f);
                    std::vector<float> x(static_cast<size_t>(m) * k, 1.0f), y(static_cast<size_t>(m) * n);
                    if (!where) x[7] = value;
                    if (where && kind == kInt8) w.scale[3] = value;
                    if (where && kind == kInt4) reinterpret_cast<uint16_t*>(w.bytes.data)[3] = float_to_half(value);
                    cg2_linear(&w.matrix, x.data(), m, 0, y.data());
                    expect(!(where && std::isnan(value)) || std::isnan(y[3]), "a damaged scale became a number");
                }
    for (const float small : {1e-45f, 1e-44f, 1e-40f}) {
        std::vector<float> tiny(64, small), scale(16);
        Aligned out(4096);
        tiny[5] = 0.0f;
        for (const int kind : {kInt8, kInt4}) expect(!cg2_pack(kind, tiny.data(), 1, 64, out.data, scale.data()), "packing tiny weights");
    }
}

}  // namespace

int main() {
    cg2_set_threads(2);
    check_no_numbers();
    check_linear();
    check_tiles();
    for (const std::string& isa : isas())
        for (int kind = 0; kind < 4; kind++) {
            check_model(isa, kind, kind == kInt4, 1, 64);
            check_model(isa, kind, 0, 3, 48);
        }
    float bad[16] = {NAN};
    Aligned out(4096);
    expect(cg2_pack(kInt4, bad, 1, 16, out.data, nullptr) == 1, "a NaN was packed");
    expect(cg2_set_isa("mmx") == 1, "an instruction set that is not there");
    std::printf("%s: %s\n", cg2_isas(), failures ? "failed" : "all hold");
    return failures != 0;
}
