/* A recurrent state as its buffer holds it: f32, f16, or int8 codes whose scale is a row's times a column's.
 *
 * A decode step never multiplies codes by their scales: s[p][n] = r[p] c[n] w[p][n] obeys the same recurrence when B
 * is B / c, C is C c and x is x / r; y is then r times too small.  So the inner loops are those of floats, with w
 * for s.  A code can differ by one from that of s * (1 / (r c)), where the value is a few millionths of a step away
 * from a tie.  Codes are rounded with a dither (quamba_edge/ops/numerics.py says which and why): 3 instructions for
 * 16 elements, where memory is the bound. */
#pragma once
#include "call.h"
#include "simd.h"

namespace quamba {
namespace SIMD {

template <class T>
constexpr bool IS_CODES = false;
template <>
constexpr bool IS_CODES<int8_t> = true;

/* n lanes; WHOLE says that n is 16, known to the compiler. */
template <bool WHOLE, class T>
inline f32x16 load_lanes(const T* p, int n) {
    return WHOLE ? load(p) : load(p, n);
}
template <bool WHOLE, class T>
inline void store_lanes(T* p, f32x16 v, int n) {
    WHOLE ? store(p, v) : store(p, v, n);
}

/* What is added to a row of codes before it is rounded: a Weyl sequence from a seed that the row's dt gives it. */
constexpr uint32_t WEYL = 0x9E3779B9u;
#define QUAMBA_WEYL4(i) int32_t((i)*WEYL), int32_t((i + 1) * WEYL), int32_t((i + 2) * WEYL), int32_t((i + 3) * WEYL)
alignas(64) constexpr int32_t WEYL_LANES[LANES] = {QUAMBA_WEYL4(0u), QUAMBA_WEYL4(4u), QUAMBA_WEYL4(8u),
                                                   QUAMBA_WEYL4(12u)};

inline int32_t dither_seed(float dt, int64_t row) {
    uint32_t x;
    __builtin_memcpy(&x, &dt, 4);
    x = (x + uint32_t(row) * 0x9E3779B1u) * 0x85EBCA6Bu;
    x = (x ^ (x >> 15)) * 0xC2B2AE35u;
    return int32_t(x ^ (x >> 13));
}

/* v[n ..] of a row, n a multiple of 16, in units of the codes' scale. */
inline f32x16 dithered(f32x16 v, int32_t seed, int64_t n) {
    i32x16 steps;
    __builtin_memcpy(&steps, WEYL_LANES, sizeof steps);
    steps = steps + set_i32(int32_t(uint32_t(seed) + uint32_t(n) * WEYL));
    return fma(to_float(steps), set(0x1p-32f), v);
}

/* Elements n .. of a row that begins at `row`, from floats; codes are in units of their scale, and have a seed. */
template <bool WHOLE, class T>
inline void store_state(T* row, int64_t n, f32x16 v, int32_t seed, int count) {
    if (IS_CODES<T>) v = min(max(dithered(v, seed, n), set(-127.0f)), set(127.0f));
    store_lanes<WHOLE>(row + n, v, count);
}

/* n values as floats, with zeros up to the next multiple of 16; codes have one scale each. */
inline void expand(float* out, const float* in, const float*, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(out + i, load(in + i));
    if (i < n) store(out + i, load(in + i, int(n - i)));
}
inline void expand(float* out, const int8_t* in, const float* scale, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(out + i, load(in + i) * load(scale + i));
    if (i < n) store(out + i, load(in + i, int(n - i)) * load(scale + i, int(n - i)));
}
/* out[i] = in[i] scale[i], or in[i] / scale[i]: into a state's units and back.  The reciprocal is that of to_codes. */
inline void times(float* out, const float* in, const float* scale, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        const int k = n - i < LANES ? int(n - i) : LANES;
        store(out + i, load(in + i, k) * load(scale + i, k), k);
    }
}
inline void over(float* out, const float* in, const float* scale, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        const int k = n - i < LANES ? int(n - i) : LANES;
        store(out + i, load(in + i, k) * (set(1.0f) / load(scale + i, k)), k);
    }
}

inline int64_t whole(int64_t n) {
    return (n + LANES - 1) / LANES * LANES;
}

/* stage<X, f32 | f16 | i8>, whichever the call's state is. */
#define QUAMBA_BY_STATE(function, X, call, work)                                                       \
    ((call).state == STATE_F32   ? function<X, float>(call, work)                                      \
     : (call).state == STATE_F16 ? function<X, half>(call, work)                                       \
                                 : function<X, int8_t>(call, work))

}  // namespace SIMD
}  // namespace quamba
