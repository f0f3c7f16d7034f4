#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <new>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// Awake this long without work or news: the pieces of a forward pass follow each other faster, and anything longer would
// take a core from somebody else.
constexpr auto kSpin = std::chrono::microseconds(50);

// An item takes a few milliseconds at most. Waiting longer for one means that its thread has lost its core to somebody
// else: then all threads may go where the kernel puts them, for a while.
constexpr int64_t kLostNs = 20'000'000, kFreeNs = 2'000'000'000;

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spin until ready() or time is up; says whether it is ready.
template <class Ready> bool spin(Ready ready) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; i++) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < until);
    return ready();
}

// A job in one word, so that taking an item proves that the job is still the one that was seen: 24 bits generation, 20
// bits number of items, 20 bits next item.
constexpr int kItemBits = 20;
constexpr uint64_t kItemMask = (1u << kItemBits) - 1;
constexpr uint64_t generation_of(uint64_t word) { return word >> (2 * kItemBits); }
constexpr int items_of(uint64_t word) { return static_cast<int>(word >> kItemBits & kItemMask); }
constexpr int next_of(uint64_t word) { return static_cast<int>(word & kItemMask); }

#if defined(__linux__)
std::vector<int> cores_allowed() {
    cpu_set_t set;
    std::vector<int> cores;
    if (!sched_getaffinity(0, sizeof set, &set))
        for (int c = 0; c < CPU_SETSIZE; c++)
            if (CPU_ISSET(c, &set)) cores.push_back(c);
    return cores;
}

// thread 0 is the calling one. Refused in some containers: then the kernel places the thread.
void allow(long thread, const int* cores, size_t n) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (size_t i = 0; i < n; i++) CPU_SET(cores[i], &set);
    sched_setaffinity(static_cast<pid_t>(thread), sizeof set, &set);
}
#endif

}  // namespace

struct Pool::Shared {
    alignas(64) std::atomic<uint64_t> word{0};
    alignas(64) std::atomic<int> done{0};
    alignas(64) std::atomic<int> asleep{0};
    void (*work)(void*, int, int) = nullptr;
    void* context = nullptr;
    const volatile int32_t* cancel = nullptr;
    std::atomic<bool> cancelled{false}, quit{false};
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> workers;
    std::vector<int> cores;
    std::atomic<long> ids[256] = {};  // of the workers, as the kernel knows them
    bool pinned = false;
};

Pool::Pool() : s_(new Shared), owner_(getpid()) {}

Pool& Pool::the() {
    static Pool* pool = new Pool;  // never destroyed: threads may outlive static objects
    return *pool;
}

int Pool::set_threads(int n) {
    const std::lock_guard<std::mutex> lock(use_);
    n = n < 1 ? 1 : n > 256 ? 256 : n;
    if (n != n_threads_) {
        if (owner_ == getpid()) stop();
        n_threads_ = n;
    }
    return n_threads_;
}

void Pool::start() {
    if (owner_ != getpid()) {  // a child of fork has none of the threads; what they held is left alone
        s_ = new Shared;
        owner_ = getpid();
    }
    if (static_cast<int>(s_->workers.size()) == n_threads_ - 1) return;
#if defined(__linux__)
    s_->cores = cores_allowed();
#endif
    for (int t = static_cast<int>(s_->workers.size()) + 1; t < n_threads_; t++) s_->workers.emplace_back([this, t] { worker(t); });
}

void Pool::stop() {
    {
        const std::lock_guard<std::mutex> lock(s_->mutex);
        s_->quit = true;
    }
    s_->wake.notify_all();
    for (auto& w : s_->workers) w.join();
    s_->workers.clear();
    for (auto& id : s_->ids) id = 0;
    s_->pinned = false;
    s_->quit = false;
}

void Pool::take(uint64_t generation, int thread) {
    uint64_t word = s_->word.load(std::memory_order_acquire);
    while (generation_of(word) == generation && next_of(word) < items_of(word)) {
        if (!s_->word.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel)) continue;
        // The item is ours, so the job cannot end, and its fields cannot change, before `done` has counted it.
        if (s_->cancelled.load(std::memory_order_relaxed) || (s_->cancel && *s_->cancel))
            s_->cancelled.store(true, std::memory_order_relaxed);
        else
            s_->work(s_->context, next_of(word), thread);
        s_->done.fetch_add(1, std::memory_order_release);
        word = s_->word.load(std::memory_order_acquire);
    }
}

