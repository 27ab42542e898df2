/* The final norm of a tied model: in a rotated bundle rotate(weight * unrotate(rms(x))), else weight * rms(x).
 *
 * A block is a row, in two buffers of shared memory (common/rotate.cuh): the base reads one and writes the other.
 * Once a token, 8 K bytes in and K or 2 K out. */
#include "../common/rotate.cuh"

namespace quamba {

template <class T>
__device__ inline void tied_norm(const float* x, int x_stride, const float* weight, float reciprocal, T* y, int K,
                                 bool rotate, float eps) {
    QUAMBA_SHARED(float, v);
    float *u = v + K, *part = u + K;
    x += size_t(blockIdx.x) * x_stride;
    y += size_t(blockIdx.x) * K;
    const float factor = inverse_rms(x, K, eps, part);
    if (!rotate) {
        for (int k = threadIdx.x; k < K; k += blockDim.x) put(y + k, x[k] * factor * weight[k], reciprocal);
        return;
    }
    const Rotation r = rotation_of(K);
    for (int k = threadIdx.x; k < K; k += blockDim.x) v[k] = x[k] * factor;
    sylvester(v, K, r.p);
    for (int k = threadIdx.x; k < K; k += blockDim.x) u[k] = base_sum(v, r, k, true) * r.factor * weight[k];
    sylvester(u, K, r.p);
    for (int k = threadIdx.x; k < K; k += blockDim.x) put(y + k, base_sum(u, r, k, false) * r.factor, reciprocal);
}

}  // namespace quamba

extern "C" __global__ void tied_norm_i8(const float* x, int x_stride, const float* weight, const float* x_scale,
                                        int8_t* y, int, int K, int rotate, float eps) {
    quamba::tied_norm(x, x_stride, weight, 1.0f / *x_scale, y, K, rotate != 0, eps);
}

extern "C" __global__ void tied_norm_f16(const float* x, int x_stride, const float* weight, half* y, int, int K,
                                         int rotate, float eps) {
    quamba::tied_norm(x, x_stride, weight, 1.0f, y, K, rotate != 0, eps);
}
