/* Quantized matrices as they lie in a bundle (layouts.py: n16k8, n16k4, n16), seen by products that take eight columns a step.
 *
 * Rows come in blocks of 16, one row a lane.  A 64-byte line is 16 rows by 8 columns (4-bit) or by 4 (8-bit). */
#pragma once
#include "rows.h"

namespace quamba {
namespace SIMD {

constexpr int STEP = 8;      // columns
constexpr int AHEAD = 2048;  // bytes of weights asked for in advance: the hardware's own prefetch stops at every page

/* `part<0>`, `part<1>`: the first and second four columns of a step, as bytes that `dot` reads, OFFSET too large.
 * `column<I>`: column I of a step, as floats. */
struct W4 {
    static constexpr int BYTES = 64;  // of a step
    static constexpr int OFFSET = 8;
    template <int P>
    static bytes64 part(const char* p) {
        return P ? high_nibbles(load64(p)) : low_nibbles(load64(p));
    }
    static i32x16 dot(i32x16 a, bytes64 w, bytes64 x) { return dot4(a, w, x); }
    template <int I>
    static f32x16 column(const char* p) {
        return nibble<I % 4 * 2 + I / 4>(load64(p));
    }
};

struct W8 {
    static constexpr int BYTES = 128;
    static constexpr int OFFSET = BIAS8;
    template <int P>
    static bytes64 part(const char* p) {
        return codes8(load64(p + 64 * P));
    }
    static i32x16 dot(i32x16 a, bytes64 w, bytes64 x) { return dot8(a, w, x); }
    template <int I>
    static f32x16 column(const char* p) {
        return byte<I % 4>(load64(p + 64 * (I / 4)));
    }
};

/* Matrix (N, K) of a call, whose arrays `first` and first + 1 are codes and scales, and whose sizes are M, N, K, [G,] add.
 * 8-bit weights have one scale a row: one group. */
template <class W>
struct Matrix {
    const char* codes;
    const void* scales;
    int64_t N, K, G, groups, block_bytes;

    Matrix(const Call& c, int first) : codes(c.at<char>(first)), scales(c.array[first + 1]), N(c.size[1]), K(c.size[2]) {
        constexpr bool grouped = W::BYTES == 64;
        G = grouped ? c.size[3] : K;
        groups = (K + G - 1) / G;
        block_bytes = grouped ? (K + 7) / 8 * 64 : (K + 3) / 4 * 64;
    }
    int64_t blocks() const { return (N + LANES - 1) / LANES; }
    /* The step of block b that begins at column k. */
    const char* step(int64_t b, int64_t k) const { return codes + b * block_bytes + k / STEP * W::BYTES; }
    f32x16 scale(int64_t b, int64_t g) const {
        if (W::BYTES == 64) return load(static_cast<const half*>(scales) + (b * groups + g) * LANES);
        return load(static_cast<const float*>(scales) + b * LANES, lanes_at(b * LANES, N));
    }
};

/* Results y (M, N), added to what is there where the call says so. */
struct Output {
    float* y;
    int64_t N;
    bool add;

    void put(int64_t m, int64_t b, f32x16 v) const {
        float* at = y + m * N + b * LANES;
        const int n = lanes_at(b * LANES, N);
        store(at, add ? v + load(at, n) : v, n);
    }
};

}  // namespace SIMD
}  // namespace quamba
