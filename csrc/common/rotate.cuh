/* The rotation of a row in shared memory, by one block: M = (B_b (x) S_p) / sqrt(b p) (quamba_edge/rotation.py).
 *
 * The Sylvester part in place, eight values in registers at a time: 8192 values take five passes, each one read and
 * one write of shared memory and a barrier, not thirteen.  Then the base, as a sum of b values for each that is
 * written. */
#pragma once
#include "bases.h"
#include "device.cuh"

namespace quamba {

struct Rotation {
    int b, p;
    float factor;  // what is left to multiply with
};

__device__ inline Rotation rotation_of(int n) {
    const int power = n & -n, bases[] = {12, 20, 28};
    if (power == n) return {1, n, 1.0f / sqrtf(float(n))};
#pragma unroll
    for (int i = 0; i < 3; i++) {
        const int rest = n / bases[i];
        if (n % bases[i] == 0 && (rest & (rest - 1)) == 0) return {bases[i], rest, 1.0f / sqrtf(float(n))};
    }
    return {1, power, 1.0f / sqrtf(float(power))};
}

/* Butterflies of R values that are `apart` from each other. */
template <int R>
__device__ inline void butterflies(float* v, int n, int apart) {
    for (int i = threadIdx.x; i < n / R; i += blockDim.x) {
        float* at = v + (i & ~(apart - 1)) * R + (i & (apart - 1));
        float r[R];
#pragma unroll
        for (int j = 0; j < R; j++) r[j] = at[j * apart];
#pragma unroll
        for (int half = 1; half < R; half *= 2)
#pragma unroll
            for (int j = 0; j < R; j++)
                if (!(j & half)) {
                    const float low = r[j], high = r[j + half];
                    r[j] = low + high;
                    r[j + half] = low - high;
                }
#pragma unroll
        for (int j = 0; j < R; j++) at[j * apart] = r[j];
    }
    __syncthreads();
}

/* v (n), which all have written, times S_p in each p values; behind it is a barrier. */
__device__ inline void sylvester(float* v, int n, int p) {
    __syncthreads();
    for (int apart = 1; apart < p;) {
        const int left = p / apart;
        if (left >= 8) butterflies<8>(v, n, apart), apart *= 8;
        else if (left == 4) butterflies<4>(v, n, apart), apart *= 4;
        else butterflies<2>(v, n, apart), apart *= 2;
    }
}

__device__ inline uint32_t base_row(int b, int i) {
    return b == 12 ? BASE_12[i] : b == 20 ? BASE_20[i] : BASE_28[i];
}

/* Value i of v times the base (or its transpose). */
__device__ inline float base_sum(const float* v, Rotation r, int i, bool transposed) {
    if (r.b == 1) return v[i];
    const int k = i / r.p, j = i % r.p;
    float sum = 0.0f;
    for (int row = 0; row < r.b; row++) {
        const uint32_t minus = transposed ? base_row(r.b, k) >> row : base_row(r.b, row) >> k;
        const float value = v[row * r.p + j];
        sum += minus & 1 ? -value : value;
    }
    return sum;
}

}  // namespace quamba
