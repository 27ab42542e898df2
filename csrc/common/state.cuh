/* A recurrent state as its buffer holds it: f32, f16, or int8 codes whose scale is a row's times a column's.
 *
 * HELD neighbours of a row belong to one lane: a 4-, 8- or 16-byte access where the row's length allows it. */
#pragma once
#include "device.cuh"

namespace quamba {

constexpr int HELD = 4;

__device__ inline float as_float(float v) {
    return v;
}
__device__ inline float as_float(half v) {
    return __half2float(v);
}
__device__ inline float as_float(int8_t v) {
    return float(v);
}

template <class T>
constexpr bool IS_CODES = false;
template <>
constexpr bool IS_CODES<int8_t> = true;

/* What is added to element n of a row of codes before it is rounded (quamba_edge/ops/numerics.py says why). */
__device__ inline unsigned dither_seed(float dt, int row) {
    unsigned x = (__float_as_uint(dt) + unsigned(row) * 0x9E3779B1u) * 0x85EBCA6Bu;
    x = (x ^ (x >> 15)) * 0xC2B2AE35u;
    return x ^ (x >> 13);
}
__device__ inline float dither(unsigned seed, int n) {
    return float(int(seed + unsigned(n) * 0x9E3779B9u)) * 0x1p-32f;
}

__device__ inline void round_to(float* p, float v, float, float) {
    *p = v;
}
__device__ inline void round_to(half* p, float v, float, float) {
    *p = __float2half_rn(v);
}
__device__ inline void round_to(int8_t* p, float v, float scale, float u) {
    *p = code_of(v * (1.0f / scale) + u, 1.0f);
}

template <class T>
struct alignas(sizeof(T) * HELD) Four {
    T of[HELD];
};

/* v = elements n .. n + 3 of a row of N, zero from N on.  `whole`: rows start and end on a boundary of four. */
template <class T>
__device__ inline void load_four(float (&v)[HELD], const T* row, int n, int N, bool whole) {
    Four<T> raw = {};
    if (whole) {
        if (n < N) raw = *reinterpret_cast<const Four<T>*>(row + n);
    } else {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (n + i < N) raw.of[i] = row[n + i];
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) v[i] = n + i < N ? as_float(raw.of[i]) : 0.0f;
}

/* The same of a state, codes times their scales. */
template <class T>
__device__ inline void load_state(float (&v)[HELD], const T* row, int n, int N, float row_scale, const float* cols) {
    load_four(v, row, n, N, N % HELD == 0);
    if (IS_CODES<T>) {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (n + i < N) v[i] *= row_scale * cols[n + i];
    }
}

template <class T>
__device__ inline void store_state(T* row, const float (&v)[HELD], int n, int N, float row_scale, const float* cols,
                                   unsigned seed) {
    Four<T> raw;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        round_to(&raw.of[i], v[i], IS_CODES<T> && n + i < N ? row_scale * cols[n + i] : 1.0f,
                 IS_CODES<T> ? dither(seed, n + i) : 0.0f);
    if (N % HELD == 0) {
        if (n < N) *reinterpret_cast<Four<T>*>(row + n) = raw;
    } else {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (n + i < N) row[n + i] = raw.of[i];
    }
}

/* One kernel for each dtype of the state: name_f32, name_f16, name_i8. */
#define QUAMBA_FOR_STATES(KERNEL, name) \
    KERNEL(name##_f32, float)           \
    KERNEL(name##_f16, half)            \
    KERNEL(name##_i8, int8_t)

}  // namespace quamba
