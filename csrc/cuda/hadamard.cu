/* y = R x, the online rotation before out_proj, rounded to what a linear reads.
 *
 * A block is a row, which lies in shared memory (common/rotate.cuh).  4 K bytes in and K or 2 K out: 40 KB at K =
 * 8192, against 17 MB of the matrix behind it (Mamba2-8B, out_proj of 4 bits). */
#include "../common/rotate.cuh"

namespace quamba {

template <class T>
__device__ inline void hadamard(const float* x, int x_stride, float reciprocal, T* y, int K) {
    QUAMBA_SHARED(float, v);
    x += size_t(blockIdx.x) * x_stride;
    y += size_t(blockIdx.x) * K;
    for (int k = threadIdx.x; k < K; k += blockDim.x) v[k] = x[k];
    const Rotation r = rotation_of(K);
    sylvester(v, K, r.p);
    for (int k = threadIdx.x; k < K; k += blockDim.x) put(y + k, base_sum(v, r, k, false) * r.factor, reciprocal);
}

}  // namespace quamba

extern "C" __global__ void hadamard_i8(const float* x, int x_stride, const float* x_scale, int8_t* y, int, int K) {
    quamba::hadamard(x, x_stride, 1.0f / *x_scale, y, K);
}

extern "C" __global__ void hadamard_f16(const float* x, int x_stride, half* y, int, int K) {
    quamba::hadamard(x, x_stride, 1.0f, y, K);
}
