/* Transposing, four by four, with the vectors that gcc has on every CPU: 16 values take 4 loads, 8 shuffles and 4
 * stores, where scalar code takes 16 loads and 16 stores. */
#pragma once
#include <stdint.h>

#include "simd.h"

namespace quamba {
namespace SIMD {

typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t lanes4 __attribute__((vector_size(16)));

/* out[j][i] = in[i][j] for 4 x 4 values; `from` and `to` are elements from one row to the next. */
inline void transpose4(const float* in, int64_t from, float* out, int64_t to) {
    const quad a = *(const quad*)in, b = *(const quad*)(in + from);
    const quad c = *(const quad*)(in + 2 * from), d = *(const quad*)(in + 3 * from);
    const lanes4 low = {0, 4, 1, 5}, high = {2, 6, 3, 7}, first = {0, 1, 4, 5}, second = {2, 3, 6, 7};
    const quad ab = __builtin_shuffle(a, b, low), cd = __builtin_shuffle(c, d, low);
    const quad AB = __builtin_shuffle(a, b, high), CD = __builtin_shuffle(c, d, high);
    *(quad*)out = __builtin_shuffle(ab, cd, first);
    *(quad*)(out + to) = __builtin_shuffle(ab, cd, second);
    *(quad*)(out + 2 * to) = __builtin_shuffle(AB, CD, first);
    *(quad*)(out + 3 * to) = __builtin_shuffle(AB, CD, second);
}

/* out[j][i] = in[i][j] for rows x cols values of `in`, both multiples of 4. */
inline void transpose(const float* in, int64_t from, int64_t rows, int64_t cols, float* out, int64_t to) {
    for (int64_t i = 0; i < rows; i += 4)
        for (int64_t j = 0; j < cols; j += 4) transpose4(in + i * from + j, from, out + j * to + i, to);
}

}  // namespace SIMD
}  // namespace quamba
