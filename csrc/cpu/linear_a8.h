/* A tile of MR tokens by NB blocks of rows, int8 by 4- or 8-bit weights.
 *
 * Integers are summed within a group, then scaled.  Codes are stored OFFSET too large, so sums start from
 * -OFFSET * (sum of x in the group), computed once when the tokens are packed. */
#pragma once
#include "tiles.h"

namespace quamba {
namespace SIMD {

struct A8 {
    const int8_t* x;  // (K / 4, MR, 4), K padded with zeros to whole steps; behind it what sums start from, i32 (groups, MR)
    f32x16 scale;

    static constexpr int WEIGHTS = 2;  // arrays before the weights

    static size_t bytes(int64_t tokens, int64_t K, int64_t groups) {
        return size_t(tokens) * (size_t(whole_steps(K)) + size_t(groups) * sizeof(int32_t));
    }

    /* Tokens of a tile as `pack` left them in `packed`, which holds all of the tokens from 0 on. */
    template <class W>
    A8(const Call& c, const Matrix<W>& w, int64_t m, char* packed)
        : x(reinterpret_cast<int8_t*>(packed + bytes(m, w.K, w.groups))), scale(set(c.at<float>(1)[0])) {}

    template <class W>
    static void pack(const Call& c, const Matrix<W>& w, Tile t, char* packed) {
        int8_t* words = reinterpret_cast<int8_t*>(packed + bytes(t.m, w.K, w.groups));
        int32_t* start = reinterpret_cast<int32_t*>(words + t.count * whole_steps(w.K));
        for (int m = 0; m < t.count; m++) {
            const int8_t* row = c.at<int8_t>(0) + (t.m + m) * w.K;
            int64_t k = t.count == 1 ? w.K / 4 * 4 : 0;
            __builtin_memcpy(words, row, size_t(k));  // one token lies right already
            for (; k + 4 <= w.K; k += 4) __builtin_memcpy(words + (k / 4 * t.count + m) * 4, row + k, 4);
            for (int64_t end = whole_steps(w.K); k < end; k += 4)
                for (int64_t i = 0; i < 4; i++) words[(k / 4 * t.count + m) * 4 + i] = k + i < w.K ? row[k + i] : int8_t(0);
            for (int64_t g = 0; g < w.groups; g++)
                start[g * t.count + m] = -W::OFFSET * total(row + g * w.G, least(w.G, w.K - g * w.G));
        }
    }

    /* Sum of n bytes: dots with ones, 64 at a time. */
    static int32_t total(const int8_t* p, int64_t n) {
        alignas(64) static const int8_t ones[64] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                                    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
        int32_t all = 0;
        if (n >= 64) {
            i32x16 a = zeros();
            for (; n >= 64; p += 64, n -= 64) a = dot4(a, load64(ones), load64(p));
            all = sum(a);
        }
        for (int64_t i = 0; i < n; i++) all += p[i];
        return all;
    }

    template <class W, int MR, int NB>
    void tile(const Matrix<W>& w, int64_t m0, int64_t b, const Output& out) const {
        constexpr int WAYS = MR * NB < 4 ? 2 : 1;  // sums in flight for one result: a chain of dots waits for each
        const int32_t* start = reinterpret_cast<const int32_t*>(x + MR * whole_steps(w.K));
        const int8_t* words = x;
        const char* p[NB];
        for (int n = 0; n < NB; n++) p[n] = w.step(b + n, 0);
        f32x16 result[MR][NB];
        for (int64_t g = 0; g < w.groups; g++, start += MR) {
            i32x16 sums[WAYS][MR][NB];
#pragma GCC unroll 12
            for (int m = 0; m < MR; m++)
#pragma GCC unroll 2
                for (int n = 0; n < NB; n++) {
                    sums[0][m][n] = W::OFFSET ? set_i32(start[m]) : zeros();
                    if (WAYS == 2) sums[WAYS - 1][m][n] = zeros();
                }
            const auto part = [&](auto which) __attribute__((always_inline)) {
                constexpr int P = decltype(which)::value;
                bytes64 codes[NB];
#pragma GCC unroll 2
                for (int n = 0; n < NB; n++) codes[n] = W::template part<P>(p[n]);
#pragma GCC unroll 12
                for (int m = 0; m < MR; m++) {
                    const bytes64 four = repeat4(words + (P * MR + m) * 4);
#pragma GCC unroll 2
                    for (int n = 0; n < NB; n++) sums[P % WAYS][m][n] = W::dot(sums[P % WAYS][m][n], codes[n], four);
                }
            };
            const int64_t columns = least(w.G, w.K - g * w.G);
            for (int64_t steps = columns / STEP; steps; steps--) {
#pragma GCC unroll 2
                for (int n = 0; n < NB; n++) {
                    prefetch(p[n] + AHEAD);
                    if (W::BYTES > 64) prefetch(p[n] + AHEAD + 64);
                }
                part(Index<0>{});
                part(Index<1>{});
                words += MR * STEP;
#pragma GCC unroll 2
                for (int n = 0; n < NB; n++) p[n] += W::BYTES;
            }
            if (columns % STEP) {  // the last ones of all; 8-bit weights have no second line where four are left
                part(Index<0>{});
                if (W::BYTES == 64 || columns % STEP > 4) part(Index<1>{});
            }
#pragma GCC unroll 2
            for (int n = 0; n < NB; n++) {
                const f32x16 group = w.scale(b + n, g);
#pragma GCC unroll 12
                for (int m = 0; m < MR; m++) {
                    const i32x16 all = WAYS == 2 ? sums[0][m][n] + sums[WAYS - 1][m][n] : sums[0][m][n];
                    result[m][n] = g ? fma(to_float(all), group, result[m][n]) : to_float(all) * group;
                }
            }
        }
        for (int m = 0; m < MR; m++)
            for (int n = 0; n < NB; n++) out.put(m0 + m, b + n, result[m][n] * scale);
    }
};

}  // namespace SIMD
}  // namespace quamba
