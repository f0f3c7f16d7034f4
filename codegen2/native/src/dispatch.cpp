// Which kernels run: the best the machine has, or one that was asked for.
#include <atomic>
#include <cstring>
#include <string>
#include "kernels.h"

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace {

// Best first; null ends the list.
const Kernels* const* available() {
    static const Kernels* found[4] = {};
    if (found[0]) return found;
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    // gcc 12 and clang 14 do not know "f16c" here; every processor with AVX2 has it.
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        found[n++] = &kernels_avx512;
    if (avx2) found[n++] = &kernels_avx2;
#elif defined(__aarch64__)
#if defined(__linux__)
    constexpr unsigned long kHalf = 1ul << 10, kDot = 1ul << 20;  // HWCAP_ASIMDHP, HWCAP_ASIMDDP
    if ((getauxval(AT_HWCAP) & (kHalf | kDot)) == (kHalf | kDot)) found[n++] = &kernels_neon;
#else
    found[n++] = &kernels_neon;  // every Apple processor of this kind has them
#endif
#endif
    found[n] = &kernels_scalar;
    return found;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
    const Kernels* k = chosen.load(std::memory_order_acquire);
    return k ? *k : *available()[0];
}

CG2_API const char* cg2_isas() {
    static const std::string names = [] {
        std::string all;
        for (const Kernels* const* k = available(); *k; k++) all += (all.empty() ? "" : " ") + std::string((*k)->name);
        return all;
    }();
    return names.c_str();
}

CG2_API int32_t cg2_set_isa(const char* name) {
    for (const Kernels* const* k = available(); *k; k++)
        if (!std::strcmp((*k)->name, name)) {
            chosen.store(*k, std::memory_order_release);
            return 0;
        }
    return 1;
}
