/* y = x as int8 codes or as f16: the form that a linear reads.
 *
 * A thread is a value; grid (columns / block, M).  4 bytes in and 1 or 2 out: at decode some thousand values, which
 * take less time than the launch. */
#include "../common/device.cuh"

namespace quamba {

template <class T>
__device__ inline void quantize(const float* x, int x_stride, float reciprocal, T* y, int K) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x, m = blockIdx.y;
    if (k < K) put(y + size_t(m) * K + k, x[size_t(m) * x_stride + k], reciprocal);
}

}  // namespace quamba

extern "C" __global__ void quantize_i8(const float* x, int x_stride, const float* x_scale, int8_t* y, int, int K) {
    quamba::quantize(x, x_stride, 1.0f / *x_scale, y, K);
}

extern "C" __global__ void quantize_f16(const float* x, int x_stride, half* y, int, int K) {
    quamba::quantize(x, x_stride, 1.0f, y, K);
}
