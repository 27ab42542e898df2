/* Mamba2's gated norm, in place: v = y SiLU(z), then v / sqrt(mean(v^2) + eps) within each group.
 *
 * A block is one group of one row; grid (groups, M).  Products wait in shared memory, so y and z are read once: 8
 * bytes in and 4 out for each value, 98 KB at E = 8192. */
#include "../common/device.cuh"

extern "C" __global__ void gated_norm(float* y, const float* z, int z_stride, int, int E, int groups, float eps) {
    using namespace quamba;
    QUAMBA_SHARED(float, v);
    const int n = E / groups, start = blockIdx.x * n;
    float* part = v + n;
    y += size_t(blockIdx.y) * E + start;
    z += size_t(blockIdx.y) * z_stride + start;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        v[i] = y[i] * silu(z[i]);
        sum += v[i] * v[i];
    }
    const float factor = 1.0f / sqrtf(block_sum(sum, part) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = v[i] * factor;
}
