// Checks the native engine without Python: every instruction set against the scalar one, a small model's prefill against
// its single steps, a cache copied and cut back, a cancelled call, odd arguments. Prints one line and exits with 0 if all
// hold. For machines that only run programs (another processor under an emulator) and for builds with sanitizers.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>
#include "codegen2.h"
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
    expect(!cg2_forward(model, cache, T, ids.data(), rows.data(), positions.data(), T, all.data(), whole.data(), hidden.data(), nullptr), "forward");
    for (const float x : whole) expect(std::isfinite(x), "a logit is no number");
    // Half at once, the rest step by step behind a copy of the cache.
    const int32_t zero = 0, before = T - 4;
    cg2_cache* copy = cg2_cache_new(model, 2, n_ctx);
    const int32_t both[] = {0, 0}, lengths[] = {before, before};
    expect(!cg2_cache_copy(cache, copy, both, 2, lengths), "copying a cache");
    for (int i = before; i < T; i++) {
        const int32_t row = 1, position = i;
        expect(!cg2_forward(model, copy, 1, &ids[i], &row, &position, 1, &zero, step.data(), nullptr, nullptr), "a step");
        expect(!std::memcmp(step.data(), &whole[static_cast<size_t>(i) * V], V * sizeof(float)), isa + ": a step differs from the whole");
    }
    expect(!cg2_logprobs(model, hidden.data(), ids.data(), T, lp.data(), nullptr), "logprobs");
    for (const float x : lp) expect(x < 1e-4f, "a probability above 1");

    const int32_t cancelled = 1, wrong = V, far = n_ctx;
    expect(cg2_forward(model, cache, T, ids.data(), rows.data(), positions.data(), 0, nullptr, nullptr, nullptr, &cancelled) == 1, "cancelling");
    expect(cg2_forward(model, cache, 1, &wrong, &zero, &zero, 0, nullptr, nullptr, nullptr, nullptr) == 2, "an id out of range");
    expect(cg2_forward(model, cache, 1, &zero, &zero, &far, 0, nullptr, nullptr, nullptr, nullptr) == 2, "a position out of range");
    expect(cg2_forward(model, cache, 1, &zero, &far, &zero, 0, nullptr, nullptr, nullptr, nullptr) == 2, "a row out of range");
    expect(cg2_logprobs(model, hidden.data(), &wrong, 1, lp.data(), nullptr) == 2, "a target out of range");
    cg2_cache_free(copy);
    cg2_cache_free(cache);
    cg2_model_free(model);
}

}  // namespace

int main() {
    cg2_set_threads(2);
    check_linear();
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
