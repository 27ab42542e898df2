/* x / sqrt(mean(x^2) + eps) within each part of a row, in place.
 *
 * A block is one part of one row; grid (parts, M).  Falcon-Mamba's B and C are parts of 16 values: a warp each, 128
 * bytes in and 128 out, so the launch is all it costs. */
#include "../common/device.cuh"

extern "C" __global__ void part_norm(float* x, int x_stride, int, int E, int parts, float eps) {
    QUAMBA_SHARED(float, part);
    const int n = E / parts;
    x += size_t(blockIdx.y) * x_stride + blockIdx.x * n;
    const float factor = quamba::inverse_rms(x, n, eps, part);
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] *= factor;
}
