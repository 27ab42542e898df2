/* y = x / sqrt(mean(x^2) + eps), rounded to what a linear reads.
 *
 * A block is a row, read twice: the second time from the L1.  4 K bytes in and K or 2 K out; at K = 4096 that is 20 KB
 * against 39 MB of the matrix behind it (Mamba2-8B, in_proj of 4 bits), so what counts is the latency of one pass and
 * one barrier. */
#include "../common/device.cuh"

namespace quamba {

template <class T>
__device__ inline void rmsnorm(const float* x, int x_stride, float reciprocal, T* y, int K, float eps) {
    QUAMBA_SHARED(float, part);
    x += size_t(blockIdx.x) * x_stride;
    y += size_t(blockIdx.x) * K;
    const float factor = inverse_rms(x, K, eps, part);
    for (int k = threadIdx.x; k < K; k += blockDim.x) put(y + k, x[k] * factor, reciprocal);
}

}  // namespace quamba

extern "C" __global__ void rmsnorm_i8(const float* x, int x_stride, const float* x_scale, int8_t* y, int, int K,
                                      float eps) {
    quamba::rmsnorm(x, x_stride, 1.0f / *x_scale, y, K, eps);
}

extern "C" __global__ void rmsnorm_f16(const float* x, int x_stride, half* y, int, int K, float eps) {
    quamba::rmsnorm(x, x_stride, 1.0f, y, K, eps);
}
