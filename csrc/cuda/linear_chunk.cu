/* y[m, n] = sum_k x[m, k] W[n, k] for chunks of more than 32 tokens          layouts: n16k8, n16k4, row; scales n16
 *
 * Split: a block is WARPS x 32 rows of W and 64 tokens, a warp 32 rows and all of them; grid (tokens / 64, N / 128).
 * K goes by in stages of 128 bytes a token, through STAGES buffers that cp.async fills: a token's bytes serve every
 * warp, a lane's weights only itself, which saves registers and not traffic.
 *
 * A lane reads 16 bytes of a token at once, which are two mma's worth, because the order of k is free (tiles.cuh):
 * what ldmatrix would bring per instruction, without its order.  The bytes of odd tokens are turned half a line, so
 * that eight lanes meet 32 banks.
 *
 * Bound: the products.  An SM of eight does 2048 int8 or 1024 f16 multiply-adds a clock.  For 32 x 64 results and 128
 * columns a scheduler is busy with 64 mma for 512 clocks, and issues beside them some 50 instructions that unpack 4-bit
 * codes, 20 loads of shared memory, and 128 that scale a group's sums: f32 as they are, int32 made so by starting at
 * the bits of 1.5 * 2^23, where one subtraction converts.  From memory, W once for each 64 tokens and x once for each
 * 128 rows: with N = 18560, K = 4096 and 128 tokens 76 and 76 MB through the L2, for 9.7 G multiply-adds. */
#include "../common/kinds.cuh"

