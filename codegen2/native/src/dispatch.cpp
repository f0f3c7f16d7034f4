// Which kernels run: the best the machine has, or one that was asked for.
#include <array>
#include <atomic>
#include <cstring>
#include <string>
#include "kernels.h"

extern const Kernels kernels_scalar;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
extern const Kernels kernels_amx;
#endif
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace {

#if defined(__x86_64__) && defined(__linux__)
// Whether the processor has the matrix instructions, the system saves their state, and this process may use them: tiles
// are 8 KiB that a thread would carry, so Linux wants to be asked, once a process; threads and children inherit it.
bool tiles_allowed() {
#if CODEGEN2_AMX_EMULATED + 0 == 2
    return false;  // find() has them already
#else
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // AVX512_BF16
#if defined(CODEGEN2_AMX_EMULATED)
    (void)low, (void)high;
    return true;
#else
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kBFloat16 = 1u << 22;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kTile | kInt8 | kBFloat16)) != (kTile | kInt8 | kBFloat16)) return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // OSXSAVE
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kSaved = 3u << 17;  // XTILECFG, XTILEDATA
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return (low & kSaved) == kSaved && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#endif
#endif
}
#endif

// Best first; null ends the list.
std::array<const Kernels*, 5> find() {
    std::array<const Kernels*, 5> found{};
    size_t n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    // gcc 12 and clang 14 do not know "f16c" here; every processor with AVX2 has it.
#if CODEGEN2_AMX_EMULATED + 0 == 2
    if (avx2) found[n++] = &kernels_amx;
#endif
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")) {
#if defined(__linux__)
        if (tiles_allowed()) found[n++] = &kernels_amx;
#endif
        found[n++] = &kernels_avx512;
    }
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

const Kernels* const* available() {
    static const auto found = find();
    return found.data();
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
