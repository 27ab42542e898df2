/* Mamba2's recurrence: s = exp(d A) s + d x B, y = C . s + D x                              (quamba_edge/ops/ssd.py)
 *
 * A warp has ROWS rows p of a head's state, a lane four of their N columns, in registers from the first token to the
 * last; d and exp(d A) of all tokens are made first, one thread a token.  Decode moves the state in and out: 4 bytes
 * an element with f16, 4.2 MB a layer at H = 128, P = 64, N = 128 (Mamba2-8B), where the layer's matrices are 57 MB
 * with 4 bits.
 *
 * A few tokens are the same recurrence, token by token, on the ordinary cores: 2 N P multiply-adds and P sums over a
 * warp for each head and token.  From 16 tokens on ssd_chunk.cu does it as matrix products. */
#include "../common/state.cuh"

namespace quamba {

constexpr int ROWS = 4;  // of the state, for each warp: B and C are loaded once for them

/* x, B and C of channel c, as floats. */
__device__ inline float value_at(const float* p, float) {
    return *p;
}
__device__ inline float value_at(const int8_t* p, float scale) {
    return float(*p) * scale;
}

template <class X, class S>
__device__ inline void ssd(const X* xbc, const float* xbc_scale, const float* dt, int dt_stride, const float* dt_bias,
                           const float* A, const float* D, S* state, const float* state_rows, const float* state_cols,
                           float* y, int steps, int H, int P, int N, int g, float dt_min, float dt_max) {
    QUAMBA_SHARED(float, delta);
    float* decay = delta + steps;
    const int h = blockIdx.y, sequence = blockIdx.z, group = h / (H / g), E = H * P, width = E + 2 * g * N;
    const int lane = threadIdx.x % LANES, warps = blockDim.x / LANES, n = lane * HELD;
    const int p0 = (blockIdx.x * warps + threadIdx.x / LANES) * ROWS;
    const size_t first = size_t(sequence) * steps;
    for (int t = threadIdx.x; t < steps; t += blockDim.x) {
        const float d = softplus(dt[(first + t) * dt_stride + h] + dt_bias[h]);
        delta[t] = fminf(fmaxf(d, dt_min), dt_max);
        decay[t] = expf(delta[t] * A[h]);
    }
    state += (size_t(sequence) * H + h) * P * N;
    const int b_at = E + group * N, c_at = b_at + g * N;
    float s[ROWS][HELD], x_scale[ROWS], b_scale[HELD], c_scale[HELD];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int p = p0 + r < P ? p0 + r : P - 1;  // rows beyond the last go along, and are not stored
        load_state(s[r], state + size_t(p) * N, n, N, state_rows[h * P + p], state_cols + group * N);
        x_scale[r] = xbc_scale ? xbc_scale[h * P + p] : 1.0f;
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const bool scaled = xbc_scale && n + i < N;
        b_scale[i] = scaled ? xbc_scale[b_at + n + i] : 1.0f;
        c_scale[i] = scaled ? xbc_scale[c_at + n + i] : 1.0f;
    }
    __syncthreads();
    const bool whole = N % HELD == 0 && E % HELD == 0;
    const float skip = D[h];
    for (int t = 0; t < steps; t++) {
        const X* row = xbc + (first + t) * width;
        float b[HELD], c[HELD];
        load_four(b, row + b_at, n, N, whole);
        load_four(c, row + c_at, n, N, whole);
        const float d = delta[t], keep = decay[t];
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            b[i] *= b_scale[i];
            c[i] *= c_scale[i];
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int p = p0 + r < P ? p0 + r : P - 1;
            const float x = value_at(row + h * P + p, x_scale[r]), dx = d * x;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                s[r][i] = keep * s[r][i] + dx * b[i];
                sum += c[i] * s[r][i];
            }
            sum = warp_sum(sum);
            if (lane == r && p0 + r < P) y[(first + t) * E + h * P + p] = sum + skip * x;
        }
    }
    const float last = dt[(first + steps - 1) * dt_stride + h];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        if (p0 + r < P)
            store_state(state + size_t(p0 + r) * N, s[r], n, N, state_rows[h * P + p0 + r], state_cols + group * N,
                        dither_seed(last, h * P + p0 + r));
}

}  // namespace quamba

#define QUAMBA_SSD_F32(name, S)                                                                                     \
    extern "C" __global__ void name(const float* xbc, const float* dt, int dt_stride, const float* dt_bias,         \
                                    const float* A, const float* D, S* state, const float* state_rows,              \
                                    const float* state_cols, float* y, int, int T, int H, int P, int N, int g,      \
                                    float dt_min, float dt_max) {                                                   \
        quamba::ssd<float, S>(xbc, nullptr, dt, dt_stride, dt_bias, A, D, state, state_rows, state_cols, y, T, H, P, \
                              N, g, dt_min, dt_max);                                                                \
    }
#define QUAMBA_SSD_I8(name, S)                                                                                      \
    extern "C" __global__ void name(const int8_t* xbc, const float* xbc_scale, const float* dt, int dt_stride,      \
                                    const float* dt_bias, const float* A, const float* D, S* state,                 \
                                    const float* state_rows, const float* state_cols, float* y, int, int T, int H,  \
                                    int P, int N, int g, float dt_min, float dt_max) {                              \
        quamba::ssd<int8_t, S>(xbc, xbc_scale, dt, dt_stride, dt_bias, A, D, state, state_rows, state_cols, y, T, H, \
                               P, N, g, dt_min, dt_max);                                                            \
    }
QUAMBA_FOR_STATES(QUAMBA_SSD_F32, ssd_f32)
QUAMBA_FOR_STATES(QUAMBA_SSD_I8, ssd_i8)
