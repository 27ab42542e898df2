/* y[m] = row tokens[m] of the embedding, which lies as any linear's matrix does           layouts: n16k8, n16k4, row
 *
 * A thread is one word of the row (8, 4 or 1 columns); grid (words / block, M).  A row of a 16-row layout is one word
 * in 64 bytes, so of every 32-byte sector that is read, 4 bytes are used: 16 KB at K = 4096 and 4 bits,
 * once a token. */
#include "../common/device.cuh"

namespace quamba {

/* The word of row n in line `line` of a matrix with `lines` lines of 16 words for each 16 rows. */
__device__ inline uint32_t word_of(const uint32_t* codes, int n, int lines, int line) {
    return codes[(size_t(n / 16) * lines + line) * 16 + n % 16];
}

}  // namespace quamba

extern "C" __global__ void embed_w4(const int* tokens, const uint32_t* codes, const half* scales, float* y, int, int,
                                    int K, int G) {
    const int m = blockIdx.y, n = tokens[m], lines = (K + 7) / 8, groups = (K + G - 1) / G;
    const int line = blockIdx.x * blockDim.x + threadIdx.x;
    if (line >= lines) return;
    const uint32_t word = quamba::word_of(codes, n, lines, line);
    const half* scale = scales + size_t(n / 16) * groups * 16 + n % 16;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int k = 8 * line + i, code = int(word >> (8 * (i % 4) + 4 * (i / 4)) & 15) - 8;
        if (k < K) y[size_t(m) * K + k] = float(code) * __half2float(scale[k / G * 16]);
    }
}

extern "C" __global__ void embed_w8(const int* tokens, const uint32_t* codes, const float* scales, float* y, int, int,
                                    int K) {
    const int m = blockIdx.y, n = tokens[m], lines = (K + 3) / 4;
    const int line = blockIdx.x * blockDim.x + threadIdx.x;
    if (line >= lines) return;
    const uint32_t word = quamba::word_of(codes, n, lines, line);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (4 * line + i < K) y[size_t(m) * K + 4 * line + i] = float(int8_t(word >> 8 * i)) * scales[n];
}

extern "C" __global__ void embed_w16(const int* tokens, const half* weight, float* y, int, int, int K) {
    const int m = blockIdx.y, k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < K) y[size_t(m) * K + k] = __half2float(weight[size_t(tokens[m]) * K + k]);
}
