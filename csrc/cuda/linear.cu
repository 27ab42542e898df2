/* y[m, n] = sum_k x[m, k] W[n, k]                                       layouts: n16k8, n16k4, row; scales n16
 *
 * Split: a block has 32 rows of W and 8 TILES tokens; its warps share out K in units of 128 columns and meet in shared
 * memory, in an order that does not change.  grid (token tiles, N / 32): blocks of the same rows run side by side, so
 * W comes from memory once.
 *
 * Decode reads every weight once: 4.13 bits each with group scales, N K / 1.94 bytes over the memory's bandwidth.  At
 * 68 GB/s and 612 MHz, as at 102 and 918, an SM of eight gets 14 bytes a clock and can issue four instructions in it:
 * 147 for the 512 bytes that a warp loads at once.  Tensor cores are used at one token too, because eight tokens cost
 * the same: 512 bytes of 4-bit weights need some 12 logic instructions and two mma (A8), or 20 and 16 half2
 * multiply-adds and four (A16), where dp4a would need 32 and floats 128.  Four loads of 16 bytes a lane are in flight
 * before the first is used.
 *
 * Short chunks are the same with 16 or 32 tokens for each fragment of weights; longer ones are linear_chunk.cu's. */
#include "../common/kinds.cuh"

namespace quamba {

constexpr int UNIT = 4;  // steps between two looks at the group scales, and loads in flight

/* One step of 32 columns: 32 rows by 8 TILES tokens. */
template <class Kind, int TILES>
__device__ inline void multiply(int32_t (&part)[TILES][2][4], const typename Kind::Weights& w,
                                const Tokens8 (&x)[TILES]) {
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        uint32_t a[4];
        w.bytes(a, pair);
#pragma unroll
        for (int i = 0; i < TILES; i++) mma(part[i][pair], a, x[i].b);
    }
}
template <class Kind, int TILES>
__device__ inline void multiply(float (&part)[TILES][2][4], const typename Kind::Weights& w,
                                const typename Kind::Tokens (&x)[TILES]) {
#pragma unroll
    for (int pair = 0; pair < 2; pair++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
            uint32_t a[4];
            w.halves(a, pair, k);
#pragma unroll
            for (int i = 0; i < TILES; i++) mma(part[i][pair], a, x[i].b[k]);
        }
}

/* sum += part * the scale of each row in `group`; part = 0. */
template <int TILES, class Part>
__device__ inline void fold(float (&sum)[TILES][2][4], Part (&part)[TILES][2][4], const half* scales, int block,
                            int blocks, int group, int groups, int quad) {
    uint2 four = {0, 0};
    if (block < blocks) four = reinterpret_cast<const uint2*>(scales + (size_t(block) * groups + group) * 16)[quad];
#pragma unroll
    for (int pair = 0; pair < 2; pair++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float factor = float_of_half(four, 2 * pair + i / 2);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                sum[tile][pair][i] += factor * float(part[tile][pair][i]);
                part[tile][pair][i] = 0;
            }
        }
}

