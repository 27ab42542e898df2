/* Matrix products with quantized weights: y (M, N) = x W^T, for one token (decode) and for many (prefill).
 *
 * A chunk is a run of 16-row blocks.  Within it a tile of MR tokens by NB blocks keeps its sums in registers:
 *
 *   MR = 1: every weight is read once, in order.  Bound: N K / 2 bytes (4-bit) over the memory's bandwidth; a line costs some
 *           8 instructions, a third of the time that it takes to arrive.  Each chunk packs the token for itself.
 *   MR = TILE_M: a line is unpacked once for so many tokens, which a first stage has packed (tiles.h).  Bound: M N K / 64 dot
 *           instructions (A8), M N K / 16 fmas (A16).
 *
 * Both are in linear_a8.h and linear_a16.h; f16 weights, which are there to compare with, are at the end of this file. */
#include "linear_a16.h"
#include "linear_a8.h"

namespace quamba {
namespace SIMD {

namespace {

constexpr int64_t DECODE_BYTES = 32 << 10;  // weights a chunk: some 2 us, ten times what taking a chunk costs
constexpr int PREFILL_BLOCKS = 8;           // a chunk: 128 rows
constexpr int64_t FEW = 4;                  // fewer tokens are packed by every chunk, rather than by a stage of its own

Split blocks(const Call& c, int64_t count, int64_t block_bytes) {
    if (c.size[0] < FEW) return {count, most<int64_t>(1, DECODE_BYTES / block_bytes), c.threads};
    const int64_t even = most<int64_t>(count / (4 * c.threads) / TILE_N * TILE_N, TILE_N);
    return {count, least<int64_t>(PREFILL_BLOCKS, even), c.threads};
}

template <class A, class W>
Shape shape(const Call& c) {
    const Matrix<W> w(c, A::WEIGHTS);
    const int64_t M = c.size[0];
    const int chunks = blocks(c, w.blocks(), w.block_bytes).chunks();
    const size_t packed = A::bytes(M, w.K, w.groups);
    if (M < FEW) return {{0, chunks}, 0, packed};
    return {{tile_count(M), chunks}, packed, 0};
}

template <class A, class W>
void pack(const Call& c, const Work& work) {
    A::pack(c, Matrix<W>(c, A::WEIGHTS), tile_number(work.chunk, c.size[0]), c.shared);
}

/* Tokens from m on, in tiles of MR, then of fewer. */
template <class A, class W, int MR>
void tiles(const Call& c, const Matrix<W>& w, int64_t m, int64_t begin, int64_t end, const Output& out, char* packed) {
    constexpr int NB = MR >= 4 ? TILE_N : 1;
    for (; m + MR <= c.size[0]; m += MR) {
        if (c.size[0] < FEW) A::pack(c, w, {m, MR}, packed);
        const A tokens(c, w, m, packed);
        int64_t b = begin;
        for (; b + NB <= end; b += NB) tokens.template tile<W, MR, NB>(w, m, b, out);
        for (; b < end; b++) tokens.template tile<W, MR, 1>(w, m, b, out);
    }
    if constexpr (MR > 1) tiles<A, W, smaller(MR)>(c, w, m, begin, end, out, packed);
}

template <class A, class W>
void multiply(const Call& c, const Work& work) {
    const Matrix<W> w(c, A::WEIGHTS);
    const Split split = blocks(c, w.blocks(), w.block_bytes);
    const bool add = c.size[W::BYTES == 64 ? 4 : 3];
    const Output out{c.at<float>(A::WEIGHTS + 2), w.N, add};
    char* packed = c.size[0] < FEW ? work.scratch : c.shared;
    tiles<A, W, TILE_M>(c, w, 0, split.begin(work.chunk), split.end(work.chunk), out, packed);
}

/* f16 weights in rows: lanes are columns.  Four rows by two tokens share their loads. */
Split rows_w16(const Call& c) {
    return {c.size[1], most<int64_t>(4, DECODE_BYTES / (2 * c.size[2]) / 4 * 4), c.threads};
}

Shape shape_w16(const Call& c) {
    return {{rows_w16(c).chunks()}, 0, 0};
}

template <int MR, int NR>
void tile_w16(const Call& c, int64_t m0, int64_t n0) {
    const int64_t N = c.size[1], K = c.size[2];
    f32x16 sums[MR][NR];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) sums[m][n] = set(0.0f);
    for (int64_t k = 0; k < K; k += LANES) {
        const int lanes = lanes_at(k, K);
        f32x16 x[MR];
        for (int m = 0; m < MR; m++) x[m] = load(c.at<half>(0) + (m0 + m) * K + k, lanes);
        for (int n = 0; n < NR; n++) {
            const half* p = c.at<half>(1) + (n0 + n) * K + k;
            prefetch(p + AHEAD / 4);
            const f32x16 w = load(p, lanes);
            for (int m = 0; m < MR; m++) sums[m][n] = fma(w, x[m], sums[m][n]);
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NR; n++) {
            float* y = c.at<float>(2) + (m0 + m) * N + n0 + n;
            *y = sum(sums[m][n]) + (c.size[3] ? *y : 0.0f);
        }
}

template <int MR>
void rows_of_w16(const Call& c, int64_t m, int64_t begin, int64_t end) {
    for (; m + MR <= c.size[0]; m += MR) {
        int64_t n = begin;
        for (; n + 4 <= end; n += 4) tile_w16<MR, 4>(c, m, n);
        for (; n < end; n++) tile_w16<MR, 1>(c, m, n);
    }
    if constexpr (MR > 1) rows_of_w16<MR / 2>(c, m, begin, end);
}

void linear_w16(const Call& c, const Work& work) {
    const Split split = rows_w16(c);
    rows_of_w16<TILE_N == 2 ? 4 : 2>(c, 0, split.begin(work.chunk), split.end(work.chunk));
}

}  // namespace

extern const Kernel LINEAR[5] = {
    {"linear_w4a8", 5, 5, 0, shape<A8, W4>, {pack<A8, W4>, multiply<A8, W4>}},
    {"linear_w8a8", 5, 4, 0, shape<A8, W8>, {pack<A8, W8>, multiply<A8, W8>}},
    {"linear_w4a16", 4, 5, 0, shape<A16, W4>, {pack<A16, W4>, multiply<A16, W4>}},
    {"linear_w8a16", 4, 4, 0, shape<A16, W8>, {pack<A16, W8>, multiply<A16, W8>}},
    {"linear_w16a16", 3, 4, 0, shape_w16, {linear_w16}},
};

}  // namespace SIMD
}  // namespace quamba
