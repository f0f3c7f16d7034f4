// Do two cores sit on one die? How long a word takes from one to the other, and how fast both together read memory.
//
//     g++ -O3 -march=native -pthread benchmarks/core_pair.cpp -o /tmp/core_pair && /tmp/core_pair [TIMES]
//
// On a server whose dies reach memory by a link each, a virtual machine's cores may be moved together or apart while it
// runs: together they share one link, apart each has its own, and what "the memory's limit" is changes by two thirds.
#include <sched.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kTurns = 40'000;
constexpr size_t kBytes = size_t{1} << 29;  // read by each thread
volatile uint64_t sink;

void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    sched_setaffinity(0, sizeof set, &set);
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Both threads; f(thread) runs pinned to core `thread`.
template <class F> void on_two_cores(F f) {
    std::thread other([&] { pin(1), f(1); });
    std::thread one([&] { pin(0), f(0); });
    one.join();
    other.join();
}

double one_way_ns() {
    alignas(64) static std::atomic<int> word;
    word = 0;
    double seconds = 0;
    on_two_cores([&](int me) {
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < kTurns; i++) {
            while (word.load(std::memory_order_acquire) != 2 * i + me) {}
            word.store(2 * i + me + 1, std::memory_order_release);
        }
        if (!me) seconds = seconds_since(begin);
    });
    return seconds / kTurns / 2 * 1e9;
}

uint64_t read_four_streams(const uint64_t* p) {
    constexpr size_t part = kBytes / sizeof *p / 4;
    uint64_t sums[4] = {};
    for (size_t i = 0; i < part; i += 8)
        for (size_t s = 0; s < 4; s++)
            for (size_t k = 0; k < 8; k++) sums[s] += p[s * part + i + k];
    return sums[0] + sums[1] + sums[2] + sums[3];
}

double gb_s(const std::vector<uint64_t>* memory) {
    const auto begin = std::chrono::steady_clock::now();
    on_two_cores([&](int me) { sink = read_four_streams(memory[me].data()); });
    return 2 * kBytes / seconds_since(begin) / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
    const int times = argc > 1 ? std::atoi(argv[1]) : 10;
    const std::vector<uint64_t> memory[2] = {std::vector<uint64_t>(kBytes / 8, 1), std::vector<uint64_t>(kBytes / 8, 1)};
    for (int i = 0; i < times; i++) {
        double ns = one_way_ns(), rate = gb_s(memory);
        for (int again = 0; again < 2; again++) ns = std::min(ns, one_way_ns()), rate = std::max(rate, gb_s(memory));
        std::printf("%4.0f ns from core to core, %5.1f GB/s by both\n", ns, rate);
        std::fflush(stdout);
        std::this_thread::sleep_for(std::chrono::seconds(1));
    }
}
