/* A tile of MR tokens by NB blocks of rows, f16 by 4- or 8-bit weights: floats, summed within a group, then scaled. */
#pragma once
#include "tiles.h"

namespace quamba {
namespace SIMD {

struct A16 {
    const float* x;  // (K, MR), K padded with zeros to whole steps

    static constexpr int WEIGHTS = 1;  // arrays before the weights

    static size_t bytes(int64_t tokens, int64_t K, int64_t) { return size_t(tokens) * size_t(whole_steps(K)) * sizeof(float); }

    template <class W>
    A16(const Call&, const Matrix<W>& w, int64_t m, char* packed)
        : x(reinterpret_cast<float*>(packed + bytes(m, w.K, w.groups))) {}

    template <class W>
    static void pack(const Call& c, const Matrix<W>& w, Tile t, char* packed) {
        float* wide = reinterpret_cast<float*>(packed + bytes(t.m, w.K, w.groups));
        for (int m = 0; m < t.count; m++) {
            const half* row = c.at<half>(0) + (t.m + m) * w.K;
            for (int64_t k = 0; k < whole_steps(w.K); k += LANES) {
                float some[LANES];
                store(some, load(row + k, most(lanes_at(k, w.K), 0)));
                for (int64_t i = 0; i < lanes_at(k, whole_steps(w.K)); i++) wide[(k + i) * t.count + m] = some[i];
            }
        }
    }

    template <class W, int MR, int NB>
    void tile(const Matrix<W>& w, int64_t m0, int64_t b, const Output& out) const {
        constexpr int WAYS = MR * NB < 4 ? 4 : 1;  // sums in flight for one result: a chain of fmas waits for each
        const float* values = x;
        const char* p[NB];
        for (int n = 0; n < NB; n++) p[n] = w.step(b + n, 0);
        f32x16 result[MR][NB];
        for (int64_t g = 0; g < w.groups; g++) {
            f32x16 sums[WAYS][MR][NB];
#pragma GCC unroll 4
            for (int i = 0; i < WAYS; i++)
#pragma GCC unroll 12
                for (int m = 0; m < MR; m++)
#pragma GCC unroll 2
                    for (int n = 0; n < NB; n++) sums[i][m][n] = set(0.0f);
            const auto column = [&](auto which) __attribute__((always_inline)) {
                constexpr int I = decltype(which)::value;
                f32x16 codes[NB];
#pragma GCC unroll 2
                for (int n = 0; n < NB; n++) codes[n] = W::template column<I>(p[n]);
#pragma GCC unroll 12
                for (int m = 0; m < MR; m++) {
                    const f32x16 value = set(values[I * MR + m]);
#pragma GCC unroll 2
                    for (int n = 0; n < NB; n++) sums[I % WAYS][m][n] = fma(codes[n], value, sums[I % WAYS][m][n]);
                }
            };
            for (int64_t left = least(w.G, w.K - g * w.G); left > 0; left -= STEP) {
#pragma GCC unroll 2
                for (int n = 0; n < NB; n++) {
                    prefetch(p[n] + AHEAD);
                    if (W::BYTES > 64) prefetch(p[n] + AHEAD + 64);
                }
                column(Index<0>{}), column(Index<1>{}), column(Index<2>{}), column(Index<3>{});
                if (W::BYTES == 64 || left > 4)  // 8-bit weights have no second line where four columns are left
                    column(Index<4>{}), column(Index<5>{}), column(Index<6>{}), column(Index<7>{});
                values += MR * STEP;
#pragma GCC unroll 2
                for (int n = 0; n < NB; n++) p[n] += W::BYTES;
            }
#pragma GCC unroll 2
            for (int n = 0; n < NB; n++) {
                const f32x16 group = w.scale(b + n, g);
#pragma GCC unroll 12
                for (int m = 0; m < MR; m++) {
                    f32x16 all = sums[0][m][n];
                    if (WAYS == 4) all = (all + sums[1 % WAYS][m][n]) + (sums[2 % WAYS][m][n] + sums[3 % WAYS][m][n]);
                    result[m][n] = g ? fma(all, group, result[m][n]) : all * group;
                }
            }
        }
        for (int m = 0; m < MR; m++)
            for (int n = 0; n < NB; n++) out.put(m0 + m, b + n, result[m][n]);
    }
};

}  // namespace SIMD
}  // namespace quamba
