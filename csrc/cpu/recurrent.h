/* What the recurrent ops share: states in three dtypes, inputs as floats or codes, and 16 x 16 transposition. */
#pragma once
#include "rows.h"

namespace quamba {
namespace SIMD {

/* Elements [i, i + n) of a state row as floats; int8 codes stand for code * (row * cols[i]). */
template <class T>
inline f32x16 load_state(const T* p, float, const float*, int n) {
    return load(p, n);
}
inline f32x16 load_state(const int8_t* p, float row, const float* cols, int n) {
    return load(p, n) * (set(row) * load(cols, n));
}
template <class T>
inline void store_state(T* p, f32x16 v, float, const float*, int n) {
    store(p, v, n);
}
inline void store_state(int8_t* p, f32x16 v, float row, const float* cols, int n) {
    store(p, to_codes(v, set(1.0f) / (set(row) * load(cols, n))), n);
}

/* Inputs: floats as they are, codes times their channel's scale. */
inline f32x16 load_input(const float* p, const float*, int n) {
    return load(p, n);
}
inline f32x16 load_input(const int8_t* p, const float* scale, int n) {
    return load(p, n) * load(scale, n);
}

/* r[i] lane j becomes r[j] lane i: at every bit of the index, pairs of rows swap their off-diagonal halves. */
template <int H>
inline void swap_halves(f32x16 (&r)[16]) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        if (!(i & H)) {
            const f32x16 a = r[i], b = r[i + H];
            r[i] = odd_from<H>(a, partner<H>(b));
            r[i + H] = odd_from<H>(partner<H>(a), b);
        }
}
inline void transpose(f32x16 (&r)[16]) {
    swap_halves<1>(r);
    swap_halves<2>(r);
    swap_halves<4>(r);
    swap_halves<8>(r);
}

/* A state block of `count` <= 16 rows of N elements, from row-major memory to floats (N, 16) and back; lanes are rows. */
template <class T>
inline void load_transposed(const T* state, int64_t N, int count, const float* rows, const float* cols, float* out, int64_t stride) {
    for (int64_t n = 0; n < N; n += LANES) {
        const int k = lanes_at(n, N);
        f32x16 r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            r[i] = i < count ? load_state(state + i * N + n, rows[i], cols + n, k) : set(0.0f);
        transpose(r);
        for (int j = 0; j < k; j++) store(out + (n + j) * stride, r[j]);
    }
}
template <class T>
inline void store_transposed(T* state, int64_t N, int count, const float* rows, const float* cols, const float* in, int64_t stride) {
    for (int64_t n = 0; n < N; n += LANES) {
        const int k = lanes_at(n, N);
        f32x16 r[16];
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) r[j] = j < k ? load(in + (n + j) * stride) : set(0.0f);
        transpose(r);
        for (int i = 0; i < count; i++) store_state(state + i * N + n, r[i], rows[i], cols + n, k);
    }
}

template <class T>
struct Type {
    using type = T;
};

/* Calls f with the Type of the state's elements. */
template <class F>
inline void with_state_type(int type, F f) {
    if (type == STATE_F32) f(Type<float>{});
    if (type == STATE_F16) f(Type<half>{});
    if (type == STATE_I8) f(Type<int8_t>{});
}

}  // namespace SIMD
}  // namespace quamba
