/* The rotation of a row in place: M = (B_b (x) S_p) / sqrt(b p), b a base, p a power of two (quamba_edge/rotation.py).
 *
 * Sixteen neighbours are transformed inside a register, then registers among themselves, then the base, b additions for each
 * value.  n values take n (log2 p + b) / 16 instructions: 1536 = 12 * 128 some 1800. */
#pragma once
#include "bases.h"
#include "rows.h"

namespace quamba {
namespace SIMD {

/* Butterflies between lanes that are H apart. */
template <int H>
inline f32x16 butterfly(f32x16 v) {
    alignas(64) static const float sign[LANES] = {
        1.0f, H & 1 ? -1.0f : 1.0f,
        H & 2 ? -1.0f : 1.0f, H & 3 ? -1.0f : 1.0f,
        H & 4 ? -1.0f : 1.0f, H & 5 ? -1.0f : 1.0f,
        H & 6 ? -1.0f : 1.0f, H & 7 ? -1.0f : 1.0f,
        H & 8 ? -1.0f : 1.0f, H & 9 ? -1.0f : 1.0f,
        H & 10 ? -1.0f : 1.0f, H & 11 ? -1.0f : 1.0f,
        H & 12 ? -1.0f : 1.0f, H & 13 ? -1.0f : 1.0f,
        H & 14 ? -1.0f : 1.0f, H & 15 ? -1.0f : 1.0f,
    };
    return fma(v, load(sign), partner<H>(v));
}

inline void sylvester(float* v, int64_t n, int64_t p) {
    for (int64_t i = 0; i < n; i += LANES) {
        const int k = lanes_at(i, n);
        f32x16 a = load(v + i, k);
        if (p > 1) a = butterfly<1>(a);
        if (p > 2) a = butterfly<2>(a);
        if (p > 4) a = butterfly<4>(a);
        if (p > 8) a = butterfly<8>(a);
        store(v + i, a, k);
    }
    int64_t half = LANES;
    for (; 2 * half < p; half *= 4)  // two levels at once, so that values are loaded and stored half as often
        for (int64_t start = 0; start < n; start += 4 * half)
            for (int64_t i = start; i < start + half; i += LANES) {
                const f32x16 a = load(v + i), b = load(v + i + half), c = load(v + i + 2 * half), d = load(v + i + 3 * half);
                const f32x16 e = a + b, f = a - b, g = c + d, h = c - d;
                store(v + i, e + g), store(v + i + half, f + h);
                store(v + i + 2 * half, e - g), store(v + i + 3 * half, f - h);
            }
    if (half < p)
        for (int64_t start = 0; start < n; start += 2 * half)
            for (int64_t i = start; i < start + half; i += LANES) {
                const f32x16 low = load(v + i), high = load(v + i + half);
                store(v + i, low + high), store(v + i + half, low - high);
            }
}

/* v[i][j] becomes sum_i v[i][j] base[i][k], for all j < p. */
template <int B>
inline void apply_base(float* v, int64_t p, const float* base) {
    for (int64_t j = 0; j < p; j += LANES) {
        const int n = lanes_at(j, p);
        f32x16 in[B];
#pragma GCC unroll 28
        for (int i = 0; i < B; i++) in[i] = load(v + i * p + j, n);
        for (int k = 0; k < B; k++) {
            f32x16 even = in[0] * set(base[k]), odd = in[1] * set(base[B + k]);
#pragma GCC unroll 14
            for (int i = 2; i < B; i += 2) {
                even = fma(in[i], set(base[i * B + k]), even);
                odd = fma(in[i + 1], set(base[(i + 1) * B + k]), odd);
            }
            store(v + k * p + j, even + odd, n);
        }
    }
}

/* n values, not yet divided by the factor that is returned's inverse: multiply by the result to finish.  `back` undoes it. */
inline float rotate(float* v, int64_t n, bool back = false) {
    const int bases[] = {12, 20, 28};
    int64_t b = 1, p = n & -n;
    if (p != n)
        for (int base : bases) {
            const int64_t rest = n / base;
            if (n % base == 0 && (rest & (rest - 1)) == 0) b = base, p = rest;
        }
    sylvester(v, n, p);
    if (b == 12) apply_base<12>(v, p, base_matrix(12, back));
    if (b == 20) apply_base<20>(v, p, base_matrix(20, back));
    if (b == 28) apply_base<28>(v, p, base_matrix(28, back));
    return 1.0f / __builtin_sqrtf(float(b * p));
}

}  // namespace SIMD
}  // namespace quamba
