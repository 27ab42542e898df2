/* Sixteen lanes of float or int32, on whatever the instruction set has, and the functions that ops build from them.
 *
 * Sixteen is the width of the weight layouts (layouts.py: n16k8, n16k4).  A source that includes this is compiled once for every
 * instruction set, with -DSIMD=avx512 and so on, into a namespace of that name; simd/plain.h says what each function means.
 * Nothing here or in the ops may use templates of the standard library: a linker keeps one copy of each, and it could be the one
 * with instructions that this CPU lacks. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "half.h"

#define QUAMBA_TEXT2(x) #x
#define QUAMBA_TEXT(x) QUAMBA_TEXT2(x)

namespace quamba {
namespace SIMD {

#include QUAMBA_TEXT(simd/SIMD.h)

constexpr int LANES = 16;

/* A number as a type: generic lambdas take it where they need a constant. */
template <int I>
struct Index {
    static constexpr int value = I;
};

template <class T>
inline T least(T a, T b) {
    return a < b ? a : b;
}
template <class T>
inline T most(T a, T b) {
    return a > b ? a : b;
}

/* e^x within 2 ulp (Cephes' polynomial); beyond the range of f32 it stops at 2^-126 and 2^127. */
inline f32x16 exp(f32x16 x) {
    x = min(max(x, set(-87.33f)), set(88.02f));
    const f32x16 n = round(x * set(1.44269504f));
    f32x16 r = fma(n, set(-0.693359375f), x);
    r = fma(n, set(2.12194440e-4f), r);
    f32x16 p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    return scale2(fma(p, r * r, r + set(1.0f)), n);
}

/* v sigmoid(v) */
inline f32x16 silu(f32x16 v) {
    return v / (set(1.0f) + exp(set(0.0f) - v));
}

/* log(1 + e^v) = max(v, 0) + log1p(y), y = e^-|v|; log1p(y) = 2 atanh(z), z = y / (2 + y) <= 1/3: seven terms of its series. */
inline f32x16 softplus(f32x16 v) {
    const f32x16 y = exp(set(0.0f) - abs(v));
    const f32x16 z = y / (set(2.0f) + y), q = z * z;
    f32x16 p = set(2.0f / 15);
    p = fma(p, q, set(2.0f / 13));
    p = fma(p, q, set(2.0f / 11));
    p = fma(p, q, set(2.0f / 9));
    p = fma(p, q, set(2.0f / 7));
    p = fma(p, q, set(2.0f / 5));
    p = fma(p, q, set(2.0f / 3));
    p = fma(p, q, set(2.0f));
    return fma(p, z, max(v, set(0.0f)));
}

/* v in steps of 1 / reciprocal, in the range of int8 codes; `store` to int8 rounds it. */
inline f32x16 to_codes(f32x16 v, f32x16 reciprocal) {
    return min(max(v * reciprocal, set(-127.0f)), set(127.0f));
}

}  // namespace SIMD
}  // namespace quamba
