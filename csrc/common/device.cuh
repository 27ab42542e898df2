/* What every kernel starts from: CUDA, or the emulator that stands for it (csrc/emu); sums over warps and blocks;
 * rounding.
 *
 * Shared memory is always the launch's, never static: then the emulator can fill it with NaN and see a step beyond its
 * end. */
#pragma once
#ifdef QUAMBA_EMU
#include "../emu/cuda.h"
#define QUAMBA_SHARED(T, name) T* const name = reinterpret_cast<T*>(quamba::emu::shared)
#else
#include <cuda_fp16.h>
#include <stdint.h>
#define QUAMBA_SHARED(T, name)                                      \
    extern __shared__ __align__(16) unsigned char quamba_shared[]; \
    T* const name = reinterpret_cast<T*>(quamba_shared)
#endif

namespace quamba {

constexpr int LANES = 32;
constexpr unsigned ALL = 0xffffffffu;

/* Half i of four that came as 8 bytes: by shifts, since a compiler may take pointers of two types for two places. */
__device__ inline float float_of_half(uint2 four, int i) {
    const uint16_t bits = uint16_t((i < 2 ? four.x : four.y) >> 16 * (i % 2));
#ifdef QUAMBA_EMU
    return half_to_float({bits});
#else
    return __half2float(__ushort_as_half(bits));
#endif
}

__device__ inline float warp_sum(float v) {
#pragma unroll
    for (int apart = LANES / 2; apart; apart /= 2) v += __shfl_xor_sync(ALL, v, apart);
    return v;
}

/* The sum over the block, in every thread; `part` has room for a float of each warp, and may be used again after a
 * barrier. */
__device__ inline float block_sum(float v, float* part) {
    v = warp_sum(v);
    if (threadIdx.x % LANES == 0) part[threadIdx.x / LANES] = v;
    __syncthreads();
    v = 0.0f;
    for (int i = 0; i < int(blockDim.x) / LANES; i++) v += part[i];
    return v;
}

/* 1 / sqrt(mean square + eps) of n values, one call for the whole block. */
__device__ inline float inverse_rms(const float* x, int n, float eps, float* part) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[i] * x[i];
    return 1.0f / sqrtf(block_sum(sum, part) / float(n) + eps);
}

__device__ inline float silu(float v) {
    const float e = expf(-fabsf(v));
    return v * (v >= 0.0f ? 1.0f / (1.0f + e) : e / (1.0f + e));
}

__device__ inline float softplus(float v) {
    return fmaxf(v, 0.0f) + log1pf(expf(-fabsf(v)));
}

/* An int8 code: ties to even, -127..127.  `reciprocal` is 1 / scale, rounded to float. */
__device__ inline int8_t code_of(float v, float reciprocal) {
    return int8_t(__float2int_rn(fminf(fmaxf(v * reciprocal, -127.0f), 127.0f)));
}

/* What a linear reads: int8 codes, or f16, where the reciprocal means nothing. */
__device__ inline void put(int8_t* y, float v, float reciprocal) {
    *y = code_of(v, reciprocal);
}
__device__ inline void put(half* y, float v, float) {
    *y = __float2half_rn(v);
}

}  // namespace quamba
