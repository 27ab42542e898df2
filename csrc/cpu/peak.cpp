/* What this core's arithmetic can do at most with this instruction set: the ceiling of prefill.
 *
 * Independent sums in registers, no memory: multiply-adds a second of int8 dots (64 each) and of float fmas (16 each). */

#include "clock.h"
#include "kernels.h"
#include "simd.h"

namespace quamba {
namespace SIMD {

namespace {

constexpr int SUMS = 4 * TILE_N;  // as many as hide the latency, as few as leave registers

template <class Sum, class Step>
double rate(double limit, int64_t each, Sum start, Step step) {
    constexpr int64_t ROUNDS = 20000;
    Sum sums[SUMS];
    for (Sum& s : sums) s = start;
    double best = 0;
    for (const double began = seconds(); seconds() - began < limit;) {
        const double t = seconds();
        for (int64_t r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 8
            for (int i = 0; i < SUMS; i++) sums[i] = step(sums[i]);
        }
        best = most(best, double(ROUNDS) * SUMS * double(each) / (seconds() - t));
    }
    volatile float sink = 0;
    for (const Sum& s : sums) sink = sink + float(sum(s));
    return best;
}

}  // namespace

void peak(double limit, double* dots, double* fmas) {
    static volatile int8_t four[64] = {1, 2, 3, 4};  // volatile: the compiler must not know the values
    int8_t bytes[64];
    for (int i = 0; i < 64; i++) bytes[i] = four[i];
    const bytes64 w = low_nibbles(load64(bytes)), x = load64(bytes);
    *dots = rate(limit, 64, zeros(), [=](i32x16 s) { return dot4(s, w, x); });
    const f32x16 a = set(float(bytes[0]) * 0.5f), b = set(float(bytes[1]));
    *fmas = rate(limit, 16, a, [=](f32x16 s) { return fma(s, a, b); });
}

}  // namespace SIMD
}  // namespace quamba
