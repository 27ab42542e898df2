/* y[t] = SiLU(bias + sum_w weight[w] x[t - W + 1 + w]) of every channel, and the last W - 1 inputs for the next call.
 *
 * A thread is a channel of a sequence, with the window in registers; neighbours read neighbours.  Decode moves 4 W + 8
 * (W - 1) + 8 bytes and what it writes for a channel: 0.5 MB at 10240 channels (Mamba2-8B), next to 39 MB of
 * in_proj. */
#include "../common/device.cuh"

namespace quamba {

constexpr int MOST_WIDE = 4;

__device__ inline void put_value(float* y, float v, float) {
    *y = v;
}
__device__ inline void put_value(int8_t* y, float v, float reciprocal) {
    *y = code_of(v, reciprocal);
}

template <class T>
__device__ inline void conv_silu(const float* x, int x_stride, float* state, const float* weight, const float* bias,
                                 const float* y_scale, T* y, int steps, int C, int W) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, s = blockIdx.y;
    if (c >= C) return;
    x += size_t(s) * steps * x_stride + c;
    y += size_t(s) * steps * C + c;
    state += size_t(s) * (W - 1) * C + c;
    // The last of MOST_WIDE places is the current input; with W < MOST_WIDE the first ones stay zero.
    float window[MOST_WIDE], weights[MOST_WIDE];
    const int unused = MOST_WIDE - W;
#pragma unroll
    for (int w = 0; w < MOST_WIDE; w++) {
        const bool used = w >= unused;
        weights[w] = used ? weight[c * W + w - unused] : 0.0f;
        window[w] = used && w < MOST_WIDE - 1 ? state[(w - unused) * C] : 0.0f;
    }
    const float start = bias[c], reciprocal = y_scale ? 1.0f / y_scale[c] : 1.0f;
    for (int t = 0; t < steps; t++) {
        window[MOST_WIDE - 1] = x[size_t(t) * x_stride];
        float v = start;
#pragma unroll
        for (int w = 0; w < MOST_WIDE; w++) v += window[w] * weights[w];
        put_value(y + size_t(t) * C, silu(v), reciprocal);
#pragma unroll
        for (int w = 0; w < MOST_WIDE - 1; w++) window[w] = window[w + 1];
    }
#pragma unroll
    for (int w = 0; w < MOST_WIDE - 1; w++)
        if (w >= unused) state[(w - unused) * C] = window[w];
}

}  // namespace quamba

extern "C" __global__ void conv_silu_f32(const float* x, int x_stride, float* state, const float* weight,
                                         const float* bias, float* y, int, int T, int C, int W) {
    quamba::conv_silu(x, x_stride, state, weight, bias, nullptr, y, T, C, W);
}

extern "C" __global__ void conv_silu_i8(const float* x, int x_stride, float* state, const float* weight,
                                        const float* bias, const float* y_scale, int8_t* y, int, int T, int C, int W) {
    quamba::conv_silu(x, x_stride, state, weight, bias, y_scale, y, T, C, W);
}
