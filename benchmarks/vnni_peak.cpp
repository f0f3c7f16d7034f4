// How many int8 products a second this machine's AVX-512-VNNI can make: the bound of prefill, whatever the engine.
//
//     g++ -O2 -mavx512f -mavx512bw -mavx512vnni -pthread benchmarks/vnni_peak.cpp -o /tmp/vnni_peak && /tmp/vnni_peak [THREADS]
//
// The inner loop of a matrix product with nothing around it: one register of weights from the first-level cache against
// 12 tokens whose bytes are broadcast from it, 12 sums in registers. Prints the best and the median of nine runs.
#include <immintrin.h>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr long kRounds = 2'000'000;
constexpr int kTokens = 12, kQuads = 8;
alignas(64) uint8_t weights[64 * kQuads];
alignas(64) int8_t activations[4 * kTokens * kQuads];

int32_t work() {
    __m512i sums[kTokens];
    for (auto& s : sums) s = _mm512_setzero_si512();
    for (long i = 0; i < kRounds; i++) {
#pragma GCC unroll 8
        for (int j = 0; j < kQuads; j++) {
            const __m512i w = _mm512_load_si512(weights + 64 * j);
#pragma GCC unroll 12
            for (int m = 0; m < kTokens; m++) {
                int32_t four;
                std::memcpy(&four, activations + 4 * (j * kTokens + m), 4);
                sums[m] = _mm512_dpbusd_epi32(sums[m], w, _mm512_set1_epi32(four));
            }
        }
        asm volatile("" ::: "memory");  // the loop does the same work each time, and must not be told so
    }
    for (int m = 1; m < kTokens; m++) sums[0] = _mm512_add_epi32(sums[0], sums[m]);
    return _mm512_reduce_add_epi32(sums[0]);
}

double tera_operations(int threads) {
    std::vector<std::thread> all;
    std::vector<int32_t> results(static_cast<size_t>(threads));
    const auto begin = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; t++) all.emplace_back([&results, t] { results[static_cast<size_t>(t)] = work(); });
    for (auto& thread : all) thread.join();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return 2.0 * 64 * kTokens * kQuads * kRounds * threads / seconds / 1e12;
}

}  // namespace

int main(int argc, char** argv) {
    const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
    std::vector<double> found;
    for (int run = 0; run < 9; run++) found.push_back(tera_operations(threads));
    std::sort(found.begin(), found.end());
    std::printf("%d threads: best %.3f, median %.3f TOP/s\n", threads, found.back(), found[found.size() / 2]);
}
