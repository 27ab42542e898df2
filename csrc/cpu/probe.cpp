/* What this CPU can do, asked of the CPU and of the operating system, which must save the registers. */
#include <string.h>

#include "kernels.h"
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace quamba {

#define QUAMBA_TABLE(simd) \
    namespace simd {       \
    Table table();         \
    }
QUAMBA_TABLE(plain)
#if defined(__x86_64__)
QUAMBA_TABLE(avx512)
QUAMBA_TABLE(avxvnni)
QUAMBA_TABLE(avx2)
#elif defined(__aarch64__)
QUAMBA_TABLE(neon)
#endif

namespace {

struct Found {
    Table tables[4];
    int count = 0;

    Found() {
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c();
        const bool wide = fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        if (wide && __builtin_cpu_supports("avx512vnni")) tables[count++] = avx512::table();
        if (fma && avx_vnni()) tables[count++] = avxvnni::table();
        if (fma) tables[count++] = avx2::table();
#elif defined(__aarch64__)
        constexpr unsigned long ASIMDHP = 1 << 10, ASIMDDP = 1 << 20;  // HWCAP bits: f16 arithmetic, dot products
        if ((getauxval(AT_HWCAP) & (ASIMDHP | ASIMDDP)) == (ASIMDHP | ASIMDDP)) tables[count++] = neon::table();
#endif
        tables[count++] = plain::table();
    }

#if defined(__x86_64__)
    static unsigned ecx_of(unsigned leaf, unsigned sub, unsigned* eax) {
        unsigned a, b, c, d;
        asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(sub));
        if (eax) *eax = a;
        return c;
    }
    static bool f16c() { return ecx_of(1, 0, nullptr) >> 29 & 1; }
    static bool avx_vnni() {
        unsigned eax;
        ecx_of(7, 1, &eax);
        return eax >> 4 & 1;
    }
#endif
};

}  // namespace

int tables(const Table** found) {
    static const Found all;
    *found = all.tables;
    return all.count;
}

const Kernel* find(const Table& table, const char* op) {
    for (int i = 0; i < table.count; i++)
        if (!strcmp(table.kernels[i].name, op)) return &table.kernels[i];
    return nullptr;
}

}  // namespace quamba
