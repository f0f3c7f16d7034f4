// The process's one pool of threads: a loop over items, dealt out one by one to whoever is free.
#pragma once
#include <cstdint>
#include <mutex>
#include <type_traits>

class Pool {
   public:
    // Everything that uses the pool holds this while it computes; see Use.
    static Pool& the();

    int threads() const { return n_threads_; }
    int set_threads(int n);

    // Call work(context, item, thread) for every item in 0..n-1, thread in 0..threads-1. The caller takes part. Stops
    // dealing once *cancel is not 0, and then gives false.
    bool run(int n, void (*work)(void*, int, int), void* context, const volatile int32_t* cancel);

    template <class Work> bool each(int n, const volatile int32_t* cancel, Work&& work) {
        return run(
            n, [](void* w, int item, int thread) { (*static_cast<std::remove_reference_t<Work>*>(w))(item, thread); }, &work, cancel);
    }

    // Holds the pool for one call of the engine, and keeps the calling thread on its own core for as long.
    class Use {
       public:
        explicit Use(Pool& pool);
        ~Use();
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;

       private:
        std::unique_lock<std::mutex> lock_;
        bool pinned_ = false;
        alignas(8) unsigned char before_[128];  // a cpu_set_t, where there is one
    };

   private:
    Pool();
    void start();
    void stop();
    void worker(int thread);
    void take(uint64_t generation, int thread);
    void place(bool pinned);

    struct Shared;
    Shared* s_;
    int n_threads_ = 1;
    long owner_ = 0;
    int64_t free_until_ns_ = 0;  // threads are not kept on their cores before this time
    std::mutex use_;
};
