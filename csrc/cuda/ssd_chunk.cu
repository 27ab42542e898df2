/* Mamba2's recurrence for many tokens, as matrix products (Dao and Gu 2024, arXiv 2405.21060, section 6)
 *                                                                                          (quamba_edge/ops/ssd.py)
 * With L the running sum of d A over Q tokens and s the state before them:
 *
 *     y[t, p]  = exp(L[t]) sum_n C[t, n] s[p, n]  +  sum_{u <= t} M[t, u] x[u, p]  +  D x[t, p]
 *     M[t, u]  = exp(L[t] - L[u]) d[u] sum_n C[t, n] B[u, n]
 *     s[p, n] <- exp(L[Q-1]) s[p, n]  +  sum_u exp(L[Q-1] - L[u]) d[u] x[u, p] B[u, n]
 *
 * Split: a block is 64 rows p of a head, a warp 16 of them with all N columns, which stay in registers as an mma's
 * sums from the first token to the last and are rounded once; grid (P / 64, H, S).  Q tokens go by at a time: the
 * products with s and those into s take 2 N P multiply-adds a token whatever Q is, M and its product Q (N + P) / 2.
 *
 * Numbers are tf32 in two terms (the value rounded to 11 bits, and what is left of it): three mma for each product of
 * floats, with errors of 2^-22 of each, as plain f32 sums have.  One term, or f16, would be a thousand times coarser.
 * That s comes out of an mma as sums and goes into the next as A costs no move: the order of k is free, so lane t's
 * columns 2 t and 2 t + 1 stand for k = t and t + 4.
 *
 * Bound: 3 (2 N P + Q (N + P) / 2) multiply-adds of tf32 for each head and token, 512 a clock and SM: with N = 128,
 * P = 64, Q = 16 it is 54 K and 105 clocks, where the plain recurrence (ssd.cu) issues about 120 instructions for four
 * rows, 480 clocks.  From memory: the state once in and once out, x, B, C once for each head of a group. */
#include "../common/state.cuh"
#include "../common/ptx.cuh"