// Keep every worker on a core of its own, or let them go where they may.
void Pool::place([[maybe_unused]] bool pinned) {
#if defined(__linux__)
    if (pinned == s_->pinned) return;
    s_->pinned = pinned;
    for (int t = 1; t < n_threads_; t++) {
        const long id = s_->ids[t].load();
        const int* cores = s_->cores.data();
        if (id) pinned ? allow(id, cores + t, 1) : allow(id, cores, s_->cores.size());
        else s_->pinned = false;  // it is only starting; next time
    }
#endif
}

void Pool::worker(int thread) {
#if defined(__linux__)
    s_->ids[thread] = syscall(SYS_gettid);
#endif
    uint64_t seen = generation_of(s_->word.load());
    take(seen, thread);
    while (true) {
        const auto news = [&] {
            return generation_of(s_->word.load(std::memory_order_acquire)) != seen || s_->quit.load(std::memory_order_relaxed);
        };
        if (!spin(news)) {
            std::unique_lock<std::mutex> lock(s_->mutex);
            s_->asleep.fetch_add(1);
            s_->wake.wait(lock, news);
            s_->asleep.fetch_sub(1);
        }
        if (s_->quit) return;
        seen = generation_of(s_->word.load(std::memory_order_acquire));
        take(seen, thread);
    }
}

bool Pool::run(int n, void (*work)(void*, int, int), void* context, const volatile int32_t* cancel) {
    if (n_threads_ == 1 || n == 1) {
        for (int i = 0; i < n; i++) {
            if (cancel && *cancel) return false;
            work(context, i, 0);
        }
        return true;
    }
    start();
    s_->work = work;
    s_->context = context;
    s_->cancel = cancel;
    s_->cancelled.store(false, std::memory_order_relaxed);
    s_->done.store(0, std::memory_order_relaxed);
    const uint64_t generation = (generation_of(s_->word.load()) + 1) & 0xFFFFFF;
    s_->word.store(generation << (2 * kItemBits) | static_cast<uint64_t>(n) << kItemBits);
    if (s_->asleep.load()) {  // sequentially consistent with the sleeper's last look at `word`
        { const std::lock_guard<std::mutex> lock(s_->mutex); }
        s_->wake.notify_all();
    }
    take(generation, 0);
    const auto finished = [&] { return s_->done.load(std::memory_order_acquire) == n; };
    // Only items that somebody has begun are waited for. Whoever has them may have lost its core: then give way.
    const int64_t began = now_ns();
    while (!spin(finished)) {
        std::this_thread::yield();
        if (now_ns() - began > kLostNs && s_->pinned) {
            place(false);
#if defined(__linux__)
            allow(0, s_->cores.data(), s_->cores.size());
#endif
            free_until_ns_ = now_ns() + kFreeNs;
        }
    }
    return !s_->cancelled.load(std::memory_order_relaxed);
}

Pool::Use::Use(Pool& pool) : lock_(pool.use_) {
#if defined(__linux__)
    static_assert(sizeof(cpu_set_t) <= sizeof before_);
    if (pool.n_threads_ == 1) return;
    pool.start();
    const auto& cores = pool.s_->cores;
    const bool room = static_cast<int>(cores.size()) >= pool.n_threads_ && now_ns() > pool.free_until_ns_;
    pool.place(room);
    if (room && !sched_getaffinity(0, sizeof(cpu_set_t), reinterpret_cast<cpu_set_t*>(before_))) {
        allow(0, cores.data(), 1);  // or the kernel may put it beside a worker that cannot move
        pinned_ = true;
    }
#endif
}

Pool::Use::~Use() {
#if defined(__linux__)
    if (pinned_) sched_setaffinity(0, sizeof(cpu_set_t), reinterpret_cast<cpu_set_t*>(before_));
#endif
}

#include "codegen2.h"

CG2_API int32_t cg2_set_threads(int32_t n) { return Pool::the().set_threads(n); }