namespace quamba {

constexpr int WARPS = 4, THREADS = WARPS * LANES;  // two blocks an SM: 8 SMs have no more than 130 blocks of 128 rows
constexpr int TILES = 8, TOKENS = 8 * TILES;       // 128 registers of sums; 16 tiles would not fit into 255
constexpr int STAGES = 3;                          // one in use, two coming: 500 clocks each, a memory's latency
constexpr int LINE = 128;                          // bytes of a token in a stage

/* What an int32 sum starts from so that its bits are a float: |sum| < 2^22, and 16 * 8 * 127 * 128 is half of it. */
constexpr int32_t START = 0x4b400000;

__device__ inline float value_of(int32_t part) {
    return __int_as_float(part) - 12582912.0f;
}
__device__ inline float value_of(float part) {
    return part;
}

/* The two mma steps of a lane's 16 token bytes: A's words, for 32 rows, and B's. */
template <class Kind>
__device__ inline void weights_of(uint32_t (&a)[2][2][4], const uint4* pieces, int8_t) {
#pragma unroll
    for (int step = 0; step < 2; step++) {
        typename Kind::Weights w;
        w.take(pieces + step * Kind::Weights::PIECES * THREADS, THREADS);
#pragma unroll
        for (int pair = 0; pair < 2; pair++) w.bytes(a[step][pair], pair);
    }
}
template <class Kind>
__device__ inline void weights_of(uint32_t (&a)[2][2][4], const uint4* pieces, half) {
    typename Kind::Weights w;
    w.take(pieces, THREADS);
#pragma unroll
    for (int step = 0; step < 2; step++)
#pragma unroll
        for (int pair = 0; pair < 2; pair++) w.halves(a[step][pair], pair, step);
}
template <class Kind>
__device__ inline void token_of(uint32_t (&b)[2][2], uint4 v, int8_t) {
    b[0][0] = v.x, b[0][1] = v.y, b[1][0] = v.z, b[1][1] = v.w;
}
template <class Kind>
__device__ inline void token_of(uint32_t (&b)[2][2], uint4 v, half) {
    typename Kind::Tokens tokens;
    uint32_t w[4];
    spread(w, v);
    tokens.order(w);
#pragma unroll
    for (int i = 0; i < 4; i++) b[i / 2][i % 2] = tokens.b[i / 2][i % 2];
}

template <class Kind, class W, class Scale>
__device__ inline void linear_chunk(const typename Kind::X* x, const float* x_scale, const W* weight,
                                    const Scale* scales, float* y, int M, int N, int K, int G, int add) {
    using X = typename Kind::X;
    using Part = typename Kind::Part;
    constexpr int COLUMNS = LINE / sizeof(X), MINE = 16 / sizeof(X), PIECES = MINE / 8 * Kind::Weights::PIECES;
    constexpr int OF_X = TOKENS * LINE / 16, STAGE = OF_X + 2 * PIECES * THREADS;  // in 16 bytes
    constexpr Part FROM = Kind::GROUPS && sizeof(X) == 1 ? Part(START) : Part(0);
    QUAMBA_SHARED(uint4, shared);
    const Place at;
    const int warp = threadIdx.x / LANES, m0 = blockIdx.x * TOKENS, n0 = (blockIdx.y * WARPS + warp) * WARP_ROWS;
    const int block = n0 / 16 + at.g / 4, blocks = (N + 15) / 16, groups = (K + G - 1) / G, stages = K / COLUMNS;
    const auto fetch = [&](int stage) {
        uint4* to = shared + stage % STAGES * STAGE;
#pragma unroll
        for (int i = 0; i < OF_X / THREADS; i++) {
            const int token = (i * THREADS + int(threadIdx.x)) / 8, part = threadIdx.x % 8, m = m0 + token;
            const X* from = x + size_t(m) * K + stage * COLUMNS + part * MINE;
            copy_async(to + token * 8 + (part ^ (token % 2 * 4)), m < M ? from : nullptr);
        }
#pragma unroll
        for (int i = 0; i < 2 * PIECES; i++) {
            const int k = stage * COLUMNS + (i / PIECES * 4 + at.t) * MINE;
            copy_async(to + OF_X + i * THREADS + threadIdx.x,
                       Kind::Weights::piece(weight, n0, N, K, k, i % PIECES, at));
        }
    };
    float sum[TILES][2][4] = {};
    Part part[TILES][2][4] = {};
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < stages) fetch(stage);
        copies_end();
    }
    for (int stage = 0; stage < stages; stage++) {
        copies_wait<STAGES - 2>();
        __syncthreads();  // all have come, and nobody reads the buffer that is filled next
        if (stage + STAGES - 1 < stages) fetch(stage + STAGES - 1);
        copies_end();
        uint2 four = {0, 0};
        if constexpr (Kind::GROUPS)
            if (block < blocks)
                four = reinterpret_cast<const uint2*>(scales + (size_t(block) * groups + stage * COLUMNS / G) *
                                                                   16)[at.g % 4];
        const uint4* from = shared + stage % STAGES * STAGE;
#pragma unroll
        for (int part_of = 0; part_of < 2; part_of++) {
            uint32_t a[2][2][4];
            weights_of<Kind>(a, from + OF_X + part_of * PIECES * THREADS + threadIdx.x, X());
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const int token = 8 * tile + at.g;
                uint32_t b[2][2];
                token_of<Kind>(b, from[token * 8 + ((part_of * 4 + at.t) ^ (token % 2 * 4))], X());
#pragma unroll
                for (int step = 0; step < 2; step++)
#pragma unroll
                    for (int pair = 0; pair < 2; pair++)
                        if (Kind::GROUPS && part_of == 0 && step == 0)
                            mma_from(part[tile][pair], a[step][pair], b[step], FROM);
                        else
                            mma(part[tile][pair], a[step][pair], b[step]);
            }
        }
        if constexpr (Kind::GROUPS) {
#pragma unroll
            for (int pair = 0; pair < 2; pair++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float factor = float_of_half(four, 2 * pair + i / 2);
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++)
                        sum[tile][pair][i] += factor * value_of(part[tile][pair][i]);
                }
        }
    }
    copies_wait<0>();
    const int n = n0 + 4 * at.g;
    float factor[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        factor[r] = (x_scale ? *x_scale : 1.0f) * Kind::FACTOR;
        if constexpr (!Kind::GROUPS)
            if (scales && n + r < N) factor[r] *= scales[n + r];
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int m = m0 + 8 * tile + 2 * at.t + j;
            if (m >= M || n >= N) continue;
            float* out = y + size_t(m) * N + n;
            float v[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const int i = r % 2 * 2 + j;
                v[r] = factor[r] * (Kind::GROUPS ? sum[tile][r / 2][i] : float(part[tile][r / 2][i]));
            }
            if (N % 4 == 0) {
                float4 before = {0.0f, 0.0f, 0.0f, 0.0f};
                if (add) before = *reinterpret_cast<const float4*>(out);
                *reinterpret_cast<float4*>(out) = {v[0] + before.x, v[1] + before.y, v[2] + before.z, v[3] + before.w};
            } else {
                for (int r = 0; r < 4; r++)
                    if (n + r < N) out[r] = v[r] + (add ? out[r] : 0.0f);
            }
        }
}

}  // namespace quamba

extern "C" __global__ void __launch_bounds__(128, 2)
    linear_w4a8_x64(const int8_t* x, const float* x_scale, const uint32_t* codes, const half* scales, float* y, int M,
                    int N, int K, int G, int add) {
    quamba::linear_chunk<quamba::W4A8>(x, x_scale, codes, scales, y, M, N, K, G, add);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    linear_w8a8_x64(const int8_t* x, const float* x_scale, const uint32_t* codes, const float* scales, float* y, int M,
                    int N, int K, int add) {
    quamba::linear_chunk<quamba::W8A8>(x, x_scale, codes, scales, y, M, N, K, K, add);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    linear_w4a16_x64(const half* x, const uint32_t* codes, const half* scales, float* y, int M, int N, int K, int G,
                     int add) {
    quamba::linear_chunk<quamba::W4A16>(x, nullptr, codes, scales, y, M, N, K, G, add);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    linear_w8a16_x64(const half* x, const uint32_t* codes, const float* scales, float* y, int M, int N, int K,
                     int add) {
    quamba::linear_chunk<quamba::W8A16>(x, nullptr, codes, scales, y, M, N, K, K, add);
}

extern "C" __global__ void __launch_bounds__(128, 2)
    linear_w16a16_x64(const half* x, const half* weight, float* y, int M, int N, int K, int add) {
    quamba::linear_chunk<quamba::W16A16>(x, nullptr, weight, static_cast<const float*>(nullptr), y, M, N, K, K, add);
}