namespace quamba {
namespace ssd_chunk {

constexpr int Q = 16, ROWS = 64, COLUMNS = 128, TILES = COLUMNS / 8;
// Floats from one row of shared memory to the next, so that 32 lanes meet 32 banks: 8 modulo 32, or 20 for M.
constexpr int WIDE = COLUMNS + 8, NARROW = ROWS + 8, SQUARE = Q + 4;

struct Shared {
    float B[Q * WIDE], C[Q * WIDE], x[Q * NARROW];
    float part[2 * Q * SQUARE];  // C B^T, the two halves of its sum over n; then M
    float high[Q], low[Q];       // L in two floats: differences of large sums keep their last bits
    float d[Q], grow[Q], into[Q];  // d, exp(L), and what x's share in the new state is multiplied with
};

__device__ inline void split(uint32_t& high, uint32_t& low, float v) {
    const uint32_t rounded = (__float_as_uint(v) + 0x1000u) & 0xffffe000u;
    high = rounded;
    low = __float_as_uint(v - __uint_as_float(rounded)) + 0x1000u;  // an mma ignores the 13 bits below
}

struct A {
    uint32_t high[4], low[4];
    __device__ A(float a0, float a1, float a2, float a3) {
        split(high[0], low[0], a0), split(high[1], low[1], a1);
        split(high[2], low[2], a2), split(high[3], low[3], a3);
    }
};
struct B {
    uint32_t high[2], low[2];
    __device__ B(float b0, float b1) {
        split(high[0], low[0], b0), split(high[1], low[1], b1);
    }
};

/* c += a b, small terms first.  Tensor cores cut sums off towards zero, which adds up over a long one: c is added to on
 * the ordinary cores, which round (Ootomo and Yokota 2022, arXiv 2203.03341). */
__device__ inline void multiply(float (&c)[4], const A& a, const B& b) {
    float part[4] = {};
    mma_tf32(part, a.low, b.high);
    mma_tf32(part, a.high, b.low);
    mma_tf32(part, a.high, b.high);
#pragma unroll
    for (int i = 0; i < 4; i++) c[i] += part[i];
}

/* Tokens `at` .. of Q, four neighbouring channels a thread; beyond the last token, row or column zero. */
template <class X>
__device__ inline void fetch(float* to, int pitch, const X* from, const float* scale, int width, int count, int used,
                             int tokens, bool whole) {
    for (int i = threadIdx.x; i < Q * count / HELD; i += blockDim.x) {
        const int t = i / (count / HELD), n = i % (count / HELD) * HELD;
        float v[HELD] = {};
        if (t < tokens) load_four(v, from + size_t(t) * width, n, used, whole);
#pragma unroll
        for (int j = 0; j < HELD; j++) to[t * pitch + n + j] = scale && n + j < used ? v[j] * scale[n + j] : v[j];
    }
}

/* What the first warp knows of the Q tokens: delta, and the decays between them. */
__device__ inline void decays(Shared& s, const float* dt, int dt_stride, float bias, float a, int tokens, float dt_min,
                              float dt_max) {
    const int t = threadIdx.x;
    if (t >= LANES) return;
    float d = 0.0f;
    if (t < tokens && t < Q) d = fminf(fmaxf(softplus(dt[size_t(t) * dt_stride] + bias), dt_min), dt_max);
    double sum = double(d * a);
#pragma unroll
    for (int apart = 1; apart < Q; apart *= 2) {
        const double before = __shfl_sync(ALL, sum, t >= apart ? t - apart : t);
        if (t >= apart) sum += before;
    }
    const double last = __shfl_sync(ALL, sum, Q - 1);
    if (t >= Q) return;
    s.d[t] = d;
    s.high[t] = float(sum);
    s.low[t] = float(sum - double(s.high[t]));
    s.grow[t] = expf(s.high[t]) * (1.0f + s.low[t]);
    s.into[t] = expf(float(last - sum)) * d;
}

template <class X, class S>
__device__ inline void run(const X* xbc, const float* xbc_scale, const float* dt, int dt_stride, const float* dt_bias,
                           const float* A_, const float* D, S* state, const float* state_rows, const float* state_cols,
                           float* y, int steps, int H, int P, int N, int g, float dt_min, float dt_max) {
    QUAMBA_SHARED(Shared, shared);
    Shared& s = *shared;
    const int h = blockIdx.y, group = h / (H / g), E = H * P, width = E + 2 * g * N, p0 = blockIdx.x * ROWS;
    const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES, lane = threadIdx.x % LANES;
    const int row = lane / 4, t4 = lane % 4;
    const int b_at = E + group * N, c_at = b_at + g * N, x_at = h * P + p0, mine = 16 * warp + row;
    const size_t first = size_t(blockIdx.z) * steps;
    const float* cols = state_cols + group * N;
    state += (size_t(blockIdx.z) * H + h) * P * N;
    float sum[TILES][4];  // of the mma: rows `mine` and `mine` + 8, columns 8 j + 2 t4 and the next
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int p = p0 + mine + i / 2 * 8, n = 8 * j + 2 * t4 + i % 2;
            sum[j][i] = 0.0f;
            if (p < P && n < N) {
                sum[j][i] = as_float(state[size_t(p) * N + n]);
                if (IS_CODES<S>) sum[j][i] *= state_rows[h * P + p] * cols[n];
            }
        }
    for (int start = 0; start < steps; start += Q) {
        const int tokens = min(Q, steps - start);
        const X* from = xbc + (first + start) * width;
        const bool whole = N % HELD == 0 && P % HELD == 0;
        __syncthreads();  // nobody reads what is filled now
        fetch(s.B, WIDE, from + b_at, xbc_scale ? xbc_scale + b_at : nullptr, width, COLUMNS, N, tokens, whole);
        fetch(s.C, WIDE, from + c_at, xbc_scale ? xbc_scale + c_at : nullptr, width, COLUMNS, N, tokens, whole);
        fetch(s.x, NARROW, from + x_at, xbc_scale ? xbc_scale + x_at : nullptr, width, ROWS, P - p0, tokens, whole);
        decays(s, dt + (first + start) * dt_stride + h, dt_stride, dt_bias[h], A_[h], tokens, dt_min, dt_max);
        __syncthreads();
        // C B^T: two tiles of eight tokens u, each in two halves of n, one for each warp.
        for (int job = warp; job < 4; job += warps) {
            float part[4] = {};
            const int tile = job % 2, half = job / 2 * (TILES / 2);
            for (int j = half; j < half + TILES / 2 && 8 * j < N; j++) {
                const int n = 8 * j + 2 * t4;
                const float *c = s.C + row * WIDE + n, *b = s.B + (8 * tile + row) * WIDE + n;
                multiply(part, A(c[0], c[8 * WIDE], c[1], c[8 * WIDE + 1]), B(b[0], b[1]));
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
                s.part[(job / 2 * Q + row + i / 2 * 8) * SQUARE + 8 * tile + 2 * t4 + i % 2] = part[i];
        }
        // What is left of the state before: y[t, p] as rows p and columns t.
        float out[2][4] = {};
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            if (8 * j >= N) continue;
            const A a(sum[j][0], sum[j][2], sum[j][1], sum[j][3]);
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                const float* c = s.C + (8 * tile + row) * WIDE + 8 * j + 2 * t4;
                multiply(out[tile], a, B(c[0], c[1]));
            }
        }
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[tile][i] *= s.grow[8 * tile + 2 * t4 + i % 2];
        __syncthreads();
        for (int i = threadIdx.x; i < Q * Q; i += blockDim.x) {
            const int t = i / Q, u = i % Q;
            const float between = (s.high[t] - s.high[u]) + (s.low[t] - s.low[u]);
            float& m = s.part[t * SQUARE + u];
            m = u <= t ? expf(between) * s.d[u] * (m + s.part[(Q + t) * SQUARE + u]) : 0.0f;
        }
        __syncthreads();
        const float keep = s.grow[Q - 1];
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[j][i] *= keep;
#pragma unroll
        for (int k = 0; k < Q; k += 8) {
            const float *x = s.x + (k + t4) * NARROW + mine, a[4] = {x[0], x[8], x[4 * NARROW], x[4 * NARROW + 8]};
            const A plain(a[0], a[1], a[2], a[3]);
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                const float* m = s.part + (8 * tile + row) * SQUARE + k + t4;
                multiply(out[tile], plain, B(m[0], m[4]));
            }
            const float one = s.into[k + t4], other = s.into[k + t4 + 4];
            const A weighted(a[0] * one, a[1] * one, a[2] * other, a[3] * other);
#pragma unroll
            for (int j = 0; j < TILES; j++) {
                if (8 * j >= N) continue;
                const float* b = s.B + (k + t4) * WIDE + 8 * j + row;
                multiply(sum[j], weighted, B(b[0], b[4 * WIDE]));
            }
        }
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int t = 8 * tile + 2 * t4 + i % 2, p = mine + i / 2 * 8;
                if (t < tokens && p0 + p < P)
                    y[(first + start + t) * E + x_at + p] = out[tile][i] + D[h] * s.x[t * NARROW + p];
            }
    }
    const float last = dt[(first + steps - 1) * dt_stride + h];