/* `scales` are those of groups or of rows, or null; `x_scale` may be null. */
template <class Kind, int TILES, class W, class Scale>
__device__ inline void linear(const typename Kind::X* x, const float* x_scale, const W* weight, const Scale* scales,
                              float* y, int M, int N, int K, int G, int add) {
    using Sum = typename Kind::Sum;
    QUAMBA_SHARED(Sum, meet);  // (warps, 32 rows, 8 TILES tokens)
    const Place at;
    const int warp = threadIdx.x / LANES, warps = blockDim.x / LANES;
    const int m0 = blockIdx.x * 8 * TILES, n0 = blockIdx.y * WARP_ROWS;
    const int block = n0 / 16 + at.g / 4, blocks = (N + 15) / 16;
    const int groups = (K + G - 1) / G, steps = (K + STEP - 1) / STEP;
    const int every = G % (UNIT * STEP) == 0 || G >= K ? UNIT : 1;  // steps that surely lie in one group
    Sum sum[TILES][2][4] = {};
    typename Kind::Part part[TILES][2][4] = {};
    for (int step = warp * UNIT; step < steps; step += warps * UNIT) {
        typename Kind::Weights w[UNIT];
#pragma unroll
        for (int u = 0; u < UNIT; u++) w[u].load(weight, n0, N, K, step + u, at);
#pragma unroll
        for (int u = 0; u < UNIT; u++) {
            typename Kind::Tokens tokens[TILES];
#pragma unroll
            for (int i = 0; i < TILES; i++) tokens[i].load(x, m0 + 8 * i + at.g, M, K, step + u, at);
            multiply<Kind, TILES>(part, w[u], tokens);
            if constexpr (Kind::GROUPS)
                if (every == 1 || u == UNIT - 1) {
                    const int group = (step + u + 1 - every) * STEP / G;
                    if (group < groups) fold(sum, part, scales, block, blocks, group, groups, at.g % 4);
                }
        }
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int pair = 0; pair < 2; pair++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = 4 * at.g + 2 * pair + i / 2, token = 8 * tile + 2 * at.t + i % 2;
                const Sum value = Kind::GROUPS ? sum[tile][pair][i] : Sum(part[tile][pair][i]);
                meet[(warp * 8 * TILES + token) * WARP_ROWS + row] = value;
            }
    __syncthreads();
    const float factor = (x_scale ? *x_scale : 1.0f) * Kind::FACTOR;
    for (int i = threadIdx.x; i < 8 * TILES * WARP_ROWS; i += blockDim.x) {
        const int n = n0 + i % WARP_ROWS, m = m0 + i / WARP_ROWS;
        if (n >= N || m >= M) continue;
        Sum total = 0;
        for (int other = 0; other < warps; other++) total += meet[other * 8 * TILES * WARP_ROWS + i];
        float scale = factor;
        if constexpr (!Kind::GROUPS)
            if (scales) scale *= scales[n];
        float* out = y + size_t(m) * N + n;
        *out = float(total) * scale + (add ? *out : 0.0f);
    }
}

}  // namespace quamba

/* Each op for 8, 16 and 32 tokens at a time: name, name_x16, name_x32. */
#define QUAMBA_FOR_TILES(KERNEL, name) \
    KERNEL(name, 1)                    \
    KERNEL(name##_x16, 2)              \
    KERNEL(name##_x32, 4)

#define QUAMBA_LINEAR_W4A8(name, TILES)                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        name(const int8_t* x, const float* x_scale, const uint32_t* codes, const half* scales, float* y, int M,    \
             int N, int K, int G, int add) {                                                                       \
        quamba::linear<quamba::W4A8, TILES>(x, x_scale, codes, scales, y, M, N, K, G, add);                        \
    }
#define QUAMBA_LINEAR_W8A8(name, TILES)                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        name(const int8_t* x, const float* x_scale, const uint32_t* codes, const float* scales, float* y, int M,   \
             int N, int K, int add) {                                                                              \
        quamba::linear<quamba::W8A8, TILES>(x, x_scale, codes, scales, y, M, N, K, K, add);                        \
    }
#define QUAMBA_LINEAR_W4A16(name, TILES)                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        name(const half* x, const uint32_t* codes, const half* scales, float* y, int M, int N, int K, int G,       \
             int add) {                                                                                            \
        quamba::linear<quamba::W4A16, TILES>(x, nullptr, codes, scales, y, M, N, K, G, add);                       \
    }
#define QUAMBA_LINEAR_W8A16(name, TILES)                                                                           \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        name(const half* x, const uint32_t* codes, const float* scales, float* y, int M, int N, int K, int add) {  \
        quamba::linear<quamba::W8A16, TILES>(x, nullptr, codes, scales, y, M, N, K, K, add);                       \
    }
#define QUAMBA_LINEAR_W16A16(name, TILES)                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        name(const half* x, const half* weight, float* y, int M, int N, int K, int add) {                          \
        quamba::linear<quamba::W16A16, TILES>(x, nullptr, weight, (const float*)nullptr, y, M, N, K, K, add);      \
    }
QUAMBA_FOR_TILES(QUAMBA_LINEAR_W4A8, linear_w4a8)
QUAMBA_FOR_TILES(QUAMBA_LINEAR_W8A8, linear_w8a8)
QUAMBA_FOR_TILES(QUAMBA_LINEAR_W4A16, linear_w4a16)
QUAMBA_FOR_TILES(QUAMBA_LINEAR_W8A16, linear_w8a16)
QUAMBA_FOR_TILES(QUAMBA_LINEAR_W16A16, linear_w16a16)
