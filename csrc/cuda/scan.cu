/* Mamba1's selective scan with its gate: s = exp(d A) s + d B x, y = (C . s + D x) SiLU(z)
 * (quamba_edge/ops/scan.py)
 *
 * Four lanes are a channel, four states each, in registers from the first token to the last; two shuffles add them up.
 * Decode moves the state twice and A once: 8 or 12 bytes a state with f16 or f32, 0.65 MB a layer at E = 5120, N = 16
 * and f16.  A chunk of tokens is bound by its exponentials, one for each state and token. */
#include "../common/state.cuh"

namespace quamba {

constexpr int SHARE = 4;  // lanes of a channel

__device__ inline float value_of(const float* x, size_t i, float) {
    return x[i];
}
__device__ inline float value_of(const int8_t* x, size_t i, float scale) {
    return float(x[i]) * scale;
}

template <class X, class S>
__device__ inline void scan(const X* x, const float* x_scale, const float* dt, const float* dt_bias, const float* A,
                            const float* B, int B_stride, const float* C, int C_stride, const float* D, const float* z,
                            int z_stride, S* state, const float* state_rows, const float* state_cols, float* y,
                            int steps, int E, int N) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, n = i % SHARE * HELD, sequence = blockIdx.y;
    const bool used = i / SHARE < E;
    // Idle lanes go along, because shuffles want whole warps: of channel 0, without its states: the owner writes them.
    const int e = used ? i / SHARE : 0, held = used ? N : 0;
    state += (size_t(sequence) * E + e) * N;
    float s[HELD], a[HELD];
    load_state(s, state, n, held, state_rows[e], state_cols);
    load_four(a, A + size_t(e) * N, n, held, N % HELD == 0);
    const float scale = x_scale ? x_scale[e] : 1.0f, bias = dt_bias[e], skip = D[e];
    for (int t = 0; t < steps; t++) {
        const size_t m = size_t(sequence) * steps + t;
        const float d = softplus(dt[m * E + e] + bias), v = value_of(x, m * E + e, scale), dv = d * v;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < HELD; j++)
            if (n + j < held) {
                s[j] = expf(d * a[j]) * s[j] + dv * B[m * B_stride + n + j];
                sum += C[m * C_stride + n + j] * s[j];
            }
#pragma unroll
        for (int apart = SHARE / 2; apart; apart /= 2) sum += __shfl_xor_sync(ALL, sum, apart);
        if (used && n == 0) y[m * E + e] = (sum + skip * v) * silu(z[m * z_stride + e]);
    }
    const float last = dt[(size_t(sequence) * steps + steps - 1) * E + e];
    if (used) store_state(state, s, n, N, state_rows[e], state_cols, dither_seed(last, e));
}

}  // namespace quamba

#define QUAMBA_SCAN_F32(name, S)                                                                                      \
    extern "C" __global__ void name(const float* x, const float* dt, const float* dt_bias, const float* A,            \
                                    const float* B, int B_stride, const float* C, int C_stride, const float* D,       \
                                    const float* z, int z_stride, S* state, const float* state_rows,                  \
                                    const float* state_cols, float* y, int, int T, int E, int N) {                    \
        quamba::scan<float, S>(x, nullptr, dt, dt_bias, A, B, B_stride, C, C_stride, D, z, z_stride, state,           \
                               state_rows, state_cols, y, T, E, N);                                                   \
    }
#define QUAMBA_SCAN_I8(name, S)                                                                                       \
    extern "C" __global__ void name(const int8_t* x, const float* x_scale, const float* dt, const float* dt_bias,     \
                                    const float* A, const float* B, int B_stride, const float* C, int C_stride,       \
                                    const float* D, const float* z, int z_stride, S* state, const float* state_rows,  \
                                    const float* state_cols, float* y, int, int T, int E, int N) {                    \
        quamba::scan<int8_t, S>(x, x_scale, dt, dt_bias, A, B, B_stride, C, C_stride, D, z, z_stride, state,          \
                                state_rows, state_cols, y, T, E, N);                                                  \
    }
QUAMBA_FOR_STATES(QUAMBA_SCAN_F32, scan_f32)
QUAMBA_FOR_STATES(QUAMBA_SCAN_I8, scan_i8)
