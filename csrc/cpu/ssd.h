/* What both forms of Mamba2's recurrence read: the arguments of ssd_f32 and ssd_i8, whose xbc has scales. */
#pragma once
#include "rows.h"
#include "state.h"

namespace quamba {
namespace SIMD {

namespace ssd {

template <class X>
struct Args {  // sizes S, T, H, P, N, g
    const X* xbc;
    const float *scale, *dt, *dt_bias, *A, *D, *rows, *cols;
    void* state;
    float* y;
    int64_t dt_stride, tokens, H, P, N, groups, width, padded;  // width of xbc's rows; N, padded
    float dt_min, dt_max;

    explicit Args(const Call& c) {
        const int i = IS_CODES<X> ? 1 : 0;
        xbc = c.at<X>(0), scale = c.at<float>(i);
        dt = c.at<float>(i + 1), dt_stride = c.stride[i + 1], dt_bias = c.at<float>(i + 2);
        A = c.at<float>(i + 3), D = c.at<float>(i + 4);
        state = c.array[i + 5], rows = c.at<float>(i + 6), cols = c.at<float>(i + 7), y = c.at<float>(i + 8);
        tokens = c.size[1], H = c.size[2], P = c.size[3], N = c.size[4], groups = c.size[5];
        width = H * P + 2 * groups * N, padded = whole(N);
        dt_min = c.scalar[0], dt_max = c.scalar[1];
    }
    /* n values of token `row` of xbc from channel `from` on, as floats. */
    void values(float* out, int64_t row, int64_t from, int64_t n) const {
        expand(out, xbc + row * width + from, scale + from, n);
    }
    /* A token's B and C of a group of heads, in the units of the state. */
    template <class State>
    void outer(float* B, float* C, int64_t row, int64_t group) const {
        values(B, row, H * P + group * N, N), values(C, row, H * P + (groups + group) * N, N);
        if (IS_CODES<State>) over(B, B, cols + group * N, N), times(C, C, cols + group * N, N);
    }
    /* d of tokens row .. row + n of a head. */
    f32x16 steps(int64_t row, int64_t h, int n) const {
        float raw[LANES] = {};
        for (int t = 0; t < n; t++) raw[t] = dt[(row + t) * dt_stride + h];
        return min(max(softplus(load(raw) + set(dt_bias[h])), set(dt_min)), set(dt_max));
    }
    template <class State>
    State* state_of(int64_t s, int64_t h) const {
        return (State*)state + (s * H + h) * P * N;
    }
};

}  // namespace ssd

}  // namespace SIMD
}  // namespace quamba
