/* Weights and tokens as the fragments of an mma (common/ptx.cuh), for the layouts in which bundles store them.
 *
 * A warp has 32 rows of W, two blocks of a 16-row layout, and goes through K in steps of 32 columns.  Lane 4 g + t
 * loads rows 4 g .. 4 g + 3 and columns 8 t .. 8 t + 7 of a step, as 16-byte loads: the 32 lanes' 512 bytes of 4-bit
 * codes are two whole pieces of 256.  Which row stands in which place of the mma is free, and which column too as long
 * as both operands agree:
 *
 *     A's rows g and g + 8      rows 4 g + 2 pair and 4 g + 2 pair + 1, pair = 0 and 1: two mma
 *     k, bytes (one mma)        word t: columns 8 t .. 8 t + 3; word t + 4: columns 8 t + 4 .. 8 t + 7
 *     k, halves (two mma)       of the lane's eight columns the first four, then the last four (PAIRS)
 *
 * So nothing moves between lanes, and eight columns of a token are one load of 8 or 16 bytes. */
#pragma once
#include "ptx.cuh"

namespace quamba {

constexpr int WARP_ROWS = 32, STEP = 32;

/* Where a lane stands. */
struct Place {
    int g, t;
    __device__ Place() : g(int(threadIdx.x % LANES) / 4), t(int(threadIdx.x) % 4) {}
};

__device__ inline void spread(uint32_t (&w)[4], uint4 v) {
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
}

/* Four words of line `line` in a block of 16 rows, of `words` lines; zero beyond the last block or line. */
__device__ inline void load_line(uint32_t (&w)[4], const uint32_t* codes, int block, int blocks, int line, int lines,
                                 int quad) {
    uint4 v = {0, 0, 0, 0};
    if (block < blocks && line < lines)
        v = load_once(reinterpret_cast<const uint4*>(codes + (size_t(block) * lines + line) * 16) + quad);
    spread(w, v);
}

/* Where these words are, or null. */
__device__ inline const void* line_at(const uint32_t* codes, int block, int blocks, int line, int lines, int quad) {
    return block < blocks ? codes + (size_t(block) * lines + line) * 16 + 4 * quad : nullptr;
}

/* 4-bit codes, layout n16k8: a line is 8 columns. */
struct Weights4 {
    static constexpr bool PAIRS = false;  // halves come as columns (0 2)(1 3) (4 6)(5 7)
    static constexpr int PIECES = 1;      // of 16 bytes, for a lane's four rows of eight columns
    uint32_t w[4];

    /* Piece i of the lane's rows from column k on; null beyond the last row. */
    static __device__ const void* piece(const uint32_t* codes, int first_row, int N, int K, int k, int i, Place at) {
        return line_at(codes, first_row / 16 + at.g / 4, (N + 15) / 16, k / 8 + i, (K + 7) / 8, at.g % 4);
    }
    __device__ void take(const uint4* pieces, int) {
        spread(w, *pieces);
    }

    __device__ void load(const uint32_t* codes, int first_row, int N, int K, int step, Place at) {
        load_line(w, codes, first_row / 16 + at.g / 4, (N + 15) / 16, step * 4 + at.t, (K + 7) / 8, at.g % 4);
    }
    /* 16 (code - 8) as signed bytes: the nibble at the top of its byte, its highest bit turned over.  The caller
     * divides by 16. */
    static __device__ uint32_t sixteenfold(uint32_t v) {
        return and_xor(v, 0xf0f0f0f0u, 0x80808080u);
    }
    __device__ void bytes(uint32_t (&a)[4], int pair) const {
        a[0] = sixteenfold(w[2 * pair] << 4), a[1] = sixteenfold(w[2 * pair + 1] << 4);
        a[2] = sixteenfold(w[2 * pair]), a[3] = sixteenfold(w[2 * pair + 1]);
    }
    /* Halves 1024 + c from putting the code c into the mantissa of 1024, or 1024 + 16 c four bits higher; then c - 8,
     * exactly. */
    __device__ void halves(uint32_t (&a)[4], int pair, int k) const {
        constexpr uint32_t ONE = 0x3c003c00u, SIXTEENTH = 0x2c002c00u, LOW = 0xe408e408u, HIGH = 0xd480d480u;
        const uint32_t mask = k ? 0x00f000f0u : 0x000f000fu, factor = k ? SIXTEENTH : ONE, less = k ? HIGH : LOW;
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = fma_half2(and_xor(w[2 * pair + i % 2] >> (i < 2 ? 0 : 8), mask, 0x64006400u), factor, less);
    }
};

/* 8-bit codes, layout n16k4: a line is 4 columns. */
struct Weights8 {
    static constexpr bool PAIRS = true;
    static constexpr int PIECES = 2;
    uint32_t w[2][4];