#pragma unroll
    for (int j = 0; j < TILES; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int p = p0 + mine + i / 2 * 8, n = 8 * j + 2 * t4 + i % 2;
            if (p < P && n < N)
                round_to(state + size_t(p) * N + n, sum[j][i], IS_CODES<S> ? state_rows[h * P + p] * cols[n] : 1.0f,
                         IS_CODES<S> ? dither(dither_seed(last, h * P + p), n) : 0.0f);
        }
}

}  // namespace ssd_chunk
}  // namespace quamba

#define QUAMBA_SSD_F32(name, S)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name(const float* xbc, const float* dt, int dt_stride, const float* dt_bias, const float* A, const float* D,  \
             S* state, const float* state_rows, const float* state_cols, float* y, int, int T, int H, int P, int N,   \
             int g, float dt_min, float dt_max) {                                                                     \
        quamba::ssd_chunk::run<float, S>(xbc, nullptr, dt, dt_stride, dt_bias, A, D, state, state_rows, state_cols, y, \
                                         T, H, P, N, g, dt_min, dt_max);                                              \
    }
#define QUAMBA_SSD_I8(name, S)                                                                                        \
    extern "C" __global__ void __launch_bounds__(128)                                                                 \
        name(const int8_t* xbc, const float* xbc_scale, const float* dt, int dt_stride, const float* dt_bias,         \
             const float* A, const float* D, S* state, const float* state_rows, const float* state_cols, float* y,    \
             int, int T, int H, int P, int N, int g, float dt_min, float dt_max) {                                    \
        quamba::ssd_chunk::run<int8_t, S>(xbc, xbc_scale, dt, dt_stride, dt_bias, A, D, state, state_rows, state_cols, \
                                          y, T, H, P, N, g, dt_min, dt_max);                                          \
    }
QUAMBA_FOR_STATES(QUAMBA_SSD_F32, ssd_chunk_f32)
QUAMBA_FOR_STATES(QUAMBA_SSD_I8, ssd_chunk_i8)
