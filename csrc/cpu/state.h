/* A recurrent state as its buffer holds it: f32, f16, or int8 codes whose scale is a row's times a column's. */
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

/* Lanes of a state; only codes have a scale. */
template <bool WHOLE, class T>
inline f32x16 load_state(const T* p, f32x16 scale, int n) {
    const f32x16 v = load_lanes<WHOLE>(p, n);
    return IS_CODES<T> ? v * scale : v;
}

/* Codes are rounded with 1 / row times 1 / column: that differs from 1 / (row column) by an ulp, and so a code by one where the value
 * is a few millionths of a step away from a tie. */
template <bool WHOLE, class T>
inline void store_state(T* p, f32x16 v, f32x16 reciprocal, int n) {
    store_lanes<WHOLE>(p, IS_CODES<T> ? to_codes(v, reciprocal) : v, n);
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
/* 1 / in, with infinities up to the next multiple of 16. */
inline void invert(float* out, const float* in, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        const int k = n - i < LANES ? int(n - i) : LANES;
        store(out + i, set(1.0f) / load(in + i, k));
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