    static __device__ const void* piece(const uint32_t* codes, int first_row, int N, int K, int k, int i, Place at) {
        return line_at(codes, first_row / 16 + at.g / 4, (N + 15) / 16, k / 4 + i, (K + 3) / 4, at.g % 4);
    }
    __device__ void take(const uint4* pieces, int apart) {
#pragma unroll
        for (int i = 0; i < 2; i++) spread(w[i], pieces[i * apart]);
    }

    __device__ void load(const uint32_t* codes, int first_row, int N, int K, int step, Place at) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            load_line(w[i], codes, first_row / 16 + at.g / 4, (N + 15) / 16, step * 8 + 2 * at.t + i, (K + 3) / 4,
                      at.g % 4);
    }
    __device__ void bytes(uint32_t (&a)[4], int pair) const {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = w[i / 2][2 * pair + i % 2];
    }
    /* Code + 128 in the mantissa of 1024, then less 1152. */
    __device__ void halves(uint32_t (&a)[4], int pair, int k) const {
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = fma_half2(__byte_perm(w[k][2 * pair + i % 2] ^ 0x80808080u, 0x64646464u, i < 2 ? 0x4140 : 0x4342),
                             0x3c003c00u, 0xe480e480u);
    }
};

/* f16, row by row: four rows of 16 bytes. */
struct Weights16 {
    static constexpr bool PAIRS = true;
    static constexpr int PIECES = 4;
    uint32_t w[4][4];

    static __device__ const void* piece(const half* weight, int first_row, int N, int K, int k, int i, Place at) {
        const int n = first_row + 4 * at.g + i;
        return n < N ? weight + size_t(n) * K + k : nullptr;
    }
    __device__ void take(const uint4* pieces, int apart) {
#pragma unroll
        for (int r = 0; r < 4; r++) spread(w[r], pieces[r * apart]);
    }

    __device__ void load(const half* weight, int first_row, int N, int K, int step, Place at) {
        const int k = step * STEP + 8 * at.t;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int n = first_row + 4 * at.g + r;
            uint4 v = {0, 0, 0, 0};
            const half* row = weight + size_t(n) * K + k;
            if (n < N && K % 8 == 0) {
                if (k < K) v = load_once(reinterpret_cast<const uint4*>(row));
                spread(w[r], v);
            } else {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint16_t* bits = reinterpret_cast<const uint16_t*>(row) + 2 * i;
                    w[r][i] = n < N && k + 2 * i < K ? bits[0] : 0;
                    if (n < N && k + 2 * i + 1 < K) w[r][i] |= uint32_t(bits[1]) << 16;
                }
            }
        }
    }
    __device__ void halves(uint32_t (&a)[4], int pair, int k) const {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = w[2 * pair + i % 2][2 * k + i / 2];
    }
};

/* Eight columns of a token as int8: B's two words. */
struct Tokens8 {
    uint32_t b[2];

    __device__ void load(const int8_t* x, int m, int M, int K, int step, Place at) {
        const int k = step * STEP + 8 * at.t;
        b[0] = b[1] = 0;
        if (m >= M || k >= K) return;
        const int8_t* row = x + size_t(m) * K + k;
        if (K % 8 == 0) {
            const uint2 v = *reinterpret_cast<const uint2*>(row);
            b[0] = v.x, b[1] = v.y;
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++)
                if (k + i < K) b[i / 4] |= uint32_t(uint8_t(row[i])) << 8 * (i % 4);
        }
    }
};

/* Eight columns of a token as f16: B's two words of two mma, in the weights' order. */
template <bool PAIRS>
struct Tokens16 {
    uint32_t b[2][2];

    __device__ void load(const half* x, int m, int M, int K, int step, Place at) {
        const int k = step * STEP + 8 * at.t;
        uint32_t w[4] = {0, 0, 0, 0};
        if (m < M && k < K) {
            const half* row = x + size_t(m) * K + k;
            if (K % 8 == 0) {
                spread(w, *reinterpret_cast<const uint4*>(row));
            } else {
#pragma unroll
                for (int i = 0; i < 8; i++)
                    if (k + i < K) w[i / 2] |= uint32_t(reinterpret_cast<const uint16_t*>(row)[i]) << 16 * (i % 2);
            }
        }
        order(w);
    }
    /* From the eight columns as they lie. */
    __device__ void order(const uint32_t (&w)[4]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            b[i][0] = PAIRS ? w[2 * i] : __byte_perm(w[2 * i], w[2 * i + 1], 0x5410);
            b[i][1] = PAIRS ? w[2 * i + 1] : __byte_perm(w[2 * i], w[2 * i + 1], 0x7632);
        }
    }
};

}  // namespace quamba
