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

__device__ inline void round_to(float* p, float v, float) {
    *p = v;
}
__device__ inline void round_to(half* p, float v, float) {
    *p = __float2half_rn(v);
}
__device__ inline void round_to(int8_t* p, float v, float scale) {
    *p = code_of(v, 1.0f / scale);
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
__device__ inline void store_state(T* row, const float (&v)[HELD], int n, int N, float row_scale, const float* cols) {
    Four<T> raw;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        round_to(&raw.of[i], v[i], IS_CODES<T> && n + i < N ? row_scale * cols[n + i] : 1.0f);
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
