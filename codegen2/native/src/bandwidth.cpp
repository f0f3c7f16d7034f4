// How fast this machine reads memory: the bound on how fast any engine can write tokens.
#include <atomic>
#include <chrono>
#include "kernels.h"
#include "pool.h"

CG2_API double cg2_read_bandwidth(const void* data, int64_t bytes, int32_t pattern, int32_t repeats) {
    const Kernels& k = kernels();
    Pool& pool = Pool::the();
    const Pool::Use use(pool);
    const int n = pool.threads();
    const int64_t part = bytes / n / 4096 * 4096;
    std::atomic<uint64_t> seen{0};  // keeps the reads from being optimised away
    double best = -1.0;
    for (int r = 0; r < repeats; r++) {
        std::atomic<bool> known{true};
        const auto begin = std::chrono::steady_clock::now();
        pool.each(n, nullptr, [&](int item, int) {
            const uint64_t x = k.read(static_cast<const uint8_t*>(data) + item * part, part, pattern);
            if (!x) known = false;
            seen += x;
        });
        if (!known) return -1.0;
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        const double rate = static_cast<double>(part) * n / seconds / 1e9;
        best = rate > best ? rate : best;
    }
    return best;
}
