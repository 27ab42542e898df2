/* A recurrent state as its buffer holds it: f32, f16, or int8 codes whose scale is a row's times a column's.
 *
 * A decode step never multiplies codes by their scales: s[p][n] = r[p] c[n] w[p][n] obeys the same recurrence when B
 * is B / c, C is C c and x is x / r; y is then r times too small.  So the inner loops are those of floats, with w
 * for s.  A code can differ by one from that of s * (1 / (r c)), where the value is a few millionths of a step away
 * from a tie. */
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

/* What a state holds, from and to floats; codes are in units of their scale. */
template <bool WHOLE, class T>
inline void store_state(T* p, f32x16 v, int n) {
    store_lanes<WHOLE>(p, IS_CODES<T> ? min(max(v, set(-127.0f)), set(127.0f)) : v, n);
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
