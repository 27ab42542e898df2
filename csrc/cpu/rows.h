/* What the ops on rows share: the form in which they leave a row for the linear that reads it, and how rows become chunks. */
#pragma once
#include "call.h"
#include "simd.h"

namespace quamba {
namespace SIMD {

/* Row m of an int8 result (M, K) with one static scale, or of an f16 one. */
template <class T>
struct Row;

template <>
struct Row<int8_t> {
    int8_t* y;
    f32x16 reciprocal;

    void put(int64_t i, f32x16 v, int n) const { store(y + i, to_codes(v, reciprocal), n); }
};

template <>
struct Row<half> {
    half* y;

    void put(int64_t i, f32x16 v, int n) const { store(y + i, v, n); }
};

/* The result row m of a call whose arrays end in [x_scale,] y; `inputs` arrays stand before these. */
template <class T>
inline Row<T> row_of(const Call& c, int inputs, int64_t m, int64_t K);

template <>
inline Row<int8_t> row_of<int8_t>(const Call& c, int inputs, int64_t m, int64_t K) {
    return {c.at<int8_t>(inputs + 1) + m * K, set(1.0f / c.at<float>(inputs)[0])};
}

template <>
inline Row<half> row_of<half>(const Call& c, int inputs, int64_t m, int64_t K) {
    return {c.at<half>(inputs) + m * K};
}

/* Lanes of a row from column i on. */
inline int lanes_at(int64_t i, int64_t K) {
    return K - i < LANES ? int(K - i) : LANES;
}

/* 1 / sqrt(mean(x^2) + eps) of K values. */
inline float inverse_rms(const float* x, int64_t K, float eps) {
    f32x16 a = set(0.0f), b = set(0.0f);
    int64_t i = 0;
    for (; i + 2 * LANES <= K; i += 2 * LANES) {
        const f32x16 u = load(x + i), v = load(x + i + LANES);
        a = fma(u, u, a), b = fma(v, v, b);
    }
    for (; i < K; i += LANES) {
        const f32x16 u = load(x + i, lanes_at(i, K));
        a = fma(u, u, a);
    }
    return 1.0f / __builtin_sqrtf(sum(a + b) / float(K) + eps);
}

/* K values times a factor, as the result. */
template <class T>
inline void put_all(const Row<T>& y, const float* v, float factor, int64_t K) {
    for (int64_t i = 0; i < K; i += LANES) {
        const int n = lanes_at(i, K);
        y.put(i, load(v + i, n) * set(factor), n);
    }
}

/* Rows, some 16 KB of floats a chunk. */
inline Split rows(const Call& c, int64_t M, int64_t K) {
    return {M, most<int64_t>(1, 4096 / K), c.threads};
}

/* Of an op whose first sizes are M and K: without scratch, and with a row of it for each thread. */
inline Shape shape_of_rows(const Call& c) {
    return {{rows(c, c.size[0], c.size[1]).chunks()}, 0, 0};
}
inline Shape shape_of_copied_rows(const Call& c) {
    return {{rows(c, c.size[0], c.size[1]).chunks()}, 0, sizeof(float) * size_t(c.size[1])};
}

}  // namespace SIMD
}  // namespace quamba
